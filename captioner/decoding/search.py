"""The searches behind `generate`: what is chosen at each step.

Shapes: B images, K captions an image, T tokens of the prompt, M places for the tokens of a caption, V vocabulary.
"""

import math
from copy import copy
from typing import Any, Self

import torch
from torch import Tensor
from transformers.generation import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from captioner.decoding.constraints import Constraints, Merging
from captioner.decoding.options import GenerationOptions
from captioner.decoding.step_decoder import gather_captions

ABSENT = -torch.inf
"""Score of a beam that is not there: below that of any caption."""


class Captions:
    """The captions of B images in the making, K each, every one going on from itself: greedy, or drawn.

    Every image is at a step of its own. One that is done stays as it is, until another takes its place.

    Attributes:
        sequences: [B, K, M], prompt included. The last place is for what is written after the longest caption.
        log_probs: [B, K, M - 1], those of all tokens but the first, under the model itself.
        lengths: [B], tokens of the sequences by now.
        tokens: [B, K], the newest.
        parents: [B, K], the caption of the step before that each goes on from.
        ended: [B, K], captions that have their end, or none.
        lost: [B, K], captions that have none: what they had allowed no next token.
        done: [B], images whose captions are complete.
    """

    per_image: tuple[str, ...] = ("sequences", "log_probs", "lengths", "tokens", "parents", "ended", "lost", "done")

    def __init__(self, options: GenerationOptions, prompt: Tensor, end: int, longest: int) -> None:
        """Of no images yet: what all have in common. `longest` tokens may follow the prompt [T]."""
        self.count = options.num_captions
        self.options = options
        self.end = end
        self.prompt = prompt
        self.prompt_length = len(prompt)
        self.full_length = len(prompt) + longest
        self.constrain = Constraints(options, prompt, end)
        self.merge = Merging(options, prompt)
        if options.seed is not None:
            self.generator = torch.Generator().manual_seed(options.seed)
            self.noise: list[Tensor] = []
        self.uniforms: Tensor | None = None

    def of(self, prompt_log_probs: Tensor, uniforms: Tensor | None = None) -> Self:
        """The same search for captions of B images, on which the prompt's tokens have log-probabilities [B, T - 1].

        With `uniforms`, numbers in [0, 1), [B, K, longest], each token is drawn by its own number.
        """
        captions = copy(self)
        captions._begin(prompt_log_probs)
        if uniforms is not None:
            captions.uniforms = uniforms
            captions.per_image = (*self.per_image, "uniforms")
        return captions

    def _begin(self, prompt_log_probs: Tensor) -> None:
        images, prompt = len(prompt_log_probs), self.prompt
        self.sequences = prompt.new_zeros(images, self.count, self.full_length + 1)
        self.sequences[..., : len(prompt)] = prompt
        self.log_probs = prompt_log_probs.new_zeros(images, self.count, self.full_length)
        self.log_probs[..., : len(prompt) - 1] = prompt_log_probs[:, None]
        self.lengths = prompt.new_full((images,), len(prompt))
        self.tokens = prompt.new_zeros(images, self.count)
        self.parents = torch.arange(self.count, device=prompt.device).repeat(images, 1)
        self.ended = torch.zeros_like(self.tokens, dtype=torch.bool)
        self.lost = torch.zeros_like(self.ended)
        self.done = self.ended.all(1)

    def advance(self, logits: Tensor, most_steps: int) -> None:
        """Choose the tokens after the sequences by their logits [B, K, V].

        `most_steps` is the number of this step to the image that came first of those still in the making.
        """
        logits = self.merge(logits)
        scores = self.constrain(logits, self.sequences, self.lengths)
        self.tokens = self._draw(scores, most_steps) if self.options.do_sample else scores.argmax(-1)
        chosen = self.tokens[..., None]
        is_lost = scores.gather(-1, chosen)[..., 0] == -torch.inf
        self._write(self.sequences, self.tokens, self.log_probs, logits.log_softmax(-1).gather(-1, chosen)[..., 0])
        self.lost = self.lost | is_lost & ~self.ended
        self.ended = self.ended | is_lost | (self.tokens == self.end)
        self.lengths = (self.lengths + 1).clamp(max=self.full_length)
        self.done = self.done | self.ended.all(1) | (self.lengths == self.full_length)

    def _write(self, sequences: Tensor, tokens: Tensor, log_probs: Tensor, token_log_probs: Tensor) -> None:
        """Put tokens and their log-probabilities, both [B, J], at the end of [B, J, M] and [B, J, M - 1]."""
        place = self.lengths[:, None, None].expand(-1, tokens.shape[1], -1)
        sequences.scatter_(-1, place, tokens[..., None])
        log_probs.scatter_(-1, place - 1, token_log_probs[..., None])

    def _draw(self, scores: Tensor, most_steps: int) -> Tensor:
        """[B, K, V] -> [B, K], by temperature, top-k and top-p.

        With a seed by the Gumbel-max trick: argmax(logits + Gumbel noise) is a draw from softmax(logits) (Maddison et
        al. 2014, https://arxiv.org/abs/1411.0030). The noise of an image's n-th step, [K, V], is the same for all
        images, which makes an image's captions independent of its neighbours. With `uniforms`, the token is the one at
        which the cumulated probabilities pass the number of its step.
        """
        options = self.options
        warpers = LogitsProcessorList([TemperatureLogitsWarper(float(options.temperature))])
        if options.top_k > 0:
            warpers.append(TopKLogitsWarper(options.top_k))
        if options.top_p < 1:
            warpers.append(TopPLogitsWarper(float(options.top_p)))
        warped = warpers(None, scores.flatten(0, 1))
        if self.uniforms is not None:
            steps = (self.lengths - self.prompt_length).clamp(max=self.uniforms.shape[-1] - 1)
            numbers = self.uniforms.gather(-1, steps[:, None, None].expand(-1, self.count, 1))
            cumulated = warped.softmax(-1).cumsum(-1)
            # The last sum can fall short of 1 by rounding: relative to it, no token of probability 0 is drawn.
            threshold = numbers.view(-1, 1) * cumulated[:, -1:]
            drawn = torch.searchsorted(cumulated, threshold, right=True).clamp(max=cumulated.shape[-1] - 1)
            return drawn.view(scores.shape[:2])
        if options.seed is None:
            is_lost = warped.amax(-1, keepdim=True) == -torch.inf
            shares = warped.masked_fill(is_lost, 0).softmax(-1)  # where all are forbidden, any is drawn
            # As torch.multinomial draws, which looks at the shares on the host first and so cannot be captured.
            return (shares / torch.empty_like(shares).exponential_()).argmax(-1).view(scores.shape[:2])
        while len(self.noise) < min(most_steps, self.full_length - self.prompt_length):
            uniform = torch.rand(scores.shape[1:], generator=self.generator, dtype=torch.float64)
            self.noise.append(-torch.log(-torch.log(uniform.clamp(min=1e-300))).to(scores))
        steps = (self.lengths - self.prompt_length).clamp(max=len(self.noise) - 1)
        return (warped.view(scores.shape) + torch.stack(self.noise)[steps]).argmax(-1)

    def state(self) -> list[tuple[Any, str]]:
        """The tensors that a step replaces, as owner and attribute."""
        return [(self, name) for name in self.per_image]

    def keep(self, images: Tensor) -> None:
        """Go on with these images alone."""
        for name in self.per_image:
            setattr(self, name, getattr(self, name)[images])

    def put(self, images: Tensor | slice, other: "Captions", others: Tensor | slice) -> None:
        """Let the images `others` of `other` take the places of these images."""
        for name in self.per_image:
            getattr(self, name)[images] = getattr(other, name)[others]

    def written(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sequences [b, k, M - 1], log-probabilities [b, k, M - 2] of these images' captions, and [b, k], which are.

        What stands after an end of sequence is void.
        """
        return self.sequences[images, :, :-1], self.log_probs[images, :, :-1], ~self.lost[images]


class Beams(Captions):
    """Beam search as transformers has it: K beams an image, and the K best captions that have ended so far.

    A caption that ends among the K best continuations of a step is scored by sum(log p) / length ** length_penalty. An
    image is done when `early_stopping` says so. Scores s <= 0 are kept as -log(-s), which ranks them the same and stays
    within float32: 40 ** 50 does not.
    """

    per_image = (*Captions.per_image, "scores", "best_scores", "best_sequences", "best_log_probs")

    def __init__(self, options: GenerationOptions, prompt: Tensor, end: int, longest: int) -> None:
        super().__init__(options, prompt, end, longest)
        logs = [0.0] + [options.length_penalty * math.log(length) for length in range(1, longest + 1)]
        self.bonuses = torch.tensor(logs, device=prompt.device)  # log(length ** length_penalty)
        looks_ahead = options.early_stopping == "never" and options.length_penalty > 0
        self.best_bonus = self.bonuses[-1] if looks_ahead else None  # of the longest caption

    def _begin(self, prompt_log_probs: Tensor) -> None:
        super()._begin(prompt_log_probs)
        # All beams of an image are the same at first: one of them goes on.
        self.scores = self.log_probs.new_full(self.ended.shape, ABSENT)
        self.scores[:, 0] = 0
        self.best_scores = torch.full_like(self.scores, ABSENT)
        self.best_sequences, self.best_log_probs = self.sequences.clone(), self.log_probs.clone()

    def advance(self, logits: Tensor, most_steps: int) -> None:
        log_probs = self.merge(logits).log_softmax(-1)
        totals, chosen = self._candidates(self._totals(log_probs))
        parents, tokens = chosen // logits.shape[-1], chosen % logits.shape[-1]
        sequences, written = (gather_captions(tensor, parents) for tensor in (self.sequences, self.log_probs))
        self._write(sequences, tokens, written, log_probs.flatten(1).gather(1, chosen))

        self.lengths = (self.lengths + 1).clamp(max=self.full_length)
        is_last = self.lengths == self.full_length
        bonus = self.bonuses[self.lengths - self.prompt_length]
        ends = tokens == self.end
        self._collect(sequences, written, bonus[:, None] - (-totals).log(), ends | is_last[:, None])

        self.scores, going_on = self._going_on(totals, ends)
        self.sequences, self.log_probs = (gather_captions(tensor, going_on) for tensor in (sequences, written))
        self.tokens, self.parents = tokens.gather(1, going_on), parents.gather(1, going_on)
        worst = self.best_scores.amin(1)
        attainable = (bonus if self.best_bonus is None else self.best_bonus) - (-self._attainable(totals)).log()
        self.done = self.done | is_last | (attainable <= worst)
        if self.options.early_stopping is True:
            self.done = self.done | (worst > ABSENT)

    def _totals(self, log_probs: Tensor) -> Tensor:
        """The scores of all continuations, [B, K, V] like their tokens' log-probabilities."""
        return self.constrain(log_probs, self.sequences, self.lengths) + self.scores[..., None]

    def _attainable(self, totals: Tensor) -> Tensor:
        """The best score [B] that a caption still to end may have, given those of the candidates."""
        return self.scores.amax(1)

    def _candidates(self, totals: Tensor) -> tuple[Tensor, Tensor]:
        """The best of [B, K, V]: scores [B, J] and places among the K * V; the K first may end captions."""
        return totals.flatten(1).topk(2 * self.count)  # at most K of the 2 K end, and K are left to go on

    def _going_on(self, totals: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Of candidates [B, J] that do not end, the K that go on: their scores and places among the J."""
        return totals.masked_fill(ends, ABSENT).topk(self.count)

    def _collect(self, sequences: Tensor, log_probs: Tensor, scores: Tensor, ends: Tensor) -> None:
        """Let those of the K best continuations that end compete with the captions that ended before."""
        first = slice(None), slice(self.count)
        scores = scores.masked_fill(~ends | self.done[:, None], ABSENT)
        self.best_scores, best = torch.cat([self.best_scores, scores[first]], dim=1).topk(self.count)
        self.best_sequences = gather_captions(torch.cat([self.best_sequences, sequences[first]], dim=1), best)
        self.best_log_probs = gather_captions(torch.cat([self.best_log_probs, log_probs[first]], dim=1), best)

    def written(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wanted = images, slice(self.options.num_return_sequences)
        is_found = self.best_scores[wanted] > ABSENT
        return self.best_sequences[wanted][..., :-1], self.best_log_probs[wanted][..., :-1], is_found
