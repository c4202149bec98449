"""An audit of gendered words: captions that contradict their references, and associations that captions exaggerate.

Sources: L. A. Hendricks et al., "Women also Snowboard: Overcoming Bias in Captioning Models", ECCV 2018
(https://arxiv.org/abs/1803.09797); J. Zhao et al., "Men Also Like Shopping: Reducing Gender Bias Amplification using
Corpus-level Constraints", EMNLP 2017 (https://arxiv.org/abs/1707.09457), section 3.2.

For English. Needs NumPy alone. Shapes: N images, W activities and places.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from captioner.metrics.gendered_words import FEMALE, MALE
from captioner.metrics.ptb import tokenize
from captioner.metrics.score import Interval, percentiles, resampling

GENDERS = {"male": MALE, "female": FEMALE}

AGREEING = 2
"""References that have to name a gender, and none the other, for the references of an image to agree on it."""

PLACES = frozenset(
    "beach field street park water snow pool mountain mountains road grass ocean lake river forest woods city "
    "playground kitchen room court stage yard sidewalk hill rock rocks cliff sand track rink restaurant office bed "
    "store house building garden farm bridge bathroom gym desert path trail stairs bench crowd boat bus car".split()
)
NOT_ACTIVITIES = frozenset("building ceiling clothing during evening king morning ring something string wing".split())

WORDS = 20
"""Activities and places in the audit: the commonest that meet the two bounds below."""
FEWEST_REFERENCES, FEWEST_CAPTIONS = 20, 10
"""Of one gender or the other, that hold a word: a share of fewer says nothing."""


class Contradictions(NamedTuple):
    """Over images whose references agree on a gender."""

    images: int
    gendered: int
    """Captions of these images that name a gender."""
    contradicting: int
    """Of these, the captions that name the other gender."""
    share: float
    """contradicting / gendered; NaN where no caption is gendered."""
    interval: Interval


class Association(NamedTuple):
    """How often an activity or a place comes with the gender that it comes with more often in the references."""

    word: str
    gender: str
    in_references: float
    in_captions: float
    amplification: float
    """in_captions - in_references: above 0, captions exaggerate."""
    interval: Interval


@dataclass(frozen=True)
class GenderAudit:
    """What captions make of gender, with 95 % bootstrap intervals over images."""

    contradictions: dict[str, Contradictions]
    associations: list[Association]
    mean_amplification: float
    """NaN without associations."""
    mean_interval: Interval | None


def audit_gender(captions: Mapping[Any, str], references: Mapping[Any, Sequence[str]]) -> GenderAudit | None:
    """Audit one caption an image against the references of the same images; None where these agree on a gender in no
    image."""
    images = list(references)
    ours = [frozenset(words) for words in tokenize([captions[image] for image in images])]
    tokens = iter(tokenize(list(chain.from_iterable(references.values()))))
    theirs = [[frozenset(next(tokens)) for _ in references[image]] for image in images]
    agreed = [_agreed(own) for own in theirs]
    if not any(agreed):
        return None
    weights = resampling(len(images), 1000, 0)
    contradictions = {gender: _contradictions(gender, agreed, ours, weights) for gender in GENDERS}
    associations, mean, interval = _associations(ours, theirs, weights)
    return GenderAudit(contradictions, associations, mean, interval)


def genders(words: frozenset[str]) -> set[str]:
    return {gender for gender, its_words in GENDERS.items() if not words.isdisjoint(its_words)}


def _agreed(references: Sequence[frozenset[str]]) -> str | None:
    times = Counter(chain.from_iterable(map(genders, references)))
    gender = next(iter(times), None)
    return gender if len(times) == 1 and gender and times[gender] >= AGREEING else None


def _contradictions(
    gender: str, agreed: Sequence[Hashable], captions: Sequence[frozenset[str]], weights: NDArray[np.float64]
) -> Contradictions:
    named = [genders(words) if own == gender else set() for own, words in zip(agreed, captions, strict=True)]
    gendered = np.array([bool(each) for each in named], np.float64)
    contradicting = np.array([bool(each - {gender}) for each in named], np.float64)
    with np.errstate(invalid="ignore"):
        share = contradicting.sum() / gendered.sum()
        resampled = (weights @ contradicting) / (weights @ gendered)
    interval = _interval(resampled)
    return Contradictions(agreed.count(gender), int(gendered.sum()), int(contradicting.sum()), float(share), interval)


def _associations(
    captions: Sequence[frozenset[str]], references: Sequence[Sequence[frozenset[str]]], weights: NDArray[np.float64]
) -> tuple[list[Association], float, Interval | None]:
    """Over captions and references that name one gender, as Zhao et al. count them."""
    names = list(GENDERS)
    words = sorted({word for own in references for each in own for word in each if _is_situation(word)})
    columns = {word: column for column, word in enumerate(words)}
    counts = np.zeros((2, len(names), len(references), len(words)))  # of references and of captions
    for image, own in enumerate(references):
        for kind, texts in enumerate((own, [captions[image]])):
            for text in texts:
                if len(gender := genders(text)) == 1:
                    place = counts[kind, names.index(next(iter(gender))), image]
                    for word in text & columns.keys():
                        place[columns[word]] += 1
    total = counts.sum(axis=(1, 2))  # [2, W]
    is_common = (total[0] >= FEWEST_REFERENCES) & (total[1] >= FEWEST_CAPTIONS)
    chosen = [column for column in np.argsort(-total[0], kind="stable").tolist() if is_common[column]][:WORDS]
    if not chosen:
        return [], float("nan"), None
    associations, gains = [], []
    for column in chosen:
        its = counts[..., column]  # [2, 2, N]
        usual = int(its[0].sum(1).argmax())
        in_references, in_captions = its[:, usual].sum(1) / its.sum((1, 2))
        with np.errstate(invalid="ignore"):
            resampled = (its[:, usual] @ weights.T) / (its.sum(1) @ weights.T)
        gains.append(resampled[1] - resampled[0])
        gain = float(in_captions - in_references)
        shares = float(in_references), float(in_captions)
        associations.append(Association(words[column], names[usual], *shares, gain, _interval(gains[-1])))
    mean = float(np.mean([each.amplification for each in associations]))
    return associations, mean, _interval(np.nanmean(gains, axis=0))


def _is_situation(word: str) -> bool:
    return word in PLACES or (word.endswith("ing") and len(word) > 5 and word not in NOT_ACTIVITIES)


def _interval(values: NDArray[np.float64]) -> Interval:
    finite = values[np.isfinite(values)]
    return percentiles(finite) if finite.size else Interval(float("nan"), float("nan"))
