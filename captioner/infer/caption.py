"""What captioning takes and gives, whoever computes it."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, cast

import numpy as np
from PIL import Image

from captioner.data.arrays import Array
from captioner.data.images import ImageError, ImageInput, load_image
from captioner.errors import CaptionerError
from captioner.model.preprocessing import Preprocessing

_log = logging.getLogger(__name__)


class Token(NamedTuple):
    """A piece of a caption as the tokenizer spells it, and its log-probability under the model."""

    text: str
    log_prob: float


class Tag(NamedTuple):
    """A word for what an image shows, from a tag head, with its probability."""

    text: str
    score: float


@dataclass(frozen=True)
class Caption:
    """What a model says of an image.

    Attributes:
        text: the caption, on one line.
        confidence: exp of the mean log-probability of its tokens, the end of sequence among them: the geometric mean of
            the probabilities that the model gave each token, between 0 and 1. Comparable between captions of any
            length, but no probability that the caption is right.
        tokens: its tokens with their log-probabilities.
        alternatives: further captions of the image, best first (`num_return_sequences` less one).
        tags: what a tag head saw; empty where the model has none.
    """

    text: str
    confidence: float
    tokens: tuple[Token, ...]
    alternatives: tuple["Caption", ...] = ()
    tags: tuple[Tag, ...] = ()


def as_several(images: ImageInput | Iterable[ImageInput]) -> Iterable[ImageInput] | None:
    """The images of an iterable, or of an array with one dimension more than an image's; None if this is one image, or
    nothing that could be one."""
    if isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | Image.Image | Mapping):
        return None
    if hasattr(images, "read"):  # files are iterable too
        return None
    if isinstance(images, Array) and getattr(images, "ndim", 0) in (0, 2, 3):
        return None
    return cast("Iterable[ImageInput]", images) if hasattr(images, "__iter__") else None


def read_image(source: ImageInput, preprocessing: Preprocessing) -> Image.Image:
    """`load_image`, as large as the model needs it. A fault that costs the picture nothing is logged as a warning."""
    image = load_image(source, preprocessing.min_size)
    if warning := image.info.get("warning"):
        _log.warning("%s", "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in warning))
    return image


def pixel_batches(images: Iterable[ImageInput], preprocessing: Preprocessing, batch_size: int) -> Iterator[np.ndarray]:
    """Images as the model takes them, [B, 3, H, W] at a time.

    Raises:
        CaptionerError: `batch_size` is below 1.
        ImageError: when its turn has come, an image that cannot be read.
    """
    if batch_size < 1:
        raise CaptionerError(f"batch_size must be at least 1; it is {batch_size}")
    pixels = (_pixels(image, number, preprocessing) for number, image in enumerate(images))
    return (np.stack(batch) for batch in iter(lambda: list(islice(pixels, batch_size)), []))


def _pixels(image: ImageInput, number: int, preprocessing: Preprocessing) -> np.ndarray:
    try:
        return preprocessing(read_image(image, preprocessing))
    except ImageError as error:
        if isinstance(image, str | os.PathLike):
            raise
        raise ImageError(f"images[{number}], {error.source}", error.reason, error.message) from error


def likely_tags(logits: np.ndarray, names: Sequence[str], problem_type: str | None) -> tuple[Tag, ...]:
    """Of an image's tag logits [C]: the tags more likely than not, or its one class; most probable first."""
    if problem_type == "single_label_classification" and names:
        best = int(logits.argmax())
        return (Tag(names[best], float(1 / np.exp(logits - logits[best]).sum())),)
    scores = (1 + np.tanh(logits / 2)) / 2  # the logistic function, without its overflow
    tags = [Tag(name, score) for name, score in zip(names, scores.tolist(), strict=True) if score >= 0.5]
    return tuple(sorted(tags, key=lambda tag: -tag.score))
