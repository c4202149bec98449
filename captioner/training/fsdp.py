"""Sharded training with PyTorch's FSDP2: each process holds a shard of every parameter, gradient and moment.

Everything that differs between a sharded and a whole model is here, so the training loop treats both alike. Shards are
`DTensor`s, which the optimizer handles like any tensor.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from captioner.errors import CaptionerError
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration


def prepare_optimizer(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> AcceleratedOptimizer:
    """Return the optimizer wrapped by accelerate; under FSDP, shard model and optimizer in place.

    Raises:
        CaptionerError: the launch names a layer class that the model does not have.
    """
    if not accelerator.is_fsdp2:
        return accelerator.prepare_optimizer(optimizer)
    # Parameters are gathered in their own precision; autocast decides the precision of a pass, as without FSDP.
    accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
    try:
        return accelerator.prepare(model, optimizer)[1]
    except ValueError as error:
        raise CaptionerError(f"FSDP: {error}") from error


class WholeModel:
    """Gives every process the whole model, to save it or to run parts of it independently of the other processes.

    FSDP gathers a layer when the forward pass reaches it, so all processes must run the same layers equally often. They
    do not when they generate captions token by token.
    """

    def __init__(self, accelerator: Accelerator, model: CaptionerForConditionalGeneration) -> None:
        """Call this before the model is sharded."""
        self.model = model
        self.shell = copy.deepcopy(model) if accelerator.is_fsdp2 else None
        self._empty()

    @contextmanager
    def gathered(self) -> Iterator[CaptionerForConditionalGeneration]:
        """Yield the model, or under FSDP a copy that lasts as long as the context; all processes must call this."""
        if self.shell is None:
            yield self.model
            return
        for parameter, part in zip(self.shell.parameters(), self.model.parameters(), strict=True):
            parameter.data = whole(part.detach())
        try:
            yield self.shell
        finally:
            self._empty()

    def _empty(self) -> None:
        for parameter in self.shell.parameters() if self.shell is not None else ():
            parameter.data = parameter.data.new_empty(0)


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor from its shards; all processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_on_cpu(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Gather tensors one by one; all processes must call this, and those without `keep` get an empty result."""
    found = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor)
        if keep:
            found[name] = gathered.cpu()
    return found


def part_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor that belongs to a sharded parameter; any other tensor as it is."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    tensor = tensor.to(parameter.device)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
