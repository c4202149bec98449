"""A model in parts: by PyTorch's FSDP2 each process holds a part of every parameter, of its gradient and its moments.

What differs between a model in parts and a whole one is here, so that the training loop need not know which it has.
Parts are `DTensor`s, on which the optimizer works as on any tensor.
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
    """The optimizer as accelerate wants it; under FSDP model and optimizer change to parts, in place.

    Raises:
        CaptionerError: the launch names a layer that the model does not have.
    """
    if not accelerator.is_fsdp2:
        return accelerator.prepare_optimizer(optimizer)
    # Parameters travel as they are: the precision of a pass is that of autocast, as it is without FSDP.
    accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
    try:
        return accelerator.prepare(model, optimizer)[1]
    except ValueError as error:
        raise CaptionerError(f"FSDP: {error}") from error


class WholeModel:
    """The model as one, on every process: for what saves it, or runs pieces of it as often as a process likes.

    FSDP puts layers together as the model's forward passes them, and all processes have to pass as many: captions that
    are written word by word do not.
    """

    def __init__(self, accelerator: Accelerator, model: CaptionerForConditionalGeneration) -> None:
        """Before the model is in parts."""
        self.model = model
        self.shell = copy.deepcopy(model) if accelerator.is_fsdp2 else None
        self._empty()

    @contextmanager
    def gathered(self) -> Iterator[CaptionerForConditionalGeneration]:
        """The model itself, or a copy that lasts as long as the context; every process has to take part."""
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
    """A tensor put together from its parts; every process has to take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_on_cpu(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Tensors put together one by one, every process taking part; those that do not `keep` them get none."""
    found = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor)
        if keep:
            found[name] = gathered.cpu()
    return found


def part_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """This process's part of a whole tensor where it goes with a parameter in parts; else the tensor."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    tensor = tensor.to(parameter.device)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
