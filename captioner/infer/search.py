"""The searches behind `generate`: what is chosen at each step.

Shapes: B images, K captions an image, T tokens of the prompt, M places for the tokens of a caption, V vocabulary.
"""

from dataclasses import replace

import torch
from torch import Tensor
from transformers.generation import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from captioner.infer.constraints import Forbidden, ForcedPhrases
from captioner.infer.options import GenerationOptions
from captioner.infer.step_decoder import gather_captions

NOT_YET = -1e9
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
        done: [B], images whose captions are complete.
    """

    per_image: tuple[str, ...] = ("sequences", "log_probs", "lengths", "tokens", "parents", "ended", "done")

    def __init__(
        self, options: GenerationOptions, prompt: Tensor, prompt_log_probs: Tensor, end: int, longest: int
    ) -> None:
        """`prompt_log_probs` [B, T - 1] are those of a prompt [T] on each image; `longest` tokens may follow it."""
        images, self.count = len(prompt_log_probs), options.num_captions
        self.options = options
        self.end = end
        self.prompt_length = len(prompt)
        self.full_length = len(prompt) + longest
        self.forbid = Forbidden(options, prompt, end)
        self.sequences = prompt.new_zeros(images, self.count, self.full_length + 1)
        self.sequences[..., : len(prompt)] = prompt
        self.log_probs = prompt_log_probs.new_zeros(images, self.count, self.full_length)
        self.log_probs[..., : len(prompt) - 1] = prompt_log_probs[:, None]
        self.lengths = prompt.new_full((images,), len(prompt))
        self.tokens = prompt.new_zeros(images, self.count)
        self.parents = torch.arange(self.count, device=prompt.device).repeat(images, 1)
        self.ended = torch.zeros_like(self.tokens, dtype=torch.bool)
        self.done = self.ended.all(1)
        if options.seed is not None:
            self.generator = torch.Generator().manual_seed(options.seed)
            self.noise: list[Tensor] = []

    def advance(self, logits: Tensor, most_steps: int) -> None:
        """Choose the tokens after the sequences by their logits [B, K, V].

        `most_steps` is the number of this step to the image that came first of those still in the making.
        """
        scores = self.forbid(logits, self.sequences, self.lengths)
        self.tokens = self._draw(scores, most_steps) if self.options.do_sample else scores.argmax(-1)
        log_probs = logits.log_softmax(-1).gather(-1, self.tokens[..., None])[..., 0]
        self._write(self.sequences, self.tokens, self.log_probs, log_probs)
        self.ended = self.ended | (self.tokens == self.end)
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
        images, which makes an image's captions independent of its neighbours.
        """
        options = self.options
        warpers = LogitsProcessorList([TemperatureLogitsWarper(float(options.temperature))])
        if options.top_k > 0:
            warpers.append(TopKLogitsWarper(options.top_k))
        if options.top_p < 1:
            warpers.append(TopPLogitsWarper(float(options.top_p)))
        warped = warpers(None, scores.flatten(0, 1))
        if options.seed is None:
            return torch.multinomial(warped.softmax(-1), 1).view(scores.shape[:2])
        while len(self.noise) < min(most_steps, self.full_length - self.prompt_length):
            uniform = torch.rand(scores.shape[1:], generator=self.generator, dtype=torch.float64)
            self.noise.append(-torch.log(-torch.log(uniform.clamp(min=1e-300))).to(scores))
        steps = (self.lengths - self.prompt_length).clamp(max=len(self.noise) - 1)
        return (warped.view(scores.shape) + torch.stack(self.noise)[steps]).argmax(-1)

    def keep(self, images: Tensor) -> None:
        """Go on with these images alone."""
        for name in self.per_image:
            setattr(self, name, getattr(self, name)[images])

    def put(self, images: Tensor, other: "Captions", others: Tensor) -> None:
        """Let the images `others` of `other` take the places of these images."""
        for name in self.per_image:
            getattr(self, name)[images] = getattr(other, name)[others]

    def written(self, images: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Sequences [b, k, M - 1], log-probabilities [b, k, M - 2] of these images' captions, and [b, k], which are.

        What stands after an end of sequence is void.
        """
        sequences = self.sequences[images, :, :-1]
        return sequences, self.log_probs[images, :, :-1], torch.ones_like(sequences[..., 0], dtype=torch.bool)


class Beams(Captions):
    """Beam search as transformers has it: K beams an image, and the K best captions that have ended so far.

    A caption that ends among the K best continuations of a step is scored by sum(log p) / length ** length_penalty. An
    image is done once its K captions all score above what its best beam has now.
    """

    per_image = (*Captions.per_image, "scores", "best_scores", "best_sequences", "best_log_probs")
    handicaps: Tensor | None = None
    """[B, V], taken off the scores of the next tokens."""

    def __init__(
        self, options: GenerationOptions, prompt: Tensor, prompt_log_probs: Tensor, end: int, longest: int
    ) -> None:
        super().__init__(options, prompt, prompt_log_probs, end, longest)
        # All beams of an image are the same at first: one of them goes on.
        self.scores = self.log_probs.new_full(self.ended.shape, NOT_YET)
        self.scores[:, 0] = 0
        self.best_scores = torch.full_like(self.scores, NOT_YET)
        self.best_sequences, self.best_log_probs = self.sequences.clone(), self.log_probs.clone()
        powers = [1.0] + [length**options.length_penalty for length in range(1, longest + 1)]
        self.powers = self.log_probs.new_tensor(powers)

    def advance(self, logits: Tensor, most_steps: int) -> None:
        log_probs = logits.log_softmax(-1)
        totals = self.forbid(log_probs, self.sequences, self.lengths) + self.scores[..., None]
        if self.handicaps is not None:
            totals -= self.handicaps[:, None]
        totals, chosen = self._candidates(totals)
        parents, tokens = chosen // logits.shape[-1], chosen % logits.shape[-1]
        sequences, written = (gather_captions(tensor, parents) for tensor in (self.sequences, self.log_probs))
        self._write(sequences, tokens, written, log_probs.flatten(1).gather(1, chosen))

        self.lengths = (self.lengths + 1).clamp(max=self.full_length)
        is_last = self.lengths == self.full_length
        power = self.powers[self.lengths - self.prompt_length][:, None]
        ends = tokens == self.end
        self._collect(sequences, written, totals / power, ends | is_last[:, None])

        self.scores, going_on = self._going_on(totals, ends)
        self.sequences, self.log_probs = (gather_captions(tensor, going_on) for tensor in (sequences, written))
        self.tokens, self.parents = tokens.gather(1, going_on), parents.gather(1, going_on)
        self.done = self.done | is_last | (self.scores.amax(1) / power[:, 0] <= self.best_scores.amin(1))

    def _candidates(self, totals: Tensor) -> tuple[Tensor, Tensor]:
        """The best of [B, K, V]: scores [B, J] and places among the K * V; the K first may end captions."""
        return totals.flatten(1).topk(2 * self.count)  # at most K of the 2 K end, and K are left to go on

    def _going_on(self, totals: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Of candidates [B, J] that do not end, the K that go on: their scores and places among the J."""
        return (totals + ends * NOT_YET).topk(self.count)

    def _collect(self, sequences: Tensor, log_probs: Tensor, scores: Tensor, ends: Tensor) -> None:
        """Let those of the K best continuations that end compete with the captions that ended before."""
        first = slice(None), slice(self.count)
        scores = scores.masked_fill(~ends | self.done[:, None], NOT_YET)
        self.best_scores, best = torch.cat([self.best_scores, scores[first]], dim=1).topk(self.count)
        self.best_sequences = gather_captions(torch.cat([self.best_sequences, sequences[first]], dim=1), best)
        self.best_log_probs = gather_captions(torch.cat([self.best_log_probs, log_probs[first]], dim=1), best)

    def written(self, images: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        wanted = images, slice(self.options.num_return_sequences)
        is_found = self.best_scores[wanted] > NOT_YET / 2
        return self.best_sequences[wanted][..., :-1], self.best_log_probs[wanted][..., :-1], is_found


class ForcedBeams(Beams):
    """Beam search for captions that hold given phrases (dynamic beam allocation, Post & Vilar 2018,
    https://arxiv.org/abs/1804.06609, with the round robin of Hu et al. 2019, https://aclanthology.org/N19-1090).

    Continuations fall into banks by how many of the C forced tokens they have met. Each bank in turn, from the fullest,
    sends its next best continuation on until there are K: they do not have to outscore those of the other banks. A
    caption may end in bank C alone, and one that cannot meet the rest in the tokens it has left goes no further.
    """

    per_image = (*Beams.per_image, "states")

    def __init__(
        self, options: GenerationOptions, prompt: Tensor, prompt_log_probs: Tensor, end: int, longest: int, vocab: int
    ) -> None:
        super().__init__(options, prompt, prompt_log_probs, end, longest)
        self.forced = ForcedPhrases(options.force_words_ids, vocab, prompt.device)
        state = torch.zeros_like(self.forced.lengths)
        for token in prompt[1:]:
            state = self.forced.after(state, token)
        self.states = state.expand(*self.ended.shape, -1).clone()  # [B, K, F]

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
        self.banks = torch.arange(every + 1, device=totals.device).repeat_interleave(
            torch.tensor([part.values.shape[1] for part in best], device=totals.device)
        )
        return torch.cat([part.values for part in best], dim=1), torch.cat([part.indices for part in best], dim=1)

    def _going_on(self, totals: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """By rank in the bank first, then by bank."""
        goes_on = ~ends & (totals > NOT_YET / 2)
        is_same_bank = self.banks[:, None] == self.banks
        before = is_same_bank.tril(-1) & goes_on[:, None]
        order = before.sum(-1) * (self.forced.count + 1) + self.banks
        order = order.masked_fill(~goes_on, torch.iinfo(order.dtype).max)
        going_on = order.topk(self.count, largest=False).indices
        return totals.masked_fill(~goes_on, NOT_YET).gather(1, going_on), going_on


class DiverseBeams(Captions):
    """Groups of beams that keep apart (diverse beam search, Vijayakumar et al. 2016, https://arxiv.org/abs/1610.02424),
    as transformers had it until version 4.

    Each of G groups is a beam search of its own with K / G beams. At every step they choose in turn, and a token costs
    `diversity_penalty` for each time that the groups before have chosen it for the image (Hamming diversity). It stays
    in the score. A group that is done chooses no more, and an image is done when its groups are.
    """

    per_image = ("tokens", "parents", "done")  # the rest is the groups'

    def __init__(
        self, options: GenerationOptions, prompt: Tensor, prompt_log_probs: Tensor, end: int, longest: int
    ) -> None:
        super().__init__(options, prompt, prompt_log_probs, end, longest)
        self.size = self.count // options.num_beam_groups
        alone = replace(
            options, num_beams=self.size, num_return_sequences=self.size, num_beam_groups=1, diversity_penalty=0.0
        )
        groups = range(options.num_beam_groups)
        self.groups = [Beams(alone, prompt, prompt_log_probs, end, longest) for _ in groups]

    def advance(self, logits: Tensor, most_steps: int) -> None:
        handicaps = torch.zeros_like(logits[:, 0])
        for group, group_logits in zip(self.groups, logits.split(self.size, dim=1), strict=True):
            chooses = ~group.done
            group.handicaps = handicaps
            group.advance(group_logits, most_steps)
            costs = self.options.diversity_penalty * chooses[:, None].expand_as(group.tokens)
            handicaps = handicaps.scatter_add(1, group.tokens, costs.to(handicaps))
        self.tokens = torch.cat([group.tokens for group in self.groups], dim=1)
        self.parents = torch.cat([group.parents + self.size * place for place, group in enumerate(self.groups)], dim=1)
        self.done = torch.stack([group.done for group in self.groups]).all(0)

    def keep(self, images: Tensor) -> None:
        super().keep(images)
        for group in self.groups:
            group.keep(images)

    def put(self, images: Tensor, other: Captions, others: Tensor) -> None:
        assert isinstance(other, DiverseBeams)
        super().put(images, other, others)
        for group, source in zip(self.groups, other.groups, strict=True):
            group.put(images, source, others)

    def written(self, images: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """The best captions of all groups together."""
        scores = torch.cat([group.best_scores[images] for group in self.groups], dim=1)
        best = scores.topk(self.options.num_return_sequences).indices
        parts = zip(*(group.written(images) for group in self.groups), strict=True)
        sequences, log_probs, is_found = (torch.cat(part, dim=1) for part in parts)
        return gather_captions(sequences, best), gather_captions(log_probs, best), is_found.gather(1, best)
