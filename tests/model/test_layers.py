import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from captioner.model.layers import attention


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_written_out_for_bfloat16_gradients_is_sdpa(is_causal: bool) -> None:
    query, key, value = torch.randn(3, 2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    mask = None if is_causal else torch.tensor([True, True, False, True, True]).expand(2, 1, 5, 5)
    expected = scaled_dot_product_attention(query, key, value, mask, is_causal=is_causal)
    found = attention(*(tensor.bfloat16().requires_grad_() for tensor in (query, key, value)), mask, is_causal)
    torch.testing.assert_close(found.float(), expected, atol=3e-2, rtol=0)
