"""Beam search for captions that differ from one another.

Shapes: B images, K beams an image in G groups, V vocabulary.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from captioner.decoding.options import GenerationOptions
from captioner.decoding.search import Beams, Captions
from captioner.decoding.step_decoder import gather_captions


class BeamGroup(Beams):
    """One of the groups of `DiverseBeams`. `handicaps` [B, V] are taken off the scores of the next tokens."""

    handicaps: Tensor

    def _totals(self, log_probs: Tensor) -> Tensor:
        return super()._totals(log_probs) - self.handicaps[:, None]

    def _attainable(self, totals: Tensor) -> Tensor:
        return totals.amax(1)  # in version 4 those that end at this step counted, too


class DiverseBeams(Captions):
    """Groups of beams that keep apart (diverse beam search, Vijayakumar et al. 2016, https://arxiv.org/abs/1610.02424),
    as transformers had it until version 4.

    Each of G groups is a beam search of its own with K / G beams. At every step they choose in turn, and a token costs
    `diversity_penalty` for each time that the groups before have chosen it for the image (Hamming diversity). It stays
    in the score. A group that is done chooses no more, and an image is done when its groups are.
    """

    per_image = ("tokens", "parents", "done")  # the rest is the groups'

    def __init__(self, options: GenerationOptions, prompt: Tensor, end: int, longest: int) -> None:
        super().__init__(options, prompt, end, longest)
        self.size = self.count // options.num_beam_groups
        alone = replace(
            options, num_beams=self.size, num_return_sequences=self.size, num_beam_groups=1, diversity_penalty=0.0
        )
        self.group = BeamGroup(alone, prompt, end, longest)

    def _begin(self, prompt_log_probs: Tensor) -> None:
        super()._begin(prompt_log_probs)
        self.groups = [self.group.of(prompt_log_probs) for _ in range(self.options.num_beam_groups)]

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

    def state(self) -> list[tuple[Any, str]]:
        return super().state() + [attribute for group in self.groups for attribute in group.state()]

    def keep(self, images: Tensor) -> None:
        super().keep(images)
        for group in self.groups:
            group.keep(images)

    def put(self, images: Tensor | slice, other: Captions, others: Tensor | slice) -> None:
        assert isinstance(other, DiverseBeams)
        super().put(images, other, others)
        for group, source in zip(self.groups, other.groups, strict=True):
            group.put(images, source, others)

    def written(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best captions of all groups together."""
        scores = torch.cat([group.best_scores[images] for group in self.groups], dim=1)
        best = scores.topk(self.options.num_return_sequences).indices
        parts = zip(*(group.written(images) for group in self.groups), strict=True)
        sequences, log_probs, is_found = (torch.cat(part, dim=1) for part in parts)
        return gather_captions(sequences, best), gather_captions(log_probs, best), is_found.gather(1, best)
