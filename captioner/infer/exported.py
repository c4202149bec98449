"""An exported folder in `Captioner`'s place: the same calls, computed by ONNX Runtime."""

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from captioner.errors import CaptionerError
from captioner.infer.caption import Caption
from captioner.infer.captioner import Captioner
from captioner.infer.options import GenerationOptions

try:
    from captioner.export.runtime import ExportedCaptioner
except ModuleNotFoundError as error:
    if error.name != "onnxruntime":
        raise
    raise CaptionerError("an exported model needs ONNX Runtime: pip install 'captioner[export]'") from error

if TYPE_CHECKING:
    import torch


class OnnxCaptioner(Captioner):
    """A `Captioner` whose model is an exported folder; `device` and `precision` were chosen when it was exported."""

    def __init__(self, folder: Path, name: str, device: "str | torch.device" = "auto", precision: str = "auto") -> None:
        if str(device) not in ("auto", "cpu") or precision != "auto":
            raise CaptionerError(f"{name}: an exported model runs on the CPU, in the precision it was exported in")
        self.folder = folder
        self.exported = ExportedCaptioner(folder)
        self.preprocessing = self.exported.preprocessing
        self.defaults = self.exported.defaults
        self.name, self.precision = name, precision

    @cached_property
    def on_half_the_threads(self) -> ExportedCaptioner:
        return ExportedCaptioner(self.folder, num_threads=max(1, (os.cpu_count() or 1) // 2))

    def _token_ids(self, text: str) -> tuple[int, ...]:
        return self.exported.token_ids(text)

    def tune(self, options: GenerationOptions, batch_size: int | None = None) -> None:
        """Nothing is left to choose."""

    def stream(self, options: GenerationOptions) -> "OnnxCaptionStream":
        return OnnxCaptionStream(self, options)


class OnnxCaptionStream:
    """Captions the halves of a batch side by side, each with half the threads: a decoder's small steps keep few of them
    busy. One image has all threads as long as no other is in the making."""

    def __init__(self, captioner: OnnxCaptioner, options: GenerationOptions) -> None:
        captioner.exported.room(options)  # what this model cannot do is said before the first batch
        self.captioner = captioner
        self.options = options
        self.pool = ThreadPoolExecutor(2)
        self.running: deque[Future[list[Caption]]] = deque()

    def add(self, pixel_values: np.ndarray) -> list[Caption]:
        is_alone = len(pixel_values) == 1 and not self.running
        exported = self.captioner.exported if is_alone else self.captioner.on_half_the_threads
        for half in np.array_split(pixel_values, min(2, len(pixel_values))):
            self.running.append(self.pool.submit(exported.caption, half, self.options))
        return self._captions(left=2)

    def finish(self) -> list[Caption]:
        captions = self._captions(left=0)
        self.pool.shutdown()
        return captions

    def _captions(self, left: int) -> list[Caption]:
        """What is done by now, in turn; waits until no more than `left` halves are in the making."""
        captions: list[Caption] = []
        while self.running and (len(self.running) > left or self.running[0].done()):
            captions += self.running.popleft().result()
        return captions
