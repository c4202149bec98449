"""Attention weights, which fused kernels do not return, are those of the attention that is computed."""

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from captioner.model.layers import attention
from captioner.model.recording import Recording


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_whose_weights_are_recorded_is_sdpa(is_causal: bool) -> None:
    query, key, value = torch.randn(3, 2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    mask = None if is_causal else torch.tensor([True, True, False, True, True]).expand(2, 1, 5, 5)
    expected = scaled_dot_product_attention(query, key, value, mask, is_causal=is_causal)
    with Recording(torch.nn.ModuleList(), True, False) as recorded:
        torch.testing.assert_close(attention(query, key, value, mask, is_causal), expected)
    (own,) = recorded.weights
    torch.testing.assert_close(own.sum(-1), torch.ones(2, 3, 5))
    assert (own.triu(1) == 0).all() if is_causal else (own[..., 2] == 0).all()


def test_a_model_returns_what_its_layers_computed(make_model: Any) -> None:
    """Two captions an image: each has its own weights over the image, though they are computed as one sequence."""
    model = make_model(encoder_layers=2)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    inputs = torch.tensor([[1, 5, 9], [1, 4, 7], [1, 8, 3], [1, 5, 5]])
    plain = model(images, decoder_input_ids=inputs)
    output = model(images, decoder_input_ids=inputs, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(output.logits, plain.logits)
    tokens = output.encoder_last_hidden_state.shape[1]
    shapes = {name: {tuple(one.shape) for one in output[name]} for name in output if name.endswith(("states", "tions"))}
    assert shapes == {
        "decoder_hidden_states": {(4, 3, 32)},
        "decoder_attentions": {(4, 2, 3, 3)},
        "cross_attentions": {(4, 2, 3, tokens)},
        "encoder_hidden_states": {(2, tokens, 32)},
        "encoder_attentions": {(2, 2, tokens, tokens)},
    }
    assert [len(output[name]) for name in shapes] == [3, 2, 2, 3, 2]
    assert torch.equal(output.encoder_hidden_states[-1], output.encoder_last_hidden_state)
    torch.testing.assert_close(model.lm_head(output.decoder_hidden_states[-1]), output.logits)
    alone = model(images[1:], decoder_input_ids=inputs[3:], output_attentions=True)
    alone.cross_attentions[1].retain_grad()
    alone.logits.sum().backward()
    assert alone.cross_attentions[1].grad is not None
    torch.testing.assert_close(alone.cross_attentions[1][0], output.cross_attentions[1][3])


def test_generate_returns_attentions(make_model: Any) -> None:
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    output = make_model().generate(images, output_attentions=True, output_hidden_states=True, **options)
    assert len(output.cross_attentions) == len(output.decoder_hidden_states) == 4
    assert output.cross_attentions[0][0].shape == (2, 2, 1, 5) and len(output.encoder_hidden_states) == 1


def test_attentions_of_an_image_prefix_are_refused_by_name(make_model: Any) -> None:
    model = make_model(image_prefix=True)
    with pytest.raises(ValueError, match="output_attentions is not supported with image_prefix"):
        model(torch.zeros(1, 3, 16, 16), decoder_input_ids=torch.tensor([[1]]), output_attentions=True)
