"""What captioning takes and gives, whoever computes it."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from PIL import Image

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
