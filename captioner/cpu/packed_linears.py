"""Linear layers with a copy of their weights in oneDNN's memory layout.

On an x86 CPU, torch multiplies a few rows with a large matrix much more slowly than memory bandwidth allows. A decoder
step does little else, so it is faster with these layers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


@cache
def multiplies_bf16() -> bool:
    """Does oneDNN multiply bf16 matrices on this CPU?"""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def packs(dtype: torch.dtype) -> bool:
    """Does oneDNN pack weights of this type on this CPU?"""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and multiplies_bf16())


def pack_linears(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Pack every linear layer of a model on a CPU, if oneDNN can pack its type.

    The parameters stay as they are. The copies, in `dtype` (default: the model's), take as much memory again.
    """
    parameter = next(model.parameters())
    if parameter.device.type != "cpu":
        return
    if not (torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")):
        return
    if not packs(dtype or parameter.dtype):
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child, dtype))


@contextmanager
def packed_linears(model: nn.Module) -> Iterator[None]:
    """Pack the linear layers inside the block: for a model that decodes between updates, also in autocast."""
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    try:
        pack_linears(model, torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        yield
    finally:
        for name, linear in linears.items():
            model.set_submodule(name, linear)


class PackedLinear(nn.Linear):
    """A linear layer for inference; with gradients, or with a weight type that cannot be packed, an ordinary one.

    The copy is made when it is first needed, and again when the weight has changed.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype | None = None) -> None:
        """`dtype` is that of the copy; by default the weight's, even after the weight is converted."""
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.dtype = dtype
        self.packed: Tensor | None = None
        self.packed_bias: Tensor | None = None
        self.packed_version = -1

    def forward(self, input: Tensor) -> Tensor:
        dtype = self.dtype or self.weight.dtype
        if torch.is_grad_enabled() or not packs(dtype):
            return super().forward(input)
        if self.packed is None or self.packed_version != self.weight._version:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.to(dtype))
            self.packed_bias = None if self.bias is None else self.bias.to(dtype)
            self.packed_version = self.weight._version
        return torch.ops.mkldnn._linear_pointwise(input.to(dtype), self.packed, self.packed_bias, "none", [], "")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"packed": None}  # oneDNN's tensors cannot be copied
