"""Scores of a set of captions: the official COCO metrics, how sure they are, and how varied the captions are."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from captioner.errors import CaptionerError
from captioner.metrics.bleu import bleu, bleu_statistics
from captioner.metrics.cider import CiderDReward
from captioner.metrics.ngrams import caption_lengths
from captioner.metrics.ptb import tokenize as tokenize_ptb
from captioner.metrics.rouge import rouge_l
from captioner.metrics.spice import spice_scores

FloatArray = NDArray[np.float64]

BLEU = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
FAST_METRICS = (*BLEU, "ROUGE_L", "CIDEr")
"""What needs neither optional data nor Java; thousands of captions a second."""
METRICS = (*BLEU, "METEOR", "ROUGE_L", "CIDEr", "CIDEr_D", "SPICE")
"""All metrics. What the official scorer calls CIDEr is CIDEr-D, so those two are equal."""


def default_metrics(tokenization: str) -> list[str]:
    """All metrics that go with the tokenization and are installed, except SPICE, which is slow."""
    names = [*FAST_METRICS]
    if tokenization == "ptb" and find_spec("pycocoevalcap") is not None:
        names.append("METEOR")
    return names


class Measure(NamedTuple):
    """A metric as statistics of images, the sums of which give the score of a corpus, or of a resampled one."""

    names: tuple[str, ...]
    statistics: FloatArray  # [images, k]
    combine: Callable[[FloatArray], FloatArray]  # sums [..., k] -> scores [..., names]
    per_image: FloatArray  # [images, names]


class Interval(NamedTuple):
    low: float
    high: float


class Comparison(NamedTuple):
    """Two sets of captions for the same images, by paired bootstrap."""

    difference: float  # first - second
    interval: Interval  # of the difference, 95 %
    p_value: float  # two-sided: how likely a difference of either sign is at least so far from 0 by chance


class Diversity(NamedTuple):
    """How varied captions are; a collapsed model shows here first. Shares are of all captions."""

    captions: int
    vocabulary_size: int
    mean_length: float  # tokens
    distinct_share: float  # different captions / captions
    repeated_share: float  # captions that another image has, too
    novel_share: float | None  # captions that the training set does not have; None where it is not known


@dataclass(frozen=True)
class Scores:
    """Scores of one caption per image."""

    tokenization: str
    image_ids: list[Hashable]
    measures: list[Measure]
    diversity: Diversity

    @property
    def corpus(self) -> dict[str, float]:
        return {
            name: float(value)
            for measure in self.measures
            for name, value in zip(measure.names, measure.combine(measure.statistics.sum(axis=0)), strict=True)
        }

    @property
    def per_image(self) -> dict[str, FloatArray]:
        """Scores of each image, in the order of `image_ids`."""
        return {name: measure.per_image[:, i] for measure in self.measures for i, name in enumerate(measure.names)}

    def intervals(self, resamples: int = 1000, seed: int = 0) -> dict[str, Interval]:
        """95 % bootstrap intervals of the corpus scores: percentiles over resampled images."""
        weights = resampling(len(self.image_ids), resamples, seed)
        return {
            name: percentiles(values)
            for measure in self.measures
            for name, values in zip(measure.names, measure.combine(weights @ measure.statistics).T, strict=True)
        }

    def compared_with(self, other: "Scores", resamples: int = 1000, seed: int = 0) -> dict[str, Comparison]:
        """Paired bootstrap test: both sets of captions are scored on the same resampled images.

        Source: P. Koehn, "Statistical Significance Tests for Machine Translation Evaluation", EMNLP 2004. Raises
        CaptionerError where the images, the metrics or the tokenization differ.
        """
        mine, theirs = self._comparable(), other._comparable()
        if mine != theirs:
            raise CaptionerError("only scores of the same images, metrics and tokenization can be compared")
        weights = resampling(len(self.image_ids), resamples, seed)
        compared = {}
        for ours, others in zip(self.measures, other.measures, strict=True):
            resampled = ours.combine(weights @ ours.statistics) - others.combine(weights @ others.statistics)
            whole = ours.combine(ours.statistics.sum(axis=0)) - others.combine(others.statistics.sum(axis=0))
            for name, difference, values in zip(ours.names, whole, resampled.T, strict=True):
                less_likely_sign = min(int((values <= 0).sum()), int((values >= 0).sum()))
                p_value = min(1.0, 2 * (less_likely_sign + 1) / (resamples + 1))
                compared[name] = Comparison(float(difference), percentiles(values), p_value)
        return compared

    def _comparable(self) -> tuple[object, ...]:
        return self.tokenization, self.image_ids, [measure.names for measure in self.measures]


def score_captions(
    hypotheses: Mapping[Any, str],
    references: Mapping[Any, Sequence[str]],
    *,
    metrics: str | Iterable[str] = FAST_METRICS,
    tokenization: str = "ptb",
    training_captions: str | Iterable[str] | None = None,
) -> Scores:
    """Score one caption per image against the references of the same images.

    `tokenization` "ptb" is the official one; "char" makes each character a token, for languages written without spaces.
    An empty caption scores 0. `training_captions` are those that a caption must not be among to count as novel.

    Raises CaptionerError where an image lacks a caption or references, where a caption is no text, for an unknown
    metric, and where METEOR or SPICE is asked for and what it needs is not installed.
    """
    wanted = list(dict.fromkeys(_strings(metrics)))
    _check(hypotheses, references, wanted, tokenization)
    tokenize = tokenizer(tokenization)
    images = list(references)
    ours = tokenize([hypotheses[image] for image in images])
    theirs = _split(tokenize(list(chain.from_iterable(references.values()))), [len(r) for r in references.values()])
    training = (
        None if training_captions is None else {tuple(caption) for caption in tokenize(_strings(training_captions))}
    )
    measures = []
    if set(wanted) & {*BLEU, "CIDEr", "CIDEr_D"}:
        measures += _ngram_measures(ours, theirs, wanted)
    if "ROUGE_L" in wanted:
        rouge = np.array([rouge_l(caption, refs) for caption, refs in zip(ours, theirs, strict=True)])
        measures.append(_mean("ROUGE_L", rouge))
    if "METEOR" in wanted:
        measures.append(_meteor(ours, theirs))
    if "SPICE" in wanted:
        measures.append(_mean("SPICE", spice_scores(_joined(ours), [_joined(refs) for refs in theirs])))
    measures.sort(key=lambda measure: METRICS.index(measure.names[0]))
    return Scores(tokenization, images, measures, _diversity(ours, training))


def _strings(given: str | Iterable[str]) -> list[str]:
    """One string is one, not its letters."""
    return [given] if isinstance(given, str) else list(given)


# ---- tokens --------------------------------------------------------------------------------------------------------


def tokenize_characters(captions: Iterable[str]) -> list[list[str]]:
    """Each character is a token: lower-cased, blanks and punctuation dropped."""
    return [
        [c for c in caption.lower() if not c.isspace() and not unicodedata.category(c).startswith("P")]
        for caption in captions
    ]


_TOKENIZERS = {"ptb": tokenize_ptb, "char": tokenize_characters}


def tokenizer(tokenization: str) -> Callable[[Iterable[str]], list[list[str]]]:
    """Captions -> the tokens of each.

    Raises:
        CaptionerError: there is no such tokenization.
    """
    if tokenization not in _TOKENIZERS:
        raise CaptionerError(f"tokenization {tokenization!r} is none of {', '.join(_TOKENIZERS)}")
    return _TOKENIZERS[tokenization]


def _joined(captions: Sequence[Sequence[str]]) -> list[str]:
    return [" ".join(caption) for caption in captions]


def _split(captions: Sequence[list[str]], counts: Sequence[int]) -> list[list[list[str]]]:
    remaining = iter(captions)
    return [list(islice(remaining, count)) for count in counts]


# ---- metrics -------------------------------------------------------------------------------------------------------


def _ngram_measures(ours: list[list[str]], theirs: list[list[list[str]]], wanted: Sequence[str]) -> list[Measure]:
    # The official BLEU and CIDEr split captions at any white space, so "5 1/2", one token of ROUGE-L, is two here.
    ours = [_words(caption) for caption in ours]
    theirs = [[_words(reference) for reference in references] for references in theirs]
    cider = CiderDReward(dict(enumerate(theirs)))
    counts, lengths = cider.index.count(ours), caption_lengths(ours)
    measures = []
    if names := [name for name in BLEU if name in wanted]:
        statistics = bleu_statistics(
            counts, lengths, cider.index.reference_counts, cider.reference_lengths, cider.image_of_reference
        )
        columns = [BLEU.index(name) for name in names]
        measures.append(
            Measure(tuple(names), statistics, lambda s: bleu(s)[..., columns], bleu(statistics)[:, columns])
        )
    if names := [name for name in ("CIDEr", "CIDEr_D") if name in wanted]:
        scores = cider.score(np.arange(len(ours)), counts, lengths)
        measures += [_mean(name, scores) for name in names]
    return measures


def _words(tokens: list[str]) -> list[str]:
    text = " ".join(tokens)
    return tokens if text.isascii() else text.split()


def _mean(name: str, scores: FloatArray) -> Measure:
    statistics = np.column_stack([scores, np.ones_like(scores)])
    return Measure((name,), statistics, lambda sums: sums[..., :1] / sums[..., 1:], scores[:, None])


def _meteor(ours: list[list[str]], theirs: list[list[list[str]]]) -> Measure:
    from captioner.metrics.meteor import Meteor, Side, Statistics

    def counts(side: Side) -> list[int]:
        return [side.length, side.function_words, *side.content_matches, *side.function_matches]

    def side(sums: list[int]) -> Side:
        length, function_words, *matches = sums
        half = len(matches) // 2
        return Side(length, function_words, tuple(matches[:half]), tuple(matches[half:]))

    def combine(sums: FloatArray) -> FloatArray:
        rows = sums.reshape(-1, sums.shape[-1]).astype(np.int64).tolist()
        scores = [Statistics(side(row[:half]), side(row[half:-1]), row[-1]).score() for row in rows]
        return np.array(scores).reshape(*sums.shape[:-1], 1)

    best = Meteor.load().statistics(_joined(ours), [_joined(references) for references in theirs])
    statistics = np.array(
        [[*counts(s.hypothesis), *counts(s.reference), 0 if s.is_unbroken else s.chunks] for s in best], np.float64
    )
    half = statistics.shape[1] // 2
    return Measure(("METEOR",), statistics, combine, np.array([[s.score()] for s in best]))


# ---- how sure ------------------------------------------------------------------------------------------------------


def resampling(images: int, resamples: int, seed: int) -> FloatArray:
    """How often each image is drawn when as many as there are are drawn with replacement, [resamples, images]."""
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, images, (resamples, images))
    drawn += np.arange(resamples)[:, None] * images
    return np.bincount(drawn.ravel(), minlength=resamples * images).reshape(resamples, images).astype(np.float64)


def percentiles(values: FloatArray) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))


# ---- how varied ----------------------------------------------------------------------------------------------------


def _diversity(captions: list[list[str]], training: set[tuple[str, ...]] | None) -> Diversity:
    times = Counter(map(tuple, captions))
    total = len(captions)
    return Diversity(
        captions=total,
        vocabulary_size=len(set(chain.from_iterable(captions))),
        mean_length=sum(map(len, captions)) / total,
        distinct_share=len(times) / total,
        repeated_share=sum(count for count in times.values() if count > 1) / total,
        novel_share=None if training is None else sum(tuple(c) not in training for c in captions) / total,
    )


# ---- what is refused -----------------------------------------------------------------------------------------------


def _check(
    hypotheses: Mapping[Any, str],
    references: Mapping[Any, Sequence[str]],
    metrics: Sequence[str],
    tokenization: str,
) -> None:
    tokenizer(tokenization)
    if unknown := [metric for metric in metrics if metric not in METRICS]:
        raise CaptionerError(f"unknown metric {unknown[0]!r}; there are {', '.join(METRICS)}")
    if tokenization == "char" and (english := [metric for metric in metrics if metric in ("METEOR", "SPICE")]):
        raise CaptionerError(f"{english[0]} is for English and does not go with tokenization 'char'")
    refuse_images("without a caption", (image for image in references if image not in hypotheses))
    refuse_images("with a caption, but not among the references", (i for i in hypotheses if i not in references))
    refuse_images("whose caption is no text", (i for i, text in hypotheses.items() if not isinstance(text, str)))
    refuse_images("with one string instead of a list of references", _of_type(references, str))
    refuse_images("without references", (image for image, captions in references.items() if len(captions) == 0))
    refuse_images(
        "with a reference that is no text",
        (image for image, captions in references.items() if not all(isinstance(text, str) for text in captions)),
    )
    if not references:
        raise CaptionerError("there are no captions to score")


def _of_type(values: Mapping[Any, object], kind: type) -> Iterable[Hashable]:
    return (key for key, value in values.items() if isinstance(value, kind))


def refuse_images(problem: str, images: Iterable[Hashable]) -> None:
    """Raise a CaptionerError that lists the first of these images, if there are any."""
    listed = list(images)
    if listed:
        first = ", ".join(str(image) for image in listed[:5])
        rest = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
        raise CaptionerError(f"{len(listed)} image{'s'[: len(listed) != 1]} {problem}: {first}{rest}")
