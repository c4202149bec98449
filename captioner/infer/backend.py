"""The interface between `Captioner` and what computes its captions."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from captioner.decoding.options import GenerationOptions
from captioner.infer.caption import Caption
from captioner.infer.tokenizer import Tokenizer


def images_together(batch_size: int, most: int) -> int:
    """Return how many images are decoded together on a CPU: eight batches, up to `most` images, but at least one batch.
    A step of the decoder costs little more for many images than for few."""
    return max(batch_size, min(8 * batch_size, most))


class Preprocess(Protocol):
    """From an upright RGB image to an array that the backend takes. Safe in threads."""

    @property
    def min_size(self) -> int:
        """Pixels of the shorter side below which a photo must not be scaled down when it is read."""

    def window(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return which part of a photo of this size the model sees: left, top, right, bottom in its pixels."""

    def __call__(self, image: Image.Image) -> np.ndarray: ...


class CaptionStream(Protocol):
    """Captions of any number of images, in their order."""

    def add(self, images: Sequence[np.ndarray] | np.ndarray) -> list[Caption]:
        """Take a batch of preprocessed images; return the captions that are next in order and ready."""

    def finish(self) -> list[Caption]:
        """Return the captions of all remaining images."""


class Backend(Protocol):
    """A loaded model: preprocessed images in, captions out."""

    batch_size: int
    """Images captioned at once if the caller does not say how many."""

    @property
    def precision(self) -> str:
        """Of weights and arithmetic: fp32, bf16, fp16 or int8."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Fields of `GenerationOptions` that the model's `generation_config.json` sets."""

    @property
    def preprocessing(self) -> Preprocess: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def start(self) -> int:
        """The token that every sequence starts with."""

    @property
    def longest(self) -> int:
        """Most tokens of a caption, including its prefix and the end of sequence."""

    def tune(self, options: GenerationOptions, batch_size: int | None) -> None:
        """Choose the fastest settings on this machine by a short probe; keep `batch_size` if it is given."""

    def token_maps(self, photo: Image.Image, token_ids: Sequence[int], method: str) -> np.ndarray:
        """Return heat [T, rows, columns] over what the model sees of a photo, for each token of a caption of it.

        Args:
            photo: upright, RGB.
            method: one of `captioner.infer.explain.METHODS`.

        Raises:
            CaptionerError: this model cannot explain its captions, or not by this method.
        """

    def stream(self, options: GenerationOptions) -> CaptionStream:
        """Start captioning.

        Raises:
            CaptionerError: this model cannot do what the options ask for.
        """
