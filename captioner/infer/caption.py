"""Captions, as every backend returns them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from captioner.decoding.hypothesis import Hypothesis
from captioner.decoding.options import GenerationOptions
from captioner.infer.calibration import Calibration
from captioner.infer.tokenizer import Tokenizer
from captioner.infer.words import Word, tokens_of_words


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
        confidence: the probability that the caption is acceptable, as `captioner.metrics.trust.acceptable`
            defines it, if the model is calibrated (`captioner calibrate`). Else the geometric mean of the probabilities
            that the model gave each token and the end of sequence: comparable between captions of any length, but not
            the probability that the caption is right.
        tokens: its tokens with their log-probabilities.
        alternatives: further captions of the image, best first (`num_return_sequences` less one).
        tags: what a tag head saw; empty where the model has none.
        words: the words of `text`, each with the probability that people would use it of this image, if the model is
            calibrated; else with the product of its tokens' probabilities.
        end_log_prob: log-probability of the end of sequence; None if `max_new_tokens` cut the caption.
    """

    text: str
    confidence: float
    tokens: tuple[Token, ...]
    alternatives: tuple["Caption", ...] = ()
    tags: tuple[Tag, ...] = ()
    words: tuple[Word, ...] = ()
    end_log_prob: float | None = 0.0


@dataclass(frozen=True)
class CaptionMaker:
    """Makes captions of the hypotheses that `search_options` give.

    Attributes:
        tokenizer: of the model.
        options: what was asked for.
        calibration: of the model; None if it has none.
    """

    tokenizer: Tokenizer
    options: GenerationOptions
    calibration: Calibration | None = None

    @property
    def is_search(self) -> bool:
        """Whether the hypotheses of an image come from one beam search, and so tell how sure the first is."""
        return not self.options.do_sample and self.options.num_captions > 1 and self.options.num_beam_groups == 1

    @property
    def search_options(self) -> GenerationOptions:
        """The same search, returning all the captions that it ends with."""
        if self.calibration is None or not self.is_search:
            return self.options
        return replace(self.options, num_return_sequences=self.options.num_captions)

    def __call__(self, hypotheses: Sequence[Hypothesis], tags: tuple[Tag, ...] = ()) -> Caption:
        """Make an image's caption of its hypotheses, best first; the next ones become its alternatives."""
        returned = hypotheses[: self.options.num_return_sequences]
        best, *alternatives = (self._caption(one, hypotheses) for one in returned)
        return replace(best, alternatives=tuple(alternatives), tags=tags)

    def _caption(self, hypothesis: Hypothesis, hypotheses: Sequence[Hypothesis]) -> Caption:
        text = " ".join(self.tokenizer.decode(hypothesis.token_ids).split())
        pieces = [self.tokenizer.id_to_token(index) for index in hypothesis.token_ids]
        words = tokens_of_words(text, pieces)
        if self.calibration is None:
            confidence = math.exp(hypothesis.mean_log_prob)
            likely = tuple(Word(word, math.exp(sum(hypothesis.log_probs[i] for i in own))) for word, own in words)
        else:
            others = [other for other in hypotheses if other is not hypothesis] if self.is_search else []
            confidence = self.calibration.confidence(words, hypothesis, others)
            likely = self.calibration.words(words, hypothesis)
        tokens = tuple(map(Token, pieces, hypothesis.log_probs))
        return Caption(text, confidence, tokens, words=likely, end_log_prob=hypothesis.end_log_prob)


def likely_tags(logits: np.ndarray, names: Sequence[str], problem_type: str | None) -> tuple[Tag, ...]:
    """Of an image's tag logits [C]: the tags more likely than not, or its one class; most probable first."""
    if problem_type == "single_label_classification" and names:
        best = int(logits.argmax())
        return (Tag(names[best], float(1 / np.exp(logits - logits[best]).sum())),)
    scores = (1 + np.tanh(logits / 2)) / 2  # the logistic function, without its overflow
    tags = [Tag(name, score) for name, score in zip(names, scores.tolist(), strict=True) if score >= 0.5]
    return tuple(sorted(tags, key=lambda tag: -tag.score))
