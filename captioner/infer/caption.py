"""Captions, as every backend returns them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from captioner.decoding.hypothesis import Hypothesis
from captioner.infer.tokenizer import Tokenizer


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


def caption_of(hypotheses: Sequence[Hypothesis], tokenizer: Tokenizer, tags: tuple[Tag, ...] = ()) -> Caption:
    """Make a caption of an image's hypotheses, best first; all but the best become its alternatives."""
    best, *others = hypotheses
    return Caption(
        text=" ".join(tokenizer.decode(best.token_ids).split()),
        confidence=math.exp(best.mean_log_prob),
        tokens=tuple(
            Token(tokenizer.id_to_token(index), log_prob)
            for index, log_prob in zip(best.token_ids, best.log_probs, strict=True)
        ),
        alternatives=tuple(caption_of([other], tokenizer) for other in others),
        tags=tags,
    )


def likely_tags(logits: np.ndarray, names: Sequence[str], problem_type: str | None) -> tuple[Tag, ...]:
    """Of an image's tag logits [C]: the tags more likely than not, or its one class; most probable first."""
    if problem_type == "single_label_classification" and names:
        best = int(logits.argmax())
        return (Tag(names[best], float(1 / np.exp(logits - logits[best]).sum())),)
    scores = (1 + np.tanh(logits / 2)) / 2  # the logistic function, without its overflow
    tags = [Tag(name, score) for name, score in zip(names, scores.tolist(), strict=True) if score >= 0.5]
    return tuple(sorted(tags, key=lambda tag: -tag.score))
