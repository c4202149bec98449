import math
from collections import Counter

import numpy as np
import pytest

from captioner.errors import CaptionerError
from captioner.metrics.cider import CiderDReward
from captioner.metrics.trust import (
    Trust,
    auroc,
    human_median,
    plug_in_ece,
    reliability,
    risk_coverage,
)

REFERENCES = [
    ["a dog runs on grass", "the dog runs on the grass", "a brown dog is running"],
    ["two people sit on a bench", "a couple sits on a bench", "people on a bench"],
    ["a boat on a lake"],
]


def trust(confidence, is_acceptable):
    return Trust(np.array(confidence, np.float64), np.array(is_acceptable, np.float64), threshold=1.0)


def similarity(one, other, images):
    """CIDEr-D of one caption against another, document frequencies from all references, written out."""

    def grams(words, size):
        return Counter(zip(*(words[i:] for i in range(size)), strict=False))

    total = 0.0
    for size in range(1, 5):
        frequency = Counter(gram for own in images for gram in {gram for words in own for gram in grams(words, size)})
        weights = [
            {
                gram: times * math.log(len(images) / max(frequency[gram], 1))
                for gram, times in grams(words, size).items()
            }
            for words in (one, other)
        ]
        dot = sum(min(value, weights[1].get(gram, 0)) * weights[1].get(gram, 0) for gram, value in weights[0].items())
        norms = [math.sqrt(sum(value**2 for value in each.values())) for each in weights]
        total += dot / math.prod(norms) if all(norms) else 0
    return 10 / 4 * total * math.exp(-((len(one) - len(other)) ** 2) / (2 * 6**2))


def test_the_human_median_is_over_references_left_out_in_turn_and_passes_over_single_ones() -> None:
    images = [[text.split() for text in own] for own in REFERENCES]
    expected = [
        np.mean([similarity(one, other, images) for other in own if other is not one])
        for own in images[:2]
        for one in own
    ]
    assert CiderDReward(dict(enumerate(images))).left_out() == pytest.approx(expected)
    assert human_median(REFERENCES) == pytest.approx(np.median(expected))


def test_a_caption_is_acceptable_from_the_human_median_on() -> None:
    assert Trust(np.zeros(3), np.array([0.5, 0.6, 0.7]), 0.6).acceptable.tolist() == [False, True, True]


def test_without_a_second_reference_nothing_says_what_people_reach() -> None:
    with pytest.raises(CaptionerError, match="two or more references"):
        human_median([["a dog"], ["a cat"]])


def test_bins_hold_equally_many_captions_by_rising_confidence() -> None:
    confidence = np.array([0.9, 0.1, 0.5, 0.7, 0.3])
    bins = reliability(confidence, confidence > 0.4, bins=2)
    assert bins.count.tolist() == [3, 2]
    assert bins.confidence == pytest.approx([0.3, 0.8]) and bins.share == pytest.approx([1 / 3, 1])


def test_the_plug_in_error_is_the_mean_gap_between_confidence_and_share() -> None:
    confidence, is_acceptable = np.repeat([0.2, 0.8], 150), np.tile([True, False], 150)
    assert plug_in_ece(confidence, is_acceptable) == pytest.approx(0.3, abs=0.03)


def test_the_corrected_error_of_true_probabilities_is_near_0_where_the_plug_in_error_is_not() -> None:
    generator = np.random.default_rng(0)
    errors = []
    for _ in range(20):
        confidence = generator.random(500)
        errors.append(trust(confidence, generator.random(500) < confidence))
    assert np.mean([each.plug_in_ece for each in errors]) > 0.05
    assert np.mean([each.ece for each in errors]) < 0.035
    assert errors[0].calibration_noise == pytest.approx(np.mean([each.plug_in_ece for each in errors]), rel=0.2)
    low, high = errors[0].intervals(resamples=100)["ece"]
    assert low <= errors[0].ece <= high


def test_overconfidence_is_found() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.random(2000)
    assert trust(confidence, generator.random(2000) < confidence**2).ece == pytest.approx(1 / 6, abs=0.03)


def test_auroc_is_the_share_of_pairs_in_order_and_ties_count_half() -> None:
    confidence, is_acceptable = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    assert auroc(confidence, is_acceptable) == pytest.approx(3.5 / 4)
    assert auroc(-confidence, is_acceptable) == pytest.approx(0.5 / 4)
    assert np.isnan(auroc(confidence, np.ones(4, bool)))
    assert "auroc" not in trust(confidence, [True] * 4).intervals(resamples=10)


def test_risk_is_that_of_the_most_confident_captions() -> None:
    coverage, risk = risk_coverage(np.array([0.2, 0.9, 0.5, 0.7]), np.array([False, True, False, True]))
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert risk == pytest.approx([0, 0, 1 / 3, 1 / 2])
    assert trust([0.2, 0.9, 0.5, 0.7], [False, True, False, True]).aurc == pytest.approx(np.mean([0, 0, 1 / 3, 1 / 2]))


def test_halves_are_by_confidence() -> None:
    cider = np.array([10.0, 40, 20, 30, 99])
    assert Trust(np.array([0.1, 0.9, 0.2, 0.8, 0.5]), cider, 0.0).halves == (35.0, 15.0)
