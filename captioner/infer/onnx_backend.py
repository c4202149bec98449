"""The backend that computes a model's ONNX graphs: ONNX Runtime on a CPU."""

import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

import numpy as np
from PIL import Image

from captioner.decoding.numpy_search import lacks
from captioner.decoding.options import GenerationOptions
from captioner.distributed import available_cores
from captioner.errors import CaptionerError
from captioner.infer.backend import images_together
from captioner.infer.caption import Caption
from captioner.infer.export_format import Graphs
from captioner.infer.exported_model import Encoded, ExportedModel
from captioner.infer.model_settings import read_settings

MOST_TOGETHER = 64
"""Images that are decoded together, in two halves, unless a batch has more."""


def half_the_threads() -> int:
    return max(1, available_cores() // 2)


def parts(pixel_values: np.ndarray) -> list[np.ndarray]:
    """Split a batch for the encoder: two images a thread, because more overflow its cache, and at least two parts."""
    count = max(2, math.ceil(len(pixel_values) / (2 * half_the_threads())))
    return np.array_split(pixel_values, min(count, len(pixel_values)))


class OnnxBackend:
    """A `Backend` whose model is a folder's graphs. They are loaded when the first images come: with all threads for a
    single image, else with half of them, so that one stream holds the weights once."""

    batch_size = 16

    def __init__(self, graphs: Graphs) -> None:
        """Read the settings beside the graphs.

        Raises:
            CaptionerError: a file cannot be read.
        """
        self.graphs = graphs
        self.settings = read_settings(graphs.folder)
        self.precision = graphs.precision
        self.defaults = self.settings.defaults
        self.preprocessing = self.settings.preprocessing
        self.tokenizer = self.settings.tokenizer
        self.start, self.longest = self.settings.start, self.settings.longest

    @cached_property
    def on_all_threads(self) -> ExportedModel:
        return ExportedModel(self.graphs, self.settings, available_cores())

    @cached_property
    def on_half_the_threads(self) -> ExportedModel:
        return ExportedModel(self.graphs, self.settings, half_the_threads())

    def tune(self, options: GenerationOptions, batch_size: int | None) -> None:
        """Do nothing: the graphs have settled the precision, and batch sizes differ little."""

    def token_maps(self, photo: Image.Image, token_ids: Sequence[int], method: str) -> np.ndarray:
        if method != "attention":
            raise CaptionerError("an exported model has no gradients; the model it was made from has")
        return self.on_all_threads.token_maps(self.preprocessing(photo)[None], token_ids)

    def stream(self, options: GenerationOptions) -> "OnnxStream":
        if lacking := lacks(options):
            raise CaptionerError(f"an exported model has no {lacking}; the model it was made from has")
        self.settings.max_steps(options)  # refuse what this model cannot do before the first batch
        return OnnxStream(self, options)


class OnnxStream:
    """Encodes two parts of a batch at a time, each with half the threads, then decodes the halves of several batches in
    the same way: a decoder's small steps keep few threads busy, and cost little more for many images than for few.

    A batch of one image waits for the next: if none comes, it has all threads.
    """

    def __init__(self, backend: OnnxBackend, options: GenerationOptions) -> None:
        self.backend = backend
        self.options = options
        self.pool = ThreadPoolExecutor(2)
        self.first: np.ndarray | None = None  # a single image that waits
        self.encoded: list[Future[Encoded]] = []
        self.waiting = 0  # images in `encoded`, none of which is being decoded yet
        self.decoded: deque[Future[list[Caption]]] = deque()
        self.has_begun = False

    def add(self, images: Sequence[np.ndarray] | np.ndarray) -> list[Caption]:
        pixel_values = np.asarray(images)
        if len(pixel_values) == 0:
            return []
        if not self.has_begun and self.first is None and len(pixel_values) == 1:
            self.first = pixel_values
            return []
        if self.first is not None:
            pixel_values, self.first = np.concatenate([self.first, pixel_values]), None
        self.has_begun = True
        self.waiting += len(pixel_values)
        for part in parts(pixel_values):
            self.encoded.append(self.pool.submit(self.backend.on_half_the_threads.encode, part))
        if self.waiting >= images_together(len(images), MOST_TOGETHER):
            self._decode()
        return self._captions(left=2)

    def finish(self) -> list[Caption]:
        if self.first is not None:
            model, pixel_values, self.first = self.backend.on_all_threads, self.first, None
            captions = model.decode([model.encode(pixel_values)], self.options)
        else:
            self._decode()
            captions = self._captions(left=0)
        self.pool.shutdown()
        return captions

    def _decode(self) -> None:
        middle = len(self.encoded) // 2
        for half in (self.encoded[:middle], self.encoded[middle:]):
            if half:
                self.decoded.append(self.pool.submit(self._decode_together, half))
        self.encoded, self.waiting = [], 0

    def _decode_together(self, encoded: list[Future[Encoded]]) -> list[Caption]:
        """Wait for the encoders, which the pool started earlier, and decode."""
        return self.backend.on_half_the_threads.decode([images.result() for images in encoded], self.options)

    def _captions(self, left: int) -> list[Caption]:
        """Return what is ready, in order; wait until no more than `left` parts are being decoded."""
        captions: list[Caption] = []
        while self.decoded and (len(self.decoded) > left or self.decoded[0].done()):
            captions += self.decoded.popleft().result()
        return captions
