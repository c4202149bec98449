"""n-grams of many captions at once, as integers: what BLEU and CIDEr count."""

from collections.abc import Hashable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
Caption = Sequence[Hashable]  # its tokens: strings, or ids

MAX_ORDER = 4  # BLEU and CIDEr both count 1- to 4-grams
_WORDS = (
    1 << 31
)  # more than there are words: an n-gram's key is (the number of all but its last word) * _WORDS + that word


class NgramCounts(NamedTuple):
    """n-grams of one order in C captions; a row per distinct n-gram of a caption, sorted by caption, then n-gram."""

    caption: IntArray  # [rows] 0 .. C-1
    ngram: IntArray  # [rows] its number
    times: IntArray  # [rows] how often the caption has it


class NgramIndex:
    """Numbers the n-grams of reference captions, so that those of other captions can be looked up.

    `reference_counts` and the result of `count` have one entry per order, 1 to 4. The references' n-grams have the
    numbers 0 .. sizes[order - 1] - 1; n-grams that no reference has get higher ones, valid in one result only.
    """

    def __init__(self, references: Sequence[Caption]) -> None:
        self._words: dict[Hashable, int] = {}
        self._keys: list[IntArray] = []  # of orders 2 to 4, sorted: an n-gram's number is the place of its key
        words = self._words
        numbers = (words.setdefault(token, len(words)) for token in chain.from_iterable(references))
        self.reference_counts = self._count(references, np.fromiter(numbers, np.int64))
        self.sizes = [len(words), *map(len, self._keys)]

    def count(self, captions: Sequence[Caption]) -> list[NgramCounts]:
        known, new = self._words, {}  # type: tuple[dict[Hashable, int], dict[Hashable, int]]
        numbers = (
            known[token] if token in known else new.setdefault(token, len(known) + len(new))
            for token in chain.from_iterable(captions)
        )
        return self._count(captions, np.fromiter(numbers, np.int64))

    def _count(self, captions: Sequence[Caption], words: IntArray) -> list[NgramCounts]:
        """Counts of captions whose words have these numbers; fills the index where it is still empty."""
        lengths = caption_lengths(captions)
        caption = np.repeat(np.arange(len(captions)), lengths)
        counts = [_count_pairs(caption, words)]
        ngram = words
        for order in range(2, MAX_ORDER + 1):
            # ngram[i] is the (order-1)-gram that starts at word i; drop those that the caption's end cuts off.
            inside = caption[: 1 - order] == caption[order - 1 :]
            key = ngram[: len(inside)] * _WORDS + words[order - 1 :]
            ngram = np.zeros(len(inside), np.int64)
            ngram[inside] = self._numbers(order, key[inside])
            counts.append(_count_pairs(caption[: len(inside)][inside], ngram[inside]))
        return counts

    def _numbers(self, order: int, keys: IntArray) -> IntArray:
        values, place = np.unique(keys, return_inverse=True)
        if len(self._keys) < order - 1:
            self._keys.append(values)
            return place
        known = self._keys[order - 2]
        number, is_known = find(known, values)
        is_new = ~is_known
        number[is_new] = len(known) + np.arange(is_new.sum())
        return number[place]


def caption_lengths(captions: Sequence[Sequence[Hashable]]) -> IntArray:
    return np.fromiter(map(len, captions), np.int64, len(captions))


def find(keys: IntArray, wanted: IntArray) -> tuple[IntArray, NDArray[np.bool_]]:
    """Where in the sorted `keys` each wanted one stands, and whether it does."""
    place = np.searchsorted(keys, wanted)
    return place, np.append(keys, -1)[place] == wanted


def distinct(values: IntArray) -> IntArray:
    """The different values, sorted; many times faster than np.unique, which hashes them."""
    ordered = np.sort(values)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]]


def _count_pairs(caption: IntArray, ngram: IntArray) -> NgramCounts:
    pairs, count = np.unique(caption * _WORDS + ngram, return_counts=True)
    return NgramCounts(pairs // _WORDS, pairs % _WORDS, count)
