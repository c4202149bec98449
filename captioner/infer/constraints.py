"""What may not be the next token, and what has to come at some time, whatever the model thinks of it.

Shapes: B images, K captions an image, M places for the tokens of a caption, V vocabulary, F forced phrases.
"""

import torch
from torch import Tensor

from captioner.infer.options import GenerationOptions


class Forbidden:
    """The end before its time, repeated n-grams, banned sequences."""

    def __init__(self, options: GenerationOptions, prompt: Tensor, end: int) -> None:
        self.least = len(prompt) + options.min_new_tokens
        self.ngram = options.no_repeat_ngram_size
        self.banned = [(prompt.new_tensor(ids[:-1]), ids[-1]) for ids in options.banned_ids]
        self.end = end

    def __call__(self, scores: Tensor, sequences: Tensor, lengths: Tensor) -> Tensor:
        """Scores [B, K, V] of the tokens after `sequences` [B, K, M], of which an image's have `lengths` [B] tokens by
        now -> the same, -inf at the forbidden."""
        scores = scores.clone()
        scores[..., self.end].masked_fill_((lengths < self.least)[:, None], -torch.inf)
        if self.ngram > 0:
            self._forbid_repeats(scores, sequences, lengths)
        for before, last in self.banned:
            completes = (newest(sequences, lengths, len(before)) == before).all(-1)
            completes &= (lengths >= len(before))[:, None]
            scores[..., last].masked_fill_(completes, -torch.inf)
        return scores

    def _forbid_repeats(self, scores: Tensor, sequences: Tensor, lengths: Tensor) -> None:
        if self.ngram > sequences.shape[-1]:
            return
        ngrams = sequences.unfold(-1, self.ngram, 1)
        ends = torch.arange(self.ngram, sequences.shape[-1] + 1, device=lengths.device)
        repeats = (ngrams[..., :-1] == newest(sequences, lengths, self.ngram - 1)[:, :, None]).all(-1)
        repeats &= (ends <= lengths[:, None])[:, None]
        limits = torch.where(repeats, -torch.inf, torch.inf).to(scores)
        scores.scatter_reduce_(-1, ngrams[..., -1], limits, "amin")


class ForcedPhrases:
    """How much of the phrases that a caption must hold it has.

    Each phrase is followed by an automaton whose state is the number of its tokens that the caption ends with, or all
    for good once it was there (Knuth, Morris & Pratt 1977, https://doi.org/10.1137/0206024).
    """

    def __init__(self, phrases: tuple[tuple[int, ...], ...], vocab_size: int, device: torch.device) -> None:
        self.lengths = torch.tensor([len(phrase) for phrase in phrases], device=device)
        self.count = sum(map(len, phrases))
        tables = torch.zeros(len(phrases), max(map(len, phrases)) + 1, vocab_size, dtype=torch.long)
        for table, phrase in zip(tables, phrases, strict=True):
            for state in range(len(phrase)):
                for token in phrase:
                    table[state, token] = overlap((*phrase[:state], token), phrase)
            table[len(phrase) :] = len(phrase)
        self.tables = tables.to(device)

    def after(self, states: Tensor, tokens: Tensor) -> Tensor:
        """States [..., F] -> those after a token more [...]."""
        phrases = torch.arange(len(self.lengths), device=tokens.device)
        return self.tables[phrases, states, tokens[..., None]]

    def met(self, states: Tensor) -> Tensor:
        """Tokens met in states [..., F]: those of whole phrases, and of the phrase that is best under way."""
        whole = states == self.lengths
        return (states * whole).sum(-1) + (states * ~whole).amax(-1)

    def met_by_next(self, states: Tensor) -> Tensor:
        """States [B, K, F] -> the tokens met [B, K, V] after each token of the vocabulary."""
        phrases = torch.arange(len(self.lengths), device=states.device)
        return self.met(self.tables[phrases, states].transpose(-1, -2))


def overlap(tokens: tuple[int, ...], phrase: tuple[int, ...]) -> int:
    """The most tokens at the end of `tokens` that `phrase` starts with."""
    return max(size for size in range(len(tokens) + 1) if tokens[len(tokens) - size :] == phrase[:size])


def holds(tokens: tuple[int, ...], phrase: tuple[int, ...]) -> bool:
    return any(tokens[start : start + len(phrase)] == phrase for start in range(len(tokens)))


def newest(sequences: Tensor, lengths: Tensor, count: int) -> Tensor:
    """The last `count` tokens [B, K, count] of sequences [B, K, M] with `lengths` [B]; void in shorter ones."""
    places = (lengths[:, None] - count + torch.arange(count, device=lengths.device)).clamp(min=0)
    return sequences.gather(-1, places[:, None].expand(-1, sequences.shape[1], -1))
