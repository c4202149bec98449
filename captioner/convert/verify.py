"""Compares a converted model with the original."""

import torch
from transformers import PreTrainedModel

from captioner.model.modeling_captioner import CaptionerForConditionalGeneration

LOGITS_TOLERANCE = 1e-4


def largest_difference(original: PreTrainedModel, model: CaptionerForConditionalGeneration) -> float:
    """Return the largest difference between the logits of the two models on random images and tokens.

    It is computed in float64: a trained GPT-2 has logits near 100, which float32 rounds by almost 1e-4.
    """
    size, longest = model.config.image_size, min(16, model.config.max_position_embeddings)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64)
    captions = torch.randint(model.config.vocab_size, (2, longest), generator=generator)
    with torch.inference_mode():
        expected = original.double()(pixel_values=images, decoder_input_ids=captions).logits
        found = model.double()(pixel_values=images, decoder_input_ids=captions).logits
    model.float()
    return float((found - expected).abs().max())
