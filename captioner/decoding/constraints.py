"""What the options change in the scores of the next tokens.

Shapes: B images, K captions an image, M places for the tokens of a caption, V vocabulary.
"""

import torch
from torch import Tensor

from captioner.decoding.options import GenerationOptions


class Constraints:
    """The repetition penalty; and what is forbidden: an early end, repeated n-grams, banned sequences."""

    def __init__(self, options: GenerationOptions, prompt: Tensor, end: int) -> None:
        self.least = len(prompt) + options.min_new_tokens
        self.ngram = options.no_repeat_ngram_size
        self.penalty = options.repetition_penalty
        self.banned = [(prompt.new_tensor(ids[:-1]), ids[-1]) for ids in options.bad_words_ids]
        self.end = end

    def __call__(self, scores: Tensor, sequences: Tensor, lengths: Tensor) -> Tensor:
        """Constrain the scores [B, K, V] of the tokens after `sequences` [B, K, M], of which an image's have `lengths`
        [B] tokens so far; -inf is forbidden."""
        scores = scores.clone() if self.penalty == 1 else self._penalized(scores, sequences, lengths)
        scores[..., self.end].masked_fill_((lengths < self.least)[:, None], -torch.inf)
        if self.ngram > 0:
            self._forbid_repeats(scores, sequences, lengths)
        for before, last in self.banned:
            completes = (newest(sequences, lengths, len(before)) == before).all(-1)
            completes &= (lengths >= len(before))[:, None]
            scores[..., last].masked_fill_(completes, -torch.inf)
        return scores

    def _penalized(self, scores: Tensor, sequences: Tensor, lengths: Tensor) -> Tensor:
        is_written = torch.arange(sequences.shape[-1], device=lengths.device) < lengths[:, None, None]
        tokens = torch.where(is_written, sequences, sequences[..., :1])  # in place of void tokens, the start again
        is_used = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, tokens, True)
        penalized = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return torch.where(is_used, penalized, scores)

    def _forbid_repeats(self, scores: Tensor, sequences: Tensor, lengths: Tensor) -> None:
        if self.ngram > sequences.shape[-1]:
            return
        ngrams = sequences.unfold(-1, self.ngram, 1)
        ends = torch.arange(self.ngram, sequences.shape[-1] + 1, device=lengths.device)
        repeats = (ngrams[..., :-1] == newest(sequences, lengths, self.ngram - 1)[:, :, None]).all(-1)
        repeats &= (ends <= lengths[:, None])[:, None]
        limits = torch.where(repeats, -torch.inf, torch.inf).to(scores)
        scores.scatter_reduce_(-1, ngrams[..., -1], limits, "amin")


class Merging:
    """Gives the probability of each token in `options.merged_ids` to the token that stands in for it."""

    def __init__(self, options: GenerationOptions, prompt: Tensor) -> None:
        sources: dict[int, list[int]] = {}
        for source, target in options.merged_ids:
            sources.setdefault(target, []).append(source)
        self.groups = [(target, prompt.new_tensor([target, *tokens])) for target, tokens in sources.items()]
        self.merged = prompt.new_tensor([source for source, _ in options.merged_ids])

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits [B, K, V] -> the same with their softmax moved: the others' stays as it was."""
        if not self.groups:
            return logits
        moved = logits.clone()
        moved[..., self.merged] = -torch.inf
        for target, tokens in self.groups:
            moved[..., target] = logits[..., tokens].logsumexp(-1)
        return moved


def newest(sequences: Tensor, lengths: Tensor, count: int) -> Tensor:
    """The last `count` tokens [B, K, count] of sequences [B, K, M] with `lengths` [B]; void in shorter ones."""
    places = (lengths[:, None] - count + torch.arange(count, device=lengths.device)).clamp(min=0)
    return sequences.gather(-1, places[:, None].expand(-1, sequences.shape[1], -1))
