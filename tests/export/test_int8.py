"""Attention of whole numbers is attention, nearly."""

import shutil

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

for library in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(library, reason=f"an export is made for these tests: {library}, of 'captioner[export]'")

import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from loading import load_exported  # noqa: E402
from onnxruntime.transformers.onnx_model import OnnxModel  # noqa: E402

from captioner.export import int8  # noqa: E402
from captioner.export import onnx as module  # noqa: E402
from captioner.export.rewrites import split_projections  # noqa: E402
from captioner.hub.load import load_model  # noqa: E402
from captioner.infer.captioner import Captioner  # noqa: E402


def error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Of the size of what is expected."""
    return float(np.abs(actual - expected).mean() / np.abs(expected).mean())


def saturates() -> bool:
    """Do ONNX Runtime's products of uint8 by int8 stop at what 16 bits hold, as they may on x86 without VNNI?"""
    numbers = {"ones": np.full((4, 64), 255, np.uint8), "others": np.full((64, 32), 127, np.int8)}
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in (numbers | {"products": np.zeros((4, 32), np.int32)}).items()
    ]
    product = onnx.helper.make_node("MatMulInteger", ["ones", "others"], ["products"])
    graph = onnx.helper.make_graph([product], "product", values[:2], values[2:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    (products,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, numbers)
    return bool((products != 64 * 255 * 127).any())


needs_exact_int8 = pytest.mark.skipif(
    saturates(), reason="ONNX Runtime's int8 products saturate on this processor, which has no VNNI"
)


class Attention(nn.Module):
    def __init__(self, mask: Tensor | None, scale: float | None) -> None:
        super().__init__()
        self.mask, self.scale = mask, scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, self.mask, scale=self.scale)


@pytest.mark.parametrize(
    ("spread", "mask", "scale", "tolerance"),
    [
        pytest.param(1.0, None, None, 0.03, marks=needs_exact_int8),
        # A hundred tokens seen alike: a scale for all rows would leave each one bit.
        pytest.param(0.01, None, None, 0.03, marks=needs_exact_int8),
        pytest.param(2.0, None, 0.5, 0.05, marks=needs_exact_int8),  # few tokens seen
        (1.0, torch.ones(100, 100).tril().bool(), None, 1e-5),
    ],
)
def test_an_encoders_attention_is_what_it_was(tmp_path, spread, mask, scale, tolerance):
    torch.manual_seed(0)
    attention = Attention(mask, scale)
    states = [spread * torch.randn(2, 3, 100, 16), spread * torch.randn(2, 3, 100, 16), torch.randn(2, 3, 100, 16)]
    path, batch = tmp_path / "attention.onnx", torch.export.Dim("batch")
    names = ["query", "key", "value"]
    module._write_graph(path, attention, tuple(states), names, ["context"], ({0: batch},) * 3, int8.attention)
    session = onnxruntime.InferenceSession(path)
    (context,) = session.run(None, {name: state.numpy() for name, state in zip(names, states, strict=True)})
    assert error(context, attention(*states).numpy()) < tolerance
    zeros = [np.zeros((1, 3, 100, 16), np.float32)] * 3
    assert not session.run(None, dict(zip(names, zeros, strict=True)))[0].any()


@needs_exact_int8
def test_attention_to_images_is_what_it_was_for_one_caption_and_for_beams(
    tagged_captioner, exported, photos, tmp_path, caplog
):
    whole = shutil.copytree(exported, tmp_path / "whole")
    network, _ = load_model(tagged_captioner, "model")
    module._write_graphs(whole, network.eval(), "int8")  # weights are in fp32 still
    operators = [node.op_type for node in onnx.load(whole / "encoder.onnx").graph.node]
    assert "MatMulInteger" in operators and "Attention" not in operators
    token_ids = np.random.default_rng(0).integers(0, 20, (3, 4, 5))
    logits: list[list[np.ndarray]] = []
    for folder in (exported, whole):
        model = load_exported(folder)
        size = model.settings.preprocessing.image_size
        states, _ = model.encode(np.random.default_rng(1).standard_normal((3, 3, size, size), dtype=np.float32))
        for captions in (1, 4):
            decoder, rows = model.steps(states), np.arange(3)[:, None].repeat(captions, axis=1)
            logits.append([])
            for step in range(5):
                logits[-1].append(decoder.logits(token_ids[:, :captions, step], rows))
                rows = np.arange(3 * captions).reshape(3, captions)
    for true, found in ((logits[0], logits[2]), (logits[1], logits[3])):
        assert error(np.stack(found), np.stack(true)) < 0.015
    kinds = {value.name: value.type for value in model.decoder.session.get_inputs()}
    assert kinds["cross_key_0"] == kinds["cross_value_1"] == "tensor(int8)"
    for graph in ("encoder.onnx", "decoder.onnx"):
        module._convert(whole / graph, "int8")
    assert Captioner.from_pretrained(whole)(photos[0], num_beams=3).text
    assert "quantized" not in caplog.text, "attention in int8 is not a model quantised before"


def test_projecting_queries_keys_and_values_apart_changes_nothing(exported):
    before, after = onnx.load(exported / "encoder.onnx"), onnx.load(exported / "encoder.onnx")
    split_projections(OnnxModel(after))
    slices = [sum(node.op_type == "Slice" for node in encoder.graph.node) for encoder in (before, after)]
    assert slices[0] > 0 and slices[1] == 0
    (size,) = {value.type.tensor_type.shape.dim[2].dim_value for value in before.graph.input}
    pixels = {"pixel_values": np.random.default_rng(0).standard_normal((2, 3, size, size), dtype=np.float32)}
    expected, outputs = (
        onnxruntime.InferenceSession(encoder.SerializeToString()).run(None, pixels) for encoder in (before, after)
    )
    for one, other in zip(expected, outputs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
