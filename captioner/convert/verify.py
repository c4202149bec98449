"""Compares a converted model with the original."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from captioner.model.modeling_captioner import CaptionerForConditionalGeneration

LOGITS_TOLERANCE = 1e-4


def largest_difference(original: PreTrainedModel, model: CaptionerForConditionalGeneration) -> float:
    """Return the largest difference between the logits of the two models on random images and tokens.

    It is computed in float64: a trained GPT-2 has logits near 100, which float32 rounds by almost 1e-4. Padding is left
    out of the tokens: where it stands, RoBERTa counts no position.
    """
    config = model.config
    size, longest = config.image_size, min(16, config.max_position_embeddings)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64)
    captions = torch.randint(config.vocab_size - 1, (2, longest), generator=generator)
    captions += captions >= config.pad_token_id
    with torch.inference_mode():
        expected = original_logits(original.double(), images, captions)
        found = model.double()(pixel_values=images, decoder_input_ids=captions).logits
    model.float()
    return float((found - expected).abs().max())


def original_logits(original: PreTrainedModel, images: Tensor, captions: Tensor) -> Tensor:
    """The original's logits [N, T, V] of tokens [N, T]; GIT gives some for the image tokens before them as well."""
    name = "decoder_input_ids" if original.config.is_encoder_decoder else "input_ids"
    return original(pixel_values=images, **{name: captions}).logits[:, -captions.shape[1] :]
