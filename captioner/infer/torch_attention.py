"""Heat maps of a torch model, from its decoder's cross-attention.

Shapes: L layers, H heads, T tokens, P image tokens, R rows, C columns, D width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from captioner.errors import CaptionerError
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration


def token_maps(
    model: CaptionerForConditionalGeneration, pixel_values: Tensor, token_ids: Sequence[int], method: str
) -> Tensor:
    """Heat [T, R, C] over the grid of an image [1, 3, height, width] for each token of its caption; see
    `captioner.infer.explain.METHODS`.

    Raises:
        CaptionerError: the decoder has no cross-attention.
    """
    if model.config.image_prefix:
        raise CaptionerError("this model reads the image as a prefix; heat maps need a decoder with cross-attention")
    trunk = model.encoder.trunk
    with torch.no_grad():
        features, grid = trunk(pixel_values)
        image_tokens = model.encoder.bridge(features, trunk.num_prefix_tokens, grid)
    inputs = torch.tensor([[model.config.decoder_start_token_id, *token_ids]], device=image_tokens.device)
    with recorded_weights(model) as weights, torch.set_grad_enabled(method == "gradient"):
        logits = model.lm_head(model.decoder(inputs[:, :-1], image_tokens))
        if method == "gradient":
            log_probs = logits[0].float().log_softmax(-1).gather(-1, inputs[0, 1:, None])[:, 0]
            heat = torch.stack([_gains(log_prob, weights, t) for t, log_prob in enumerate(log_probs)])
        else:
            heat = torch.stack(weights)[:, 0].mean((0, 1))
    return heat[:, trunk.num_prefix_tokens :].float().unflatten(1, grid)  # a class token has no place in the image


def _gains(log_prob: Tensor, weights: list[Tensor], token: int) -> Tensor:
    """[P]: by how much each image token's weight, where it helps, raises the log-probability of the token."""
    gradients = torch.autograd.grad(log_prob, weights, retain_graph=True)
    gains = [
        (gradient[0, :, token] * weight[0, :, token]).clamp(min=0)
        for gradient, weight in zip(gradients, weights, strict=True)
    ]
    return torch.stack(gains).mean((0, 1)).detach()


@contextmanager
def recorded_weights(model: CaptionerForConditionalGeneration) -> Iterator[list[Tensor]]:
    """The weights [1, H, T, P] of each decoder layer's cross-attention, as it computes in this block."""
    weights: list[Tensor] = []

    def record(attention: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        attended, its_weights = attention.with_weights(*inputs[:2])
        weights.append(its_weights)
        return attended

    handles = [layer.get_submodule("cross_attn").register_forward_hook(record) for layer in model.decoder.layers]
    try:
        yield weights
    finally:
        for handle in handles:
            handle.remove()
