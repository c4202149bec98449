"""ROUGE-L as the official COCO scorer computes it.

Source: C.-Y. Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004. Precision and recall of the longest
common subsequence, each the best over the references, combined with beta = 1.2.
"""

from collections.abc import Hashable, Sequence

BETA = 1.2


def rouge_l(hypothesis: Sequence[Hashable], references: Sequence[Sequence[Hashable]]) -> float:
    """ROUGE-L of one caption against the references of its image.

    As in the official scorer an empty caption counts as one empty word, so it matches an empty reference.
    """
    hypothesis = hypothesis or ("",)
    masks: dict[Hashable, int] = {}
    for position, token in enumerate(hypothesis):
        masks[token] = masks.get(token, 0) | 1 << position
    precision = recall = 0.0
    for reference in references:
        reference = reference or ("",)
        common = _common_subsequence(masks, len(hypothesis), reference)
        precision = max(precision, common / len(hypothesis))
        recall = max(recall, common / len(reference))
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common_subsequence(masks: dict[Hashable, int], length: int, tokens: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence of `tokens` and a sequence given by the bits where each token stands.

    Bit-parallel (H. Hyyro, "Bit-Parallel LCS-length Computation Revisited", 2004): one row of the table at a time, so
    that captions of 10,000 words cost no more than 10,000 additions of long integers.
    """
    everywhere = (1 << length) - 1
    row = everywhere  # a zero bit for each step in the row of the table
    for token in tokens:
        matches = row & masks.get(token, 0)
        if matches:
            row = (row + matches | row - matches) & everywhere
    return length - row.bit_count()
