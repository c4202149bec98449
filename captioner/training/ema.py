"""The exponential moving average of a model's weights, which validation uses and the best checkpoint holds."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from captioner.training.fsdp import part_like


class WeightAverage:
    """Exponential moving average of parameters (Polyak and Juditsky 1992), sharded as the parameters are.

    After n updates the decay is (1 + n) / (10 + n), at most `decay`, so that early weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.parameters = dict(model.named_parameters())
        self.averages = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the current weights; call this after each optimizer step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.updates else 0.0
        torch._foreach_lerp_(list(self.averages.values()), list(self.parameters.values()), 1 - decay)
        self.updates += 1

    @torch.no_grad()
    def settle(self) -> None:
        """Set frozen parameters to their averages, so that the average and the model compute the same with them."""
        for name, parameter in self.parameters.items():
            if not parameter.requires_grad:
                parameter.copy_(self.averages[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model its averages as weights inside the block, and its own weights back afterwards."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self.parameters.items():
            kept = parameter.clone()
            parameter.copy_(self.averages[name])
            self.averages[name].copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        return {"updates": torch.tensor(self.updates), **self.averages}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.updates = int(state["updates"])
        for name, average in self.averages.items():
            average.copy_(part_like(average, state[name]))
