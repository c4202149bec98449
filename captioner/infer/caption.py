"""What captioning takes and gives, whoever computes it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from captioner.data.images import load_image
from captioner.errors import CaptionerError
from captioner.model.preprocessing import Preprocessing

ImageInput: TypeAlias = str | Path | bytes | Image.Image


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


def pixel_batches(images: Sequence[ImageInput], preprocessing: Preprocessing, batch_size: int) -> Iterator[np.ndarray]:
    """Images as the model takes them, [B, 3, H, W] at a time.

    Raises:
        CaptionerError: `batch_size` is below 1.
        ImageError: when its turn has come, an image that cannot be read.
    """
    if batch_size < 1:
        raise CaptionerError(f"batch_size must be at least 1; it is {batch_size}")
    return (
        np.stack(
            [preprocessing(load_image(image, preprocessing.min_size)) for image in images[start : start + batch_size]]
        )
        for start in range(0, len(images), batch_size)
    )


def likely_tags(logits: np.ndarray, names: Sequence[str], problem_type: str | None) -> tuple[Tag, ...]:
    """Of an image's tag logits [C]: the tags more likely than not, or its one class; most probable first."""
    if problem_type == "single_label_classification" and names:
        best = int(logits.argmax())
        return (Tag(names[best], float(1 / np.exp(logits - logits[best]).sum())),)
    scores = (1 + np.tanh(logits / 2)) / 2  # the logistic function, without its overflow
    tags = [Tag(name, score) for name, score in zip(names, scores.tolist(), strict=True) if score >= 0.5]
    return tuple(sorted(tags, key=lambda tag: -tag.score))
