"""CIDEr-D, which is what the official COCO scorer reports as CIDEr, for evaluation and as a training reward.

Source: R. Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015, section 6 (CIDEr-D):
clipped TF-IDF cosine similarity of 1- to 4-grams with a Gaussian penalty on the difference in length, times 10.
"""

from collections.abc import Hashable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from captioner.errors import CaptionerError
from captioner.metrics.ngrams import (
    MAX_ORDER,
    Caption,
    IntArray,
    NgramCounts,
    NgramIndex,
    caption_lengths,
    distinct,
    find,
)

SIGMA = 6.0  # of the length penalty, in words
SCALE = 10.0

FloatArray = NDArray[np.float64]


class CiderDReward:
    """Scores captions of any of the given images; what depends on the references alone is computed once.

    Captions are sequences of tokens or of integer ids, hypotheses and references alike. Document frequencies are
    counted in the references: of the evaluated images for the official score, of the training set for self-critical
    training (S. Rennie et al., "Self-critical Sequence Training for Image Captioning", CVPR 2017).
    """

    def __init__(self, references: Mapping[Any, Sequence[Caption]]) -> None:
        captions = list(chain.from_iterable(references.values()))
        self.index = NgramIndex(captions)
        self._rows = {image: row for row, image in enumerate(references)}
        self._reference_count = caption_lengths(list(references.values()))
        self._first_reference = self._reference_count.cumsum() - self._reference_count
        self.reference_lengths = caption_lengths(captions)
        self._log_images = np.log(max(len(references), 1))
        self.image_of_reference = np.repeat(np.arange(len(references)), self._reference_count)
        self._orders = [
            self._weigh(counts, size)
            for counts, size in zip(self.index.reference_counts, self.index.sizes, strict=True)
        ]

    def __call__(self, images: Sequence[Hashable], hypotheses: Sequence[Caption]) -> FloatArray:
        """CIDEr-D of each hypothesis against the references of the image beside it, [hypotheses].

        0 for an image without references. Raises CaptionerError for an image that is not among the references.
        """
        if len(images) != len(hypotheses):
            raise CaptionerError(f"{len(hypotheses)} captions for {len(images)} images")
        try:
            rows = np.fromiter((self._rows[image] for image in images), np.int64, len(images))
        except KeyError as error:
            raise CaptionerError(f"image {error.args[0]!r} has no references") from error
        return self.score(rows, self.index.count(hypotheses), caption_lengths(hypotheses))

    def score(self, rows: IntArray, counts: Sequence[NgramCounts], lengths: IntArray) -> FloatArray:
        """As above, for captions already counted: their images' places among the references, [C], and lengths, [C]."""
        reference_count = self._reference_count[rows]
        # One comparison for each pair of a hypothesis and a reference of its image.
        hypothesis = np.repeat(np.arange(len(rows)), reference_count)
        within_image = np.arange(len(hypothesis)) - np.repeat(
            reference_count.cumsum() - reference_count, reference_count
        )
        reference = self._first_reference[rows][hypothesis] + within_image
        similarity = np.zeros(len(hypothesis))
        for order, ours in zip(self._orders, counts, strict=True):
            weight = ours.times * np.append(order.idf, self._log_images)[np.minimum(ours.ngram, len(order.idf))]
            norm = np.sqrt(np.bincount(ours.caption, weight**2, minlength=len(rows)))
            # Each n-gram of a hypothesis is looked up in every reference of its image.
            copies = reference_count[ours.caption]
            row = np.repeat(np.arange(len(weight)), copies)
            within = np.arange(len(row)) - np.repeat(copies.cumsum() - copies, copies)
            comparison = (reference_count.cumsum() - reference_count)[ours.caption[row]] + within
            known = np.minimum(ours.ngram, len(order.idf))[row]
            place, found = find(order.key, reference[comparison] * (len(order.idf) + 1) + known)
            theirs = order.weight[place[found]]
            product = np.minimum(weight[row[found]], theirs) * theirs
            dot = np.bincount(comparison[found], product, minlength=len(hypothesis))
            scale = norm[hypothesis] * np.append(order.norm, 0)[reference]
            similarity += np.divide(dot, scale, out=np.zeros(len(dot)), where=scale > 0)
        similarity *= _length_penalty(lengths[hypothesis], self.reference_lengths[reference])
        total = np.bincount(hypothesis, similarity, minlength=len(rows))
        return SCALE * total / MAX_ORDER / np.maximum(reference_count, 1)

    def left_out(self) -> FloatArray:
        """CIDEr-D of each reference against the others of its image; references that are alone are passed over.

        Document frequencies are those of all references, as they are for a generated caption. A reference's similarity
        to itself, which is taken out, is 1 for each order of which it has n-grams that tell images apart.
        """
        rows = self.image_of_reference
        itself = SCALE / MAX_ORDER * np.sum([order.norm > 0 for order in self._orders], axis=0)
        count = self._reference_count[rows]
        total = count * self.score(rows, self.index.reference_counts, self.reference_lengths)
        return (total - itself)[count > 1] / (count[count > 1] - 1)

    def _weigh(self, counts: NgramCounts, size: int) -> "_Order":
        images_with = distinct(self.image_of_reference[counts.caption] * (size + 1) + counts.ngram)
        document_frequency = np.bincount(images_with % (size + 1), minlength=size)
        idf = self._log_images - np.log(np.maximum(document_frequency, 1))
        weight = counts.times * idf[counts.ngram]
        norm = np.sqrt(np.bincount(counts.caption, weight**2, minlength=len(self.image_of_reference)))
        return _Order(counts.caption * (size + 1) + counts.ngram, weight, norm, idf)


class _Order(NamedTuple):
    """The references' n-grams of one order."""

    key: IntArray  # [rows] sorted: reference * (n-grams + 1) + n-gram
    weight: FloatArray  # [rows] TF-IDF
    norm: FloatArray  # [references]
    idf: FloatArray  # [n-grams]


def _length_penalty(lengths: IntArray, reference_lengths: IntArray) -> FloatArray:
    # The official scorer measures length in bigrams: 0 for captions of one word and of none.
    difference = np.maximum(lengths - 1, 0) - np.maximum(reference_lengths - 1, 0)
    return np.exp(-(difference**2) / (2 * SIGMA**2))
