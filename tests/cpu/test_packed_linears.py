import copy

import pytest
import torch
from torch import nn

from captioner.cpu import packed_linears
from captioner.cpu.packed_linears import PackedLinear, multiplies_bf16, pack_linears

pytestmark = pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX"), reason="packing is for x86 CPUs with AVX"
)


@pytest.fixture
def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Sequential(nn.Linear(40, 7, bias=False)))


def test_packed_layers_compute_the_same_and_keep_their_parameters(layers):
    inputs = torch.randn(3, 5, 24)
    expected, parameters = layers(inputs).detach(), dict(layers.named_parameters())
    pack_linears(layers)
    assert isinstance(layers[0], PackedLinear) and isinstance(layers[2][0], PackedLinear)
    with torch.inference_mode():
        torch.testing.assert_close(layers(inputs), expected)
    assert all(parameter is parameters[name] for name, parameter in layers.named_parameters())


def test_layers_in_bf16_are_packed_where_the_processor_takes_them_and_in_fp16_never(layers):
    inputs = torch.randn(3, 5, 24)
    expected = layers(inputs)
    for dtype in (torch.bfloat16, torch.float16):
        rounded = copy.deepcopy(layers).to(dtype)
        pack_linears(rounded)
        assert isinstance(rounded[0], PackedLinear) == (dtype == torch.bfloat16 and multiplies_bf16())
        with torch.inference_mode():
            torch.testing.assert_close(rounded(inputs.to(dtype)).float(), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_packed_layers_that_are_rounded_to_a_type_that_is_not_packed_compute_on(layers, monkeypatch, dtype):
    # as on AVX2, where oneDNN refuses to pack bf16
    monkeypatch.setattr(packed_linears, "multiplies_bf16", lambda: False)
    inputs = torch.randn(3, 5, 24)
    expected = layers(inputs)
    pack_linears(layers)
    with torch.inference_mode():
        layers(inputs)
        torch.testing.assert_close(layers.to(dtype)(inputs.to(dtype)).float(), expected, atol=0.02, rtol=0)
    assert all(layer.packed is None or layer.packed.dtype == torch.float32 for layer in (layers[0], layers[2][0]))


def test_weights_that_change_are_packed_anew(layers):
    pack_linears(layers)
    inputs = torch.randn(2, 24)
    with torch.no_grad():
        layers(inputs)
        layers[0].weight.mul_(-3)
        found = layers(inputs)
    with torch.enable_grad():
        torch.testing.assert_close(found, layers(inputs).detach())


def test_packed_layers_learn_and_can_be_copied(layers):
    pack_linears(layers)
    inputs = torch.randn(2, 24)
    with torch.no_grad():
        expected = layers(inputs)
    layers(inputs).sum().backward()
    assert layers[0].weight.grad is not None and layers[0].weight.grad.abs().sum() > 0
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(layers)(inputs), expected)


def test_packed_layers_compute_in_the_type_of_converted_weights(layers):
    pack_linears(layers)
    inputs = torch.randn(3, 24)
    expected = layers(inputs).detach()
    rounded = copy.deepcopy(layers).to(torch.bfloat16)
    with torch.inference_mode():
        found = rounded(inputs.to(torch.bfloat16))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0)
