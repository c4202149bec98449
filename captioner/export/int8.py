"""The graphs of an int8 export, whose attention multiplies whole numbers too.

ONNX Runtime multiplies uint8 by int8 several times as fast as fp32, and other pairs of types not: queries and
probabilities become uint8, keys and values int8. A step of the decoder reads an image's keys and values more than
all else, and in int8 they are a quarter of their size.

Shapes: N sequences, B images, K captions an image, T query positions, S key positions, P image tokens, H heads,
D width.
"""

from typing import Any

import torch
from onnx import TensorProto
from onnxscript import opset23
from torch import Tensor
from torch.onnx import ops as onnx_ops

from captioner.export import graphs

SMALLEST = 1e-12
"""Scales are at least this: zeros alone are not divided by zero."""

QUERY_ZERO = 128
"""The uint8 that stands for zero in the decoder's queries. Told to MatMulInteger, it would cost its fast product of one
row: the encoder works out what it adds."""


class EncoderGraph(graphs.EncoderGraph):
    """With five tensors for a decoder layer: keys, int8 [B, H, D / H, P], their scales, float32 [B, H, 1, D / H], what
    the zero point of a query adds to its products with them, float32 [B, H, 1, P], values, int8 [B, H, P, D / H], and
    their scales, as the keys'."""

    STATES = ("key", "key_scale", "key_offset", "value", "value_scale")

    def image_states(self, projected: Tensor) -> list[Tensor]:
        largest = torch.maximum(projected.amax(dim=1, keepdim=True), -projected.amin(dim=1, keepdim=True))
        scales = (largest / 127).clamp(min=SMALLEST)
        whole = (projected / scales).round().to(torch.int8)
        (key, value), (key_scale, value_scale) = (
            x.unflatten(-1, (2, self.num_heads, -1)).transpose(1, 3).unbind(2) for x in (whole, scales)
        )
        key = key.transpose(2, 3)
        return [key, key_scale, QUERY_ZERO * key.float().sum(dim=2, keepdim=True), value, value_scale]


class DecoderGraph(graphs.DecoderGraph):
    """Reads what the encoder's graph gives."""

    def attend_to_image(self, query: Tensor, states: list[Tensor]) -> Tensor:
        query = query.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        scores = self.image_scores(query * query.shape[-1] ** -0.5, states)
        return self.image_context(scores.softmax(dim=-1), states).transpose(1, 2).flatten(2)

    def image_scores(self, query: Tensor, states: list[Tensor]) -> Tensor:
        key, key_scale, key_offset, _, _ = states
        query = query * key_scale
        query_scale = (query.abs().amax(dim=-1, keepdim=True) / 127).clamp(min=SMALLEST)
        products = _product((query / query_scale + (QUERY_ZERO + 0.5)).to(torch.uint8), key)
        return (products - key_offset) * query_scale

    def image_context(self, probs: Tensor, states: list[Tensor]) -> Tensor:
        *_, value, value_scale = states
        probs_scale = (probs.amax(dim=-1, keepdim=True) / 255).clamp(min=SMALLEST)
        return _product((probs / probs_scale + 0.5).to(torch.uint8), value) * (probs_scale * value_scale)

    def weights(self, query: Tensor, states: list[Tensor]) -> Tensor:
        key, key_scale, *_ = states
        query = query.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return ((query * key_scale * query.shape[-1] ** -0.5) @ key.float()).softmax(-1).mean(1)


def _product(one: Tensor, other: Tensor) -> Tensor:
    """uint8 [..., T, S] by int8 [..., S, D], in float32."""
    shape = (*one.shape[:-1], other.shape[-1])
    return onnx_ops.symbolic("MatMulInteger", (one, other), dtype=torch.int32, shape=shape, version=10).float()


def attention(query: Any, key: Any, value: Any, *options: Any, scale: float | None = None, **named: Any) -> Any:
    """SDPA over [N, H, T, D / H], of an encoder. What has a mask, or another option, stays in fp32.

    Each row of probabilities has a scale of its own: where attention is spread over all tokens, the largest of all rows
    would leave it a bit or two.
    """
    if options or named:
        return graphs.attention(query, key, value, *options, scale=scale, **named)
    op: Any = opset23  # lists become constants, which its types do not say
    query_scale = query.shape[-1] ** -0.5 if scale is None else scale
    # ONNX Runtime finds that these transposes undo the model's own, and drops both: those that are left move int8.
    query, key, value = [op.Transpose(x, perm=[0, 2, 1, 3]) for x in (query, key, value)]
    query, dynamic_scale, query_zero = op.DynamicQuantizeLinear(query)
    (key, key_scale), (value, value_scale) = _int8(key), _int8(value)
    query, value = op.Transpose(query, perm=[0, 2, 1, 3]), op.Transpose(value, perm=[0, 2, 1, 3])
    products = op.MatMulInteger(query, op.Transpose(key, perm=[0, 2, 3, 1]), query_zero)
    products_scale = op.Mul(op.Mul(dynamic_scale, query_scale), key_scale)
    probs = op.Softmax(op.Mul(op.Cast(products, to=TensorProto.FLOAT), products_scale), axis=-1)
    probs_scale = op.Div(op.ReduceMax(probs, [-1], keepdims=1), 255.0)
    rows = op.QuantizeLinear(op.Flatten(probs, axis=3), op.Reshape(probs_scale, [-1]), axis=0)
    context = op.Cast(op.MatMulInteger(op.Reshape(rows, op.Shape(probs)), value), to=TensorProto.FLOAT)
    return op.Mul(context, op.Mul(probs_scale, value_scale))


def _int8(states: Any) -> tuple[Any, Any]:
    """In int8, and their scale."""
    op: Any = opset23
    largest = op.Max(op.ReduceMax(states, keepdims=0), op.Neg(op.ReduceMin(states, keepdims=0)), 127 * SMALLEST)
    scale = op.Div(largest, 127.0)
    return op.QuantizeLinear(states, scale, output_dtype=TensorProto.INT8), scale
