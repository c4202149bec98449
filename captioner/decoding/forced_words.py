"""Beam search for captions that hold given words or phrases.

Shapes: B images, K beams an image, J candidates to go on, V vocabulary, F phrases of C tokens together.
"""

import torch
from torch import Tensor

from captioner.decoding.options import GenerationOptions
from captioner.decoding.search import ABSENT, Beams
from captioner.decoding.step_decoder import gather_captions


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


class ForcedBeams(Beams):
    """Beam search for captions that hold given phrases (dynamic beam allocation, Post & Vilar 2018,
    https://arxiv.org/abs/1804.06609, with the round robin of Hu et al. 2019, https://aclanthology.org/N19-1090).

    Continuations fall into banks by how many of the C forced tokens they have met. Each bank in turn, from the fullest,
    sends its next best continuation on until there are K: they do not have to outscore those of the other banks. A
    caption may end in bank C alone, and one that cannot meet the rest in the tokens it has left goes no further.
    """

    per_image = (*Beams.per_image, "states")

    def __init__(self, options: GenerationOptions, prompt: Tensor, end: int, longest: int, vocab: int) -> None:
        super().__init__(options, prompt, end, longest)
        self.forced = ForcedPhrases(options.force_words_ids, vocab, prompt.device)
        # Of each candidate, how many tokens it lacks: bank C has 2 K candidates, and each of the others K.
        self.lacking = (torch.arange(self.count * (self.forced.count + 2)) // self.count - 1).clamp(min=0)
        self.lacking = self.lacking.to(prompt.device)
        self.state_of_prompt = torch.zeros_like(self.forced.lengths)
        for token in prompt[1:]:
            self.state_of_prompt = self.forced.after(self.state_of_prompt, token)

    def _begin(self, prompt_log_probs: Tensor) -> None:
        super()._begin(prompt_log_probs)
        self.states = self.state_of_prompt.expand(*self.ended.shape, -1).clone()  # [B, K, F]

    def advance(self, logits: Tensor, most_steps: int) -> None:
        super().advance(logits, most_steps)
        self.states = self.forced.after(gather_captions(self.states, self.parents), self.tokens)

    def _candidates(self, totals: Tensor) -> tuple[Tensor, Tensor]:
        """The 2 K best of bank C, and the K best of each bank before it, from C - 1 to 0."""
        met, every = self.forced.met_by_next(self.states), self.forced.count
        is_met = self.forced.met(self.states) == every
        totals[..., self.end].masked_fill_(~is_met, -torch.inf)
        tokens_left = self.full_length - self.lengths - 1
        totals.masked_fill_(every - met > tokens_left[:, None, None], -torch.inf)
        best = [
            totals.masked_fill(met != bank, -torch.inf).flatten(1).topk(self.count * (2 if bank == every else 1))
            for bank in range(every, -1, -1)
        ]
        return torch.cat([part.values for part in best], dim=1), torch.cat([part.indices for part in best], dim=1)

    def _going_on(self, totals: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """By rank in the bank first, then by bank."""
        goes_on = ~ends & (totals > ABSENT)
        is_same_bank = self.lacking[:, None] == self.lacking
        before = is_same_bank.tril(-1) & goes_on[:, None]
        order = before.sum(-1) * (self.forced.count + 1) + self.lacking
        order = order.masked_fill(~goes_on, torch.iinfo(order.dtype).max)
        going_on = order.topk(self.count, largest=False).indices
        return totals.masked_fill(~goes_on, ABSENT).gather(1, going_on), going_on


def overlap(tokens: tuple[int, ...], phrase: tuple[int, ...]) -> int:
    """The most tokens at the end of `tokens` that `phrase` starts with."""
    return max(size for size in range(len(tokens) + 1) if tokens[len(tokens) - size :] == phrase[:size])


def holds(tokens: tuple[int, ...], phrase: tuple[int, ...]) -> bool:
    return any(tokens[start : start + len(phrase)] == phrase for start in range(len(tokens)))
