"""Operations that are slow in bfloat16 on a CPU compute the same in another way, only where gradients are needed."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captioner.cpu.bfloat16_gradients import fast_bfloat16_gradients
from captioner.model.configuration_captioner import CaptionerConfig
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"attn_mask": torch.tensor([True, True, False, True, True]).expand(2, 1, 5, 5)},
        {"attn_mask": torch.tensor([0.0, 1.0, -torch.inf, 0.5, 0.0], dtype=torch.bfloat16).expand(2, 1, 5, 5)},
        {"scale": 0.5, "dropout_p": 0.0},
    ],
    ids=["plain", "causal", "boolean mask", "added mask", "scale"],
)
def test_attention_is_sdpa(options: dict[str, Any]) -> None:
    tensors = torch.randn(3, 2, 3, 5, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    gradients = []
    for context in (nullcontext, fast_bfloat16_gradients):
        query, key, value = (tensor.clone().requires_grad_() for tensor in tensors)
        with context():
            found = F.scaled_dot_product_attention(query, key, value, **options)
            assert ("Attention" in type(found.grad_fn).__name__) == (context is nullcontext)
            found.float().sum().backward()
        gradients.append([found, query.grad, key.grad, value.grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=3e-2, rtol=3e-2)


def test_a_depthwise_convolution_that_needs_a_gradient_is_computed_in_float32() -> None:
    torch.manual_seed(0)
    depthwise, dense = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3)
    images = torch.randn(2, 8, 9, 9)
    exact = depthwise(images)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = dense(images)
        with fast_bfloat16_gradients():
            assert torch.equal(depthwise(images), exact.bfloat16()) and torch.equal(dense(images), rounded)
            with torch.no_grad():
                assert not torch.equal(depthwise(images), exact.bfloat16())
            depthwise.requires_grad_(False)
            assert not torch.equal(depthwise(images), exact.bfloat16()), "frozen, it stays in bfloat16"


@pytest.mark.parametrize(
    "encoder", [("vit_tiny_patch16_224", {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}),
                ("test_efficientnet", {})],
    ids=["ViT", "CNN"],
)  # fmt: skip
def test_a_whole_model_learns_the_same_with_and_without_gradient_checkpointing(encoder: Any) -> None:
    """Checkpointing repeats the forward pass in the backward pass, which has to compute in the same way."""
    name, kwargs = encoder
    config = CaptionerConfig(
        encoder_name=name, encoder_kwargs=kwargs, image_size=64, encoder_layers=1, hidden_size=32, vocab_size=20,
        num_attention_heads=2, num_hidden_layers=1, dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = CaptionerForConditionalGeneration(config).train()
    pixels, labels = torch.randn(2, 3, 64, 64), torch.tensor([[5, 9, 4, 2], [8, 3, 2, -100]])
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        with fast_bfloat16_gradients():
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(pixels, labels=labels).loss
            loss.backward()
        found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-4)
