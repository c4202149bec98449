import random

import pytest

from captioner.metrics.rouge import rouge_l


def by_table(hypothesis: list[int], references: list[list[int]]) -> float:
    """The definition, by the textbook table."""

    def common(a: list[int], b: list[int]) -> int:
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        return table[-1][-1]

    precision = max(common(hypothesis, r) / len(hypothesis) for r in references)
    recall = max(common(hypothesis, r) / len(r) for r in references)
    return 2.44 * precision * recall / (recall + 1.44 * precision) if precision and recall else 0.0


def test_equals_the_textbook_table() -> None:
    rng = random.Random(0)
    for _ in range(500):
        captions = [rng.choices(range(6), k=rng.randint(1, 90)) for _ in range(4)]
        assert rouge_l(captions[0], captions[1:]) == pytest.approx(by_table(captions[0], captions[1:]), abs=1e-12)


def test_an_empty_caption_counts_as_one_empty_word() -> None:
    assert rouge_l([], [["a", "dog"]]) == 0
    assert rouge_l(["a"], [[]]) == 0
    assert rouge_l([], [[]]) == 1  # as the official scorer has it


def test_long_captions_are_quick() -> None:
    words = [str(i % 97) for i in range(10_000)]
    assert rouge_l(words, [words[::-1], words]) == pytest.approx(1)
