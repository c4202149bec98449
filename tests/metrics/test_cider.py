import math
import random
from collections import Counter

import numpy as np
import pytest

from captioner.errors import CaptionerError
from captioner.metrics.cider import CiderDReward

Caption = list[str]


def by_definition(hypothesis: Caption, image: int, references: dict[int, list[Caption]]) -> float:
    """CIDEr-D in plain dictionaries."""

    def ngrams(caption: Caption, n: int) -> Counter[tuple[str, ...]]:
        return Counter(tuple(caption[i : i + n]) for i in range(len(caption) - n + 1))

    total = 0.0
    for n in range(1, 5):
        frequency = Counter(g for refs in references.values() for g in {g for r in refs for g in ngrams(r, n)})

        def weighted(caption: Caption, n: int = n, frequency: Counter = frequency) -> dict[tuple[str, ...], float]:
            counts = ngrams(caption, n)
            return {g: c * (math.log(len(references)) - math.log(max(1, frequency[g]))) for g, c in counts.items()}

        ours = weighted(hypothesis)
        for reference in references[image]:
            theirs = weighted(reference)
            dot = sum(min(weight, theirs.get(g, 0)) * theirs.get(g, 0) for g, weight in ours.items())
            norms = math.sqrt(sum(w * w for w in ours.values())) * math.sqrt(sum(w * w for w in theirs.values()))
            difference = max(len(hypothesis) - 1, 0) - max(len(reference) - 1, 0)
            total += (dot / norms if norms else 0) * math.exp(-(difference**2) / 72)
    return 10 * total / 4 / len(references[image])


def random_captions(rng: random.Random, count: int, words: str) -> list[Caption]:
    return [rng.choices(words, k=rng.randint(0, 12)) for _ in range(count)]


def test_equals_the_definition_for_tokens_and_for_ids() -> None:
    rng = random.Random(0)
    references = {image: random_captions(rng, rng.randint(1, 6), "abcdefg") for image in range(20)}
    hypotheses = random_captions(rng, 60, "abcdefgXY")  # X and Y are in no reference
    images = [rng.randrange(20) for _ in hypotheses]
    expected = [by_definition(h, image, references) for h, image in zip(hypotheses, images, strict=True)]
    assert CiderDReward(references)(images, hypotheses) == pytest.approx(expected, abs=1e-12)
    as_ids = {image: [[ord(token) for token in r] for r in refs] for image, refs in references.items()}
    reward = CiderDReward(as_ids)(images, [[ord(token) for token in h] for h in hypotheses])
    assert reward == pytest.approx(expected, abs=1e-12)


def test_a_caption_s_reward_does_not_depend_on_its_batch() -> None:
    rng = random.Random(1)
    references = {image: random_captions(rng, 5, "abcdefg") for image in range(9)}
    reward = CiderDReward(references)
    hypotheses = random_captions(rng, 9, "abcdefgXY")
    together = reward(range(9), hypotheses)
    assert np.array_equal(together, np.concatenate([reward([i], [h]) for i, h in enumerate(hypotheses)]))


def test_edges() -> None:
    reward = CiderDReward({"a": [["one", "dog"]], "b": [["two", "cats"]], "none": []})
    assert list(reward(["a", "none"], [[], ["one", "dog"]])) == [0, 0]
    assert reward([], []).shape == (0,)
    with pytest.raises(CaptionerError, match="'zebra' has no references"):
        reward(["zebra"], [["one"]])
    with pytest.raises(CaptionerError, match="1 captions for 2 images"):
        reward(["a", "b"], [["one"]])
