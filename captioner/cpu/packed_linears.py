"""Linear layers that compute from a copy of their weights in oneDNN's own order.

On an x86 CPU, torch multiplies a few rows with a large matrix at a fraction of what memory allows; a decoder step,
which does little else, is faster with these.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


@cache
def multiplies_bf16() -> bool:
    """Does oneDNN take matrices in bf16 on this CPU?"""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def packs(dtype: torch.dtype) -> bool:
    """Does oneDNN pack weights of this type on this CPU?"""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and multiplies_bf16())


def pack_linears(model: nn.Module) -> None:
    """Let every linear layer of a model in fp32 or bf16 on a CPU compute so, where torch can.

    The parameters stay what and where they are; the copies take their memory once more.
    """
    if not (torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")):
        return
    if not packs(next(model.parameters()).dtype):
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child))


class PackedLinear(nn.Linear):
    """A linear layer in inference; an ordinary one where gradients are wanted, or once the weight has become of a type
    that is not packed. The copy is made when first needed, and anew when the weight has changed."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.packed: Tensor | None = None
        self.packed_version = -1

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not packs(self.weight.dtype):
            return super().forward(input)
        if self.packed is None or self.packed_version != self.weight._version:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)
            self.packed_version = self.weight._version
        return torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], "")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"packed": None}  # oneDNN's tensors cannot be copied
