"""Faster gradients in bfloat16 on a CPU.

torch's CPU kernels for the gradients of two operations are slow in bfloat16: depthwise convolutions are two to fifteen
times as fast in float32, attention is three to five times as fast when it is written out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

conv2d, fused_attention = F.conv2d, F.scaled_dot_product_attention


@contextmanager
def fast_bfloat16_gradients() -> Iterator[None]:
    """Replace the two operations in `torch.nn.functional` inside the block, which must include `loss.backward()`.

    A TorchFunctionMode would not do: torch suspends it in the backward pass, where gradient checkpointing repeats the
    forward pass.
    """
    F.conv2d, F.scaled_dot_product_attention = _conv2d, _attention  # type: ignore[assignment]
    try:
        yield
    finally:
        F.conv2d, F.scaled_dot_product_attention = conv2d, fused_attention


def _conv2d(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    is_depthwise, needs_gradient = weight.shape[1] == 1, input.requires_grad or weight.requires_grad
    if not (is_depthwise and needs_gradient and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")):
        return conv2d(input, weight, *args, **kwargs)
    with torch.autocast("cpu", enabled=False):
        return conv2d(input.float(), weight, *args, **kwargs).bfloat16()


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **kwargs: Any,
) -> Tensor:
    if query.dtype != torch.bfloat16 or not torch.is_grad_enabled() or kwargs:
        return fused_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **kwargs)
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-1, -2)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return F.dropout(scores.softmax(-1), dropout_p) @ value
