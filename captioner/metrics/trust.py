"""How far confidences can be trusted: calibration error, ranking, and what abstaining gains. Needs NumPy alone.

Shapes: N captions, R references, B bins.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from captioner.errors import CaptionerError
from captioner.metrics.cider import CiderDReward
from captioner.metrics.score import Interval, percentiles, resampling, tokenizer

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

BINS = 15


def human_median(references: Sequence[Sequence[str]], tokenization: str = "ptb") -> float:
    """The median, over all references of images that have two or more, of a reference's CIDEr-D against the other
    references of its image.

    Raises:
        CaptionerError: no image has two references.
    """
    tokens = iter(tokenizer(tokenization)(list(chain.from_iterable(references))))
    cider = CiderDReward({image: [next(tokens) for _ in own] for image, own in enumerate(references)})
    scores = cider.left_out()
    if not len(scores):
        raise CaptionerError("calibration needs images with two or more references; none has")
    return float(np.median(scores))


@dataclass(frozen=True)
class Trust:
    """What the confidences of captions are worth.

    Attributes:
        confidence: [N].
        cider: CIDEr-D of each caption against all references of its image, [N].
        threshold: `human_median` of the same references.
    """

    confidence: FloatArray
    cider: FloatArray
    threshold: float

    @property
    def acceptable(self) -> BoolArray:
        """Which captions are acceptable, [N]: a calibrated confidence is the probability of that.

        A caption is acceptable if its CIDEr-D against the references of its image is at least the median that a
        left-out human reference of the same data reaches: it agrees with people as well as half of all people's
        captions agree with other people's.
        """
        return self.cider >= self.threshold

    @property
    def plug_in_ece(self) -> float:
        """Expected calibration error (Naeini et al. 2015, https://doi.org/10.1609/aaai.v29i1.9602) over 15 bins of
        equally many captions: the mean of |share of acceptable captions - mean confidence|, weighted by size.

        It cannot reach 0: of a perfectly calibrated model it is still about `calibration_noise`.
        """
        return plug_in_ece(self.confidence, self.acceptable)

    @property
    def calibration_noise(self) -> float:
        """What `plug_in_ece` would be on average if the confidences were the true probabilities."""
        generator = np.random.default_rng(0)
        drawn = generator.random((200, len(self.confidence))) < self.confidence
        return float(np.mean([plug_in_ece(self.confidence, row) for row in drawn]))

    @property
    def ece(self) -> float:
        """`plug_in_ece` less the bias of its finite bins, as estimated from their noise (Kumar et al. 2019,
        https://arxiv.org/abs/1909.10155, section 5): bins of 33 captions are off by 0.06 if nothing is wrong."""
        bins = reliability(self.confidence, self.acceptable)
        gaps = np.abs(bins.share - bins.confidence)
        deviation = np.sqrt(bins.share * (1 - bins.share) / bins.count)
        noise = np.random.default_rng(0).standard_normal((1000, len(gaps))) * deviation
        bias = np.abs((bins.share - bins.confidence) + noise).mean(0) - gaps
        return float(max(0.0, np.average(gaps - bias, weights=bins.count)))

    @property
    def auroc(self) -> float:
        """The probability that an acceptable caption has a higher confidence than one that is not; NaN where all are
        alike."""
        return auroc(self.confidence, self.acceptable)

    @property
    def risk_coverage(self) -> tuple[FloatArray, FloatArray]:
        """Coverage k / N of the k most confident captions, and the share of these that are not acceptable, both [N]."""
        return risk_coverage(self.confidence, self.acceptable)

    @property
    def aurc(self) -> float:
        """The area under the risk-coverage curve (Geifman & El-Yaniv 2017, https://arxiv.org/abs/1705.08500): the mean
        risk over all coverages. Confidences that say nothing give the share of captions that are not acceptable."""
        return float(self.risk_coverage[1].mean())

    @property
    def halves(self) -> tuple[float, float]:
        """Mean CIDEr-D of the most confident half of the captions, and of the least confident half."""
        order = np.argsort(-self.confidence, kind="stable")
        half = len(order) // 2
        return float(self.cider[order[:half]].mean()), float(self.cider[order[len(order) - half :]].mean())

    def intervals(self, resamples: int = 1000, seed: int = 0) -> dict[str, Interval]:
        """95 % bootstrap intervals over captions, by the names of the properties.

        A resample has the noise of the sample and its own, so that the plug-in error of resamples is too high: its
        percentiles are moved so that their mean is `ece`.
        """
        functions: dict[str, Callable[[Trust], float]] = {
            "ece": lambda trust: trust.plug_in_ece,
            "auroc": lambda trust: trust.auroc,
            "aurc": lambda trust: trust.aurc,
        }
        drawn = [self._resampled(row) for row in resampling(len(self.confidence), resamples, seed)]
        values = {name: np.array([function(each) for each in drawn]) for name, function in functions.items()}
        values["ece"] = np.maximum(values["ece"] - values["ece"].mean() + self.ece, 0)
        return {name: percentiles(each[np.isfinite(each)]) for name, each in values.items() if np.isfinite(each).any()}

    def _resampled(self, times: FloatArray) -> "Trust":
        index = np.repeat(np.arange(len(times)), times.astype(int))
        return Trust(self.confidence[index], self.cider[index], self.threshold)


@dataclass(frozen=True)
class Reliability:
    """Bins of captions by rising confidence, [B]: mean confidence, share of acceptable ones, and how many there are."""

    confidence: FloatArray
    share: FloatArray
    count: FloatArray


def reliability(confidence: FloatArray, is_acceptable: BoolArray, bins: int = BINS) -> Reliability:
    """Bins of equally many captions, or one more; fewer bins where there are fewer captions."""
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return Reliability(
        np.array([confidence[part].mean() for part in parts]),
        np.array([is_acceptable[part].mean() for part in parts]),
        np.array([len(part) for part in parts], np.float64),
    )


def plug_in_ece(confidence: FloatArray, is_acceptable: BoolArray) -> float:
    bins = reliability(confidence, is_acceptable)
    return float(np.average(np.abs(bins.share - bins.confidence), weights=bins.count))


def auroc(confidence: FloatArray, is_acceptable: BoolArray) -> float:
    """By ranks (Mann & Whitney 1947); ties count half."""
    positive, negative = int(is_acceptable.sum()), int((~is_acceptable).sum())
    if not positive or not negative:
        return float("nan")
    _, place, count = np.unique(confidence, return_inverse=True, return_counts=True)
    ranks = (count.cumsum() - (count - 1) / 2)[place]
    return float((ranks[is_acceptable].sum() - positive * (positive + 1) / 2) / (positive * negative))


def risk_coverage(confidence: FloatArray, is_acceptable: BoolArray) -> tuple[FloatArray, FloatArray]:
    order = np.argsort(-confidence, kind="stable")
    kept = np.arange(1, len(order) + 1)
    return kept / len(order), (~is_acceptable[order]).cumsum() / kept
