"""The backend of exported models: ONNX Runtime on a CPU."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from captioner.decoding.options import GenerationOptions
from captioner.distributed import available_cores
from captioner.errors import CaptionerError
from captioner.infer.caption import Caption
from captioner.infer.exported_model import Encoded, ExportedModel
from captioner.infer.tokenizer import Tokenizer
from captioner.model.preprocessing import Preprocessing


def images_together(batch_size: int) -> int:
    """Return how many images are decoded together, in two halves: eight batches of them, but not more than 64 images
    if that is several batches."""
    return max(batch_size, min(8 * batch_size, 64))


def half_the_threads() -> int:
    return max(1, available_cores() // 2)


def parts(pixel_values: np.ndarray) -> list[np.ndarray]:
    """Split a batch for the encoder: two images a thread, because more overflow its cache, and at least two parts."""
    count = max(2, math.ceil(len(pixel_values) / (2 * half_the_threads())))
    return np.array_split(pixel_values, min(count, len(pixel_values)))


class OnnxBackend:
    """A `Backend` whose model is an exported folder. Device and precision were chosen when it was exported."""

    batch_size = 16

    def __init__(self, folder: Path, name: str, device: str = "auto", precision: str = "auto") -> None:
        """Load the folder; `name` is the model's name in error messages.

        Raises:
            CaptionerError: the folder cannot be read, or `device` or `precision` is not the export's.
        """
        self.folder = folder
        self.model = ExportedModel(folder, available_cores())
        if device not in ("auto", "cpu") or precision not in ("auto", self.precision):
            raise CaptionerError(f"{name}: an exported model runs on the CPU, in the precision it was exported in")

    @cached_property
    def on_half_the_threads(self) -> ExportedModel:
        return ExportedModel(self.folder, half_the_threads())

    @property
    def precision(self) -> str:
        return self.model.precision

    @property
    def defaults(self) -> Mapping[str, Any]:
        return self.model.defaults

    @property
    def preprocessing(self) -> Preprocessing:
        return self.model.preprocessing

    @property
    def tokenizer(self) -> Tokenizer:
        return self.model.tokenizer

    @property
    def start(self) -> int:
        return self.model.start

    @property
    def longest(self) -> int:
        return self.model.longest

    def tune(self, options: GenerationOptions, batch_size: int | None) -> None:
        """Do nothing: the export has settled the precision, and batch sizes differ little."""

    def token_maps(self, photo: Image.Image, token_ids: Sequence[int], method: str) -> np.ndarray:
        if method != "attention":
            raise CaptionerError("an exported model has no gradients; the model it was made from has")
        return self.model.token_maps(self.preprocessing(photo)[None], token_ids)

    def stream(self, options: GenerationOptions) -> "OnnxStream":
        return OnnxStream(self, options)


class OnnxStream:
    """Encodes two parts of a batch at a time, each with half the threads, then decodes the halves of several batches in
    the same way: a decoder's small steps keep few threads busy, and cost little more for many images than for few. A
    single image has all threads while no other is in progress."""

    def __init__(self, backend: OnnxBackend, options: GenerationOptions) -> None:
        backend.model.max_steps(options)  # refuse what this model cannot do before the first batch
        self.backend = backend
        self.options = options
        self.pool = ThreadPoolExecutor(2)
        self.encoded: list[Future[Encoded]] = []
        self.waiting = 0  # images in `encoded`, none of which is being decoded yet
        self.decoded: deque[Future[list[Caption]]] = deque()

    def add(self, images: Sequence[np.ndarray] | np.ndarray) -> list[Caption]:
        pixel_values = np.asarray(images)
        self.waiting += len(pixel_values)
        model = self._model()
        for part in parts(pixel_values):
            self.encoded.append(self.pool.submit(model.encode, part))
        if self.waiting >= images_together(len(pixel_values)):
            self._decode()
        return self._captions(left=2)

    def finish(self) -> list[Caption]:
        self._decode()
        captions = self._captions(left=0)
        self.pool.shutdown()
        return captions

    def _model(self) -> ExportedModel:
        is_alone = self.waiting == 1 and not self.decoded
        return self.backend.model if is_alone else self.backend.on_half_the_threads

    def _decode(self) -> None:
        model, middle = self._model(), len(self.encoded) // 2
        for half in (self.encoded[:middle], self.encoded[middle:]):
            if half:
                self.decoded.append(self.pool.submit(self._decode_together, model, half))
        self.encoded, self.waiting = [], 0

    def _decode_together(self, model: ExportedModel, encoded: list[Future[Encoded]]) -> list[Caption]:
        """Wait for the encoders, which the pool started earlier, and decode."""
        return model.decode([images.result() for images in encoded], self.options)

    def _captions(self, left: int) -> list[Caption]:
        """Return what is ready, in order; wait until no more than `left` parts are being decoded."""
        captions: list[Caption] = []
        while self.decoded and (len(self.decoded) > left or self.decoded[0].done()):
            captions += self.decoded.popleft().result()
        return captions
