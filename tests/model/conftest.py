"""A captioner small enough to run hundreds of times, whose logits are far apart."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from captioner.model.configuration_captioner import CaptionerConfig
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration

TINY: dict[str, Any] = {
    "encoder_name": "vit_tiny_patch16_224",
    "encoder_kwargs": {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
    "image_size": 16,
    "vocab_size": 20,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "dropout": 0.0,
    "initializer_range": 0.4,
}

MakeModel = Callable[..., CaptionerForConditionalGeneration]


@pytest.fixture
def make_model() -> MakeModel:
    """`make_model(field=value, ...)`: the tiny captioner with these fields of its configuration changed."""

    def make(**changes: Any) -> CaptionerForConditionalGeneration:
        torch.manual_seed(0)
        return CaptionerForConditionalGeneration(CaptionerConfig(**{**TINY, **changes})).eval()

    return make
