"""Calibrated confidence: the probability that a caption is acceptable, and for each word that people would use it.

`captioner.metrics.trust.acceptable` defines acceptable. A calibration is fitted by logistic regression with
scikit-learn and applied in plain Python: it costs a caption some microseconds. It is stored beside the weights, in
calibration.json, since it is a property of them: training and averaging leave it out, exporting copies it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from captioner.decoding.hypothesis import Hypothesis
from captioner.errors import CaptionerError
from captioner.infer.words import Word

FILE = "calibration.json"
LARGEST_FILE = 10_000_000
"""Bytes. A calibration has a line for each word that the model wrote on the images it was fitted on."""

OWN = ("mean_log_prob", "lowest_log_prob", "length", "familiarity", "record")
OTHERS = ("margin", "agreement")
WORD = ("log_prob", "record")

CAPTION_PRIOR, WORD_PRIOR = 20.0, 5.0
"""How many captions, or uses of a word, the mean of all counts as where there are few of a word."""

Words = Sequence[tuple[str, list[int]]]
"""The words of a caption with the places of their tokens, as `tokens_of_words` gives them."""


@dataclass(frozen=True)
class Logistic:
    """p = 1 / (1 + exp(-(intercept + sum of weight * feature)))."""

    weights: Mapping[str, float]
    intercept: float

    def __call__(self, features: Mapping[str, float]) -> float:
        logit = self.intercept + sum(weight * features[name] for name, weight in self.weights.items())
        return 1 / (1 + math.exp(-min(max(logit, -30.0), 30.0)))

    @classmethod
    def fit(cls, features: Sequence[Mapping[str, float]], outcomes: Sequence[bool]) -> "Logistic":
        """Fit to feature values by name, the same names in each, and whether it was so.

        Raises:
            CaptionerError: scikit-learn is not installed; all outcomes are the same.
        """
        try:
            from sklearn.linear_model import LogisticRegression
            from sklearn.preprocessing import StandardScaler
        except ModuleNotFoundError as error:
            raise CaptionerError("calibration needs scikit-learn: pip install 'captioner[calibrate]'") from error
        if len(set(outcomes)) < 2:
            raise CaptionerError("calibration needs captions that are acceptable and captions that are not")
        names = list(features[0])
        values = np.array([[row[name] for name in names] for row in features])
        scaler = StandardScaler().fit(values)
        fitted = LogisticRegression().fit(scaler.transform(values), np.array(outcomes))
        weights = fitted.coef_[0] / scaler.scale_
        intercept = fitted.intercept_[0] - weights @ scaler.mean_
        return cls(dict(zip(names, map(float, weights), strict=True)), float(intercept))


class WordRecord(NamedTuple):
    """What became of a word in the captions that a calibration was fitted on."""

    captions: int
    """How many have the word."""
    acceptable: int
    """How many of these are acceptable."""
    uses: int
    """How often the word was written."""
    used: int
    """In how many of these cases a reference of the image has it, too."""


@dataclass(frozen=True)
class History:
    """The model's words on the images that a calibration was fitted on: how often it writes each, and how that ends.

    It knows what log-probabilities do not: generic captions are safe to write and seldom good, and of some things the
    model is sure and wrong.

    Attributes:
        words: by word, in lower case.
        acceptable, used: the shares of all captions and of all words.
    """

    words: Mapping[str, WordRecord]
    acceptable: float
    used: float

    def caption_features(self, words: Words, left_out: bool | None = None) -> dict[str, float]:
        """`familiarity`: the mean of log(number of captions that have the word); `record`: the sum over different words
        of the log-odds that a caption with it is acceptable. `left_out` is set for a caption that is counted itself:
        whether it is acceptable."""
        own = {plain(word) for word, _ in words}
        familiarity = record = 0.0
        for word in own:
            captions, acceptable, *_ = self.words.get(word, UNKNOWN)
            if left_out is not None:
                captions, acceptable = captions - 1, acceptable - left_out
            familiarity += math.log(captions + 0.5)
            record += _log_odds(acceptable, captions, self.acceptable, CAPTION_PRIOR)
        return {"familiarity": familiarity / max(len(own), 1), "record": record}

    def word_features(self, word: str, log_probs: Sequence[float], left_out: bool | None = None) -> dict[str, float]:
        """The log-probability of a word by those of its tokens, and the log-odds that people use it where the model
        does. `left_out` is set for a use that is counted itself: whether people have it."""
        *_, uses, used = self.words.get(plain(word), UNKNOWN)
        if left_out is not None:
            uses, used = uses - 1, used - left_out
        return {"log_prob": sum(log_probs), "record": _log_odds(used, uses, self.used, WORD_PRIOR)}


UNKNOWN = WordRecord(0, 0, 0, 0)


@dataclass(frozen=True)
class Calibration:
    """What turns a search's log-probabilities into probabilities of being right.

    Attributes:
        searched: for a caption with others from the same beam search.
        alone: for one without: greedy, or drawn.
        word: for a word.
        history: of the model's words.
        fitted_on: where it comes from: data, split, number of images, beams, human median.
    """

    searched: Logistic
    alone: Logistic
    word: Logistic
    history: History
    fitted_on: Mapping[str, Any] = field(default_factory=dict)

    def confidence(self, words: Words, best: Hypothesis, others: Sequence[Hypothesis]) -> float:
        """The probability that `best` is acceptable; `others` are the captions that the same beam search found next."""
        features = own_features(best) | self.history.caption_features(words)
        return self.searched(features | other_features(best, others)) if others else self.alone(features)

    def words(self, words: Words, best: Hypothesis) -> tuple[Word, ...]:
        """Each word of a caption with the probability that a reference of the image has it."""
        log_probs = best.log_probs
        return tuple(
            Word(word, self.word(self.history.word_features(word, [log_probs[place] for place in places])))
            for word, places in words
        )

    @classmethod
    def load(cls, folder: Path) -> "Calibration | None":
        """Read the calibration in a model's folder; None if there is none.

        Raises:
            CaptionerError: it cannot be read, or is not one.
        """
        path = folder / FILE
        if not path.exists():
            return None
        try:
            if path.stat().st_size > LARGEST_FILE:
                raise ValueError(f"more than {LARGEST_FILE} bytes")
            content = json.loads(path.read_text(encoding="utf-8"))
            known = {"searched": OWN + OTHERS, "alone": OWN, "word": WORD}
            parts = {name: _logistic(content[name], names) for name, names in known.items()}
            return cls(**parts, history=_history(content["history"]), fitted_on=dict(content["fitted_on"]))
        except OSError as error:
            raise CaptionerError(f"{path}: {error.strerror}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CaptionerError(f"{path}: not a calibration: {error}") from error


def _logistic(content: Mapping[str, Any], names: Sequence[str]) -> Logistic:
    weights = {name: float(content["weights"][name]) for name in names}
    logistic = Logistic(weights, float(content["intercept"]))
    if not all(map(math.isfinite, (*weights.values(), logistic.intercept))):
        raise ValueError("a weight is not a finite number")
    return logistic


def _history(content: Mapping[str, Any]) -> History:
    words = {str(word): WordRecord(*map(int, counts)) for word, counts in content["words"].items()}
    history = History(words, float(content["acceptable"]), float(content["used"]))
    if not (0 < history.acceptable < 1 and 0 < history.used < 1):
        raise ValueError("a share is not between 0 and 1")
    if not all(0 <= part <= whole for a, b, c, d in words.values() for part, whole in ((b, a), (d, c))):
        raise ValueError("counts of a word that cannot be")
    return history


def own_features(best: Hypothesis) -> dict[str, float]:
    """What a caption's own log-probabilities say."""
    return {
        "mean_log_prob": best.mean_log_prob,
        "lowest_log_prob": min(best.log_probs, default=0.0),
        "length": float(len(best.token_ids)),
    }


def other_features(best: Hypothesis, others: Sequence[Hypothesis]) -> dict[str, float]:
    """What the captions that the search found next say: by how much the second is less probable, and how much of the
    best caption the next two have in common with it. Further ones do not count, whatever the beam width."""
    next_two = others[:2]
    return {
        "margin": best.mean_log_prob - others[0].mean_log_prob,
        "agreement": sum(overlap(best.token_ids, other.token_ids) for other in next_two) / len(next_two),
    }


def overlap(one: Sequence[int], other: Sequence[int]) -> float:
    """The share of tokens and pairs of tokens that two captions have in common (Dice's coefficient)."""
    ours, theirs = ({*ids, *pairwise(ids)} for ids in (one, other))
    return 2 * len(ours & theirs) / max(len(ours) + len(theirs), 1)


def _log_odds(hits: int, times: int, share: float, prior: float) -> float:
    """Of a share that is drawn to that of all where there are few."""
    probability = (hits + prior * share) / (times + prior)
    return math.log(probability / (1 - probability))


def plain(word: str) -> str:
    return word.lower().strip(".,;:!?\"'()")
