"""An exported folder in `Captioner`'s place: the same calls, computed by ONNX Runtime."""

import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from captioner.decoding.options import GenerationOptions
from captioner.distributed import available_cores
from captioner.errors import CaptionerError
from captioner.infer.caption import Caption
from captioner.infer.captioner import Captioner

try:
    from captioner.infer.onnx_backend import Encoded, ExportedCaptioner
except ModuleNotFoundError as error:
    if error.name != "onnxruntime":
        raise
    raise CaptionerError("an exported model needs ONNX Runtime: pip install 'captioner[export]'") from error

if TYPE_CHECKING:
    import torch


def images_together(batch_size: int) -> int:
    """How many images are decoded together, in two halves: those of eight batches, but of several only up to 64."""
    return max(batch_size, min(8 * batch_size, 64))


def half_the_threads() -> int:
    return max(1, available_cores() // 2)


def parts(pixel_values: np.ndarray) -> list[np.ndarray]:
    """A batch as it is encoded: two images a thread, of which more would overflow its cache, in two parts at least."""
    count = max(2, math.ceil(len(pixel_values) / (2 * half_the_threads())))
    return np.array_split(pixel_values, min(count, len(pixel_values)))


class OnnxCaptioner(Captioner):
    """A `Captioner` whose model is an exported folder; `device` and `precision` were chosen when it was exported."""

    def __init__(self, folder: Path, name: str, device: "str | torch.device" = "auto", precision: str = "auto") -> None:
        if str(device) not in ("auto", "cpu") or precision != "auto":
            raise CaptionerError(f"{name}: an exported model runs on the CPU, in the precision it was exported in")
        self.folder = folder
        self.exported = ExportedCaptioner(folder, num_threads=available_cores())
        self.preprocessing = self.exported.preprocessing
        self.defaults = self.exported.defaults
        self.name, self.precision = name, precision

    @cached_property
    def on_half_the_threads(self) -> ExportedCaptioner:
        return ExportedCaptioner(self.folder, num_threads=half_the_threads())

    @property
    def _start(self) -> int:
        return self.exported.start

    def _token_ids(self, text: str) -> tuple[int, ...]:
        return self.exported.token_ids(text)

    def tune(self, options: GenerationOptions, batch_size: int | None = None) -> None:
        """Nothing is left to choose."""

    def stream(self, options: GenerationOptions) -> "OnnxCaptionStream":
        return OnnxCaptionStream(self, options)


class OnnxCaptionStream:
    """Encodes a batch two parts at a time, each with half the threads, and so decodes the halves of several batches: a
    decoder's small steps keep few threads busy, and cost little more for many images than for few.
    One image has all threads as long as no other is in the making."""

    def __init__(self, captioner: OnnxCaptioner, options: GenerationOptions) -> None:
        captioner.exported.max_steps(options)  # what this model cannot do is said before the first batch
        self.captioner = captioner
        self.options = options
        self.pool = ThreadPoolExecutor(2)
        self.encoded: list[Future[Encoded]] = []
        self.waiting = 0  # images of these, none of which is being decoded yet
        self.decoded: deque[Future[list[Caption]]] = deque()

    def add(self, pixel_values: np.ndarray) -> list[Caption]:
        self.waiting += len(pixel_values)
        exported = self._exported()
        for part in parts(pixel_values):
            self.encoded.append(self.pool.submit(exported.encode, part))
        if self.waiting >= images_together(len(pixel_values)):
            self._decode()
        return self._captions(left=2)

    def finish(self) -> list[Caption]:
        self._decode()
        captions = self._captions(left=0)
        self.pool.shutdown()
        return captions

    def _exported(self) -> ExportedCaptioner:
        is_alone = self.waiting == 1 and not self.decoded
        return self.captioner.exported if is_alone else self.captioner.on_half_the_threads

    def _decode(self) -> None:
        exported, middle = self._exported(), len(self.encoded) // 2
        for half in (self.encoded[:middle], self.encoded[middle:]):
            if half:
                self.decoded.append(self.pool.submit(self._decode_together, exported, half))
        self.encoded, self.waiting = [], 0

    def _decode_together(self, exported: ExportedCaptioner, encoded: list[Future[Encoded]]) -> list[Caption]:
        """The pool works in turn: the encoders of these have begun before, and end without it."""
        return exported.decode([images.result() for images in encoded], self.options)

    def _captions(self, left: int) -> list[Caption]:
        """What is done by now, in turn; waits until no more than `left` parts are being decoded."""
        captions: list[Caption] = []
        while self.decoded and (len(self.decoded) > left or self.decoded[0].done()):
            captions += self.decoded.popleft().result()
        return captions
