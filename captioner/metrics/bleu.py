"""BLEU-1 to BLEU-4 as the official COCO scorer computes them.

Source: K. Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", ACL 2002; the effective
reference length is that of the reference closest in length, the shorter one of two equally close.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from captioner.metrics.ngrams import MAX_ORDER, IntArray, NgramCounts, find

# The official scorer's guards against empty captions: a caption without a match scores almost, not quite, 0.
TINY, SMALL = 1e-15, 1e-9


def bleu_statistics(
    counts: Sequence[NgramCounts],
    lengths: IntArray,
    reference_counts: Sequence[NgramCounts],
    reference_lengths: IntArray,
    image_of_reference: IntArray,
) -> NDArray[np.float64]:
    """What BLEU sums over images: hypothesis length, closest reference length, n-grams of orders 1 to 4, matched ones.

    Takes the n-grams and lengths of one hypothesis per image, [images], and of all references, [references], with the
    image that each belongs to. Returns [images, 10].
    """
    closest = _closest_lengths(lengths, reference_lengths, image_of_reference)
    guessed = np.maximum(lengths[:, None] - np.arange(MAX_ORDER), 0)
    matched = [
        np.bincount(ours.caption, _clipped(ours, theirs, image_of_reference), minlength=len(lengths))
        for ours, theirs in zip(counts, reference_counts, strict=True)
    ]
    return np.column_stack([lengths, closest, guessed, *matched]).astype(np.float64)


def bleu(statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """BLEU-1 to BLEU-4 on the last axis, [..., 4], from (summed) statistics [..., 10]."""
    length, reference_length = statistics[..., :1], statistics[..., 1:2]
    guessed, matched = statistics[..., 2 : 2 + MAX_ORDER], statistics[..., 2 + MAX_ORDER :]
    precisions = np.cumprod((matched + TINY) / (guessed + SMALL), axis=-1)
    ratio = (length + TINY) / (reference_length + SMALL)
    with np.errstate(over="ignore"):
        brevity_penalty = np.exp(np.minimum(1 - 1 / ratio, 0))
    return precisions ** (1 / np.arange(1, MAX_ORDER + 1)) * brevity_penalty


def _closest_lengths(lengths: IntArray, reference_lengths: IntArray, image_of_reference: IntArray) -> IntArray:
    """[images] The length of each image's reference closest in length; the shorter of two equally close."""
    longest = max(int(reference_lengths.max(initial=0)), int(lengths.max(initial=0))) + 1
    distance = np.abs(reference_lengths - lengths[image_of_reference])
    best = np.full(len(lengths), longest * longest)
    np.minimum.at(best, image_of_reference, distance * longest + reference_lengths)
    return best % longest


def _clipped(ours: NgramCounts, theirs: NgramCounts, image_of_reference: IntArray) -> IntArray:
    """[rows of ours] How often each n-gram counts as matched: no more often than one reference of the image has it."""
    size = max(int(ours.ngram.max(initial=0)), int(theirs.ngram.max(initial=0))) + 1
    wanted = image_of_reference[theirs.caption] * size + theirs.ngram
    place, found = find(ours.caption * size + ours.ngram, wanted)
    allowed = np.zeros(len(ours.times), np.int64)
    np.maximum.at(allowed, place[found], theirs.times[found])
    return np.minimum(ours.times, allowed)
