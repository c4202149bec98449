"""Graphs beside a model's weights read them there, caption as torch does, and are never used with other weights."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from captioner.errors import CaptionerError
from captioner.hub.load import load_model, save_model
from captioner.infer import choose_backend
from captioner.infer.captioner import Captioner
from captioner.infer.export_format import find_graphs

for library in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(library, reason=f"an export is made for these tests: {library}, of 'captioner[export]'")

import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from captioner.export.onnx import export_in_place  # noqa: E402
from captioner.export.stored_weights import read_weights_from  # noqa: E402
from captioner.infer.onnx_backend import OnnxBackend  # noqa: E402
from captioner.infer.torch_backend import TorchBackend  # noqa: E402


@pytest.fixture(scope="module")
def in_place(tagged_captioner: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tagged_captioner` with weights in half precision, and graphs beside them. Not to be written to."""
    folder = tmp_path_factory.mktemp("in_place") / "model"
    model, processor = load_model(tagged_captioner, "tagged")
    save_model(model.half(), processor, folder)
    before = (folder / "model.safetensors").read_bytes()
    agreement = export_in_place(folder)
    assert agreement.equal_tokens == 1 and agreement.difference < 1e-4
    assert (folder / "model.safetensors").read_bytes() == before
    return folder


@pytest.fixture
def copy(in_place: Path, tmp_path: Path) -> Path:
    return shutil.copytree(in_place, tmp_path / "copy")


@pytest.mark.parametrize("options", [{"num_beams": 1}, {"num_return_sequences": 2}, {"do_sample": True, "seed": 3}])
def test_graphs_caption_as_torch_does_with_the_same_weights(in_place, photos, options):
    captioner = Captioner.from_pretrained(in_place, device="cpu")
    assert isinstance(captioner.backend, OnnxBackend) and captioner.precision == "fp32"
    expected = Captioner.from_pretrained(in_place, device="cpu", backend="torch")(photos, **options)
    for found in (captioner(photos, **options), [captioner(photo, **options) for photo in photos]):
        assert [caption.text for caption in found] == [caption.text for caption in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.confidence == pytest.approx(other.confidence, rel=1e-3)
            assert [tag.text for tag in one.tags] == [tag.text for tag in other.tags]


def test_graphs_hold_no_weights_of_their_own(in_place):
    matrices = [value for value in load_file(in_place / "model.safetensors").values() if value.numel() >= 512]
    names = set()
    for name in ("encoder.onnx", "decoder.onnx"):
        graph = onnx.load(in_place / name, load_external_data=False).graph
        assert all(len(tensor.raw_data) < 1024 for tensor in graph.initializer)
        names |= {tensor.name for tensor in graph.initializer if tensor.data_location == TensorProto.EXTERNAL}
        onnxruntime.InferenceSession(in_place / name)  # any other program finds the weights as well
    assert len(names) >= len(matrices) > 5


def test_graphs_of_other_weights_are_not_used_and_a_warning_says_so(copy, photos, caplog):
    weights = load_file(copy / "model.safetensors")
    weights["decoder.norm.weight"] = -weights["decoder.norm.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    captioner = Captioner.from_pretrained(copy, device="cpu")
    assert isinstance(captioner.backend, TorchBackend)
    assert caplog.messages == [
        f"{copy}: its ONNX graphs are of other weights; captioner export --in-place writes them anew"
    ]
    with pytest.raises(CaptionerError, match="its ONNX graphs are of other weights"):
        Captioner.from_pretrained(copy, backend="onnx")
    before = captioner(photos[0])
    export_in_place(copy)
    found = Captioner.from_pretrained(copy, backend="onnx")(photos[0])
    assert found.text == before.text


def test_what_graphs_lack_loads_torch_and_says_so_once(in_place, photos, caplog):
    captioner = Captioner.from_pretrained(in_place, device="cpu")
    expected = Captioner.from_pretrained(in_place, device="cpu", backend="torch")(photos[0], forced_words="red")
    with caplog.at_level(logging.WARNING):
        assert [captioner(photos[0], forced_words="red") for _ in range(2)] == [expected] * 2
    assert caplog.messages == [f"{in_place}: torch is loaded, because the ONNX graphs have no forced words"]
    assert isinstance(captioner.backend, TorchBackend)
    with pytest.raises(CaptionerError, match="an exported model has no forced words"):
        Captioner.from_pretrained(in_place, backend="onnx")(photos[0], forced_words="red")


def test_graphs_are_chosen_on_a_cpu_in_their_precision_alone(in_place, exported, tiny_captioner, monkeypatch):
    for arguments in ({"dtype": "bf16"}, {"backend": "torch"}):
        assert isinstance(Captioner.from_pretrained(in_place, device="cpu", **arguments).backend, TorchBackend)
    for arguments in ({"dtype": torch.float32}, {"device": "cpu"}, {"backend": "onnx"}):
        assert isinstance(Captioner.from_pretrained(in_place, **arguments).backend, OnnxBackend)
    monkeypatch.setattr(choose_backend, "has_accelerator", lambda: True)
    assert isinstance(Captioner.from_pretrained(in_place).backend, TorchBackend)
    assert isinstance(Captioner.from_pretrained(in_place, device="cpu").backend, OnnxBackend)
    assert isinstance(Captioner.from_pretrained(exported).backend, OnnxBackend), "there is nothing else"


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("in_place", {"backend": "tensorrt"}, "backend 'tensorrt': choose auto, torch, onnx"),
        ("in_place", {"backend": "onnx", "device": "cuda"}, "runs on the CPU, in the precision it was exported in"),
        ("in_place", {"backend": "onnx", "dtype": "fp16"}, "runs on the CPU, in the precision it was exported in"),
        ("tiny_captioner", {"backend": "onnx"}, "has no ONNX graphs; captioner export --in-place writes them"),
        ("exported", {"backend": "torch"}, "exported; torch needs the model that it was made from"),
    ],
)
def test_a_backend_that_cannot_caption_with_a_model_is_an_error(request, model, arguments, message):
    with pytest.raises(CaptionerError, match=message):
        Captioner.from_pretrained(request.getfixturevalue(model), **arguments)


def test_one_stream_holds_the_weights_once(in_place, photos):
    def loaded(captioner: Captioner) -> set[str]:
        return {"on_all_threads", "on_half_the_threads"} & vars(captioner.backend).keys()

    alone, several, singly = (Captioner.from_pretrained(in_place, device="cpu") for _ in range(3))
    assert loaded(alone) == set()
    alone(photos[0]), several(photos), singly(photos, batch_size=1)
    assert loaded(alone) == {"on_all_threads"}
    assert loaded(several) == loaded(singly) == {"on_half_the_threads"}


def test_graphs_that_were_written_only_in_part_are_not_used(copy):
    (copy / "graphs.json").unlink()
    assert find_graphs(copy) is None
    (copy / "model.safetensors").unlink()
    with pytest.raises(CaptionerError, match="exported in an older format; export the model again"):
        Captioner.from_pretrained(copy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_constant_becomes_a_read_of_the_tensor_that_it_is_transposed_or_not(tmp_path, dtype):
    torch.manual_seed(0)
    stored = {"a": torch.randn(16, 24).to(dtype), "b": torch.randn(24, 40).to(dtype), "n": torch.ones(3)}
    save_file(stored, tmp_path / "model.safetensors")
    first, second = stored["a"].float().T.numpy(), stored["b"].float().numpy()
    constants = [
        numpy_helper.from_array(np.ascontiguousarray(first), "first"),
        numpy_helper.from_array(second, "second"),
        numpy_helper.from_array(np.full((40, 40), 0.5, np.float32), "own"),
    ]
    nodes = [
        helper.make_node("Transpose", ["first"], ["whole"]),
        helper.make_node("MatMul", ["whole", "second"], ["product"]),
        helper.make_node("MatMul", ["product", "own"], ["out"]),
    ]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [16, 40])
    model = helper.make_model(helper.make_graph(nodes, "g", [], [out], constants), ir_version=10)
    onnx.save(model, tmp_path / "g.onnx")
    read_weights_from(tmp_path / "g.onnx", tmp_path / "model.safetensors")
    graph = onnx.load(tmp_path / "g.onnx", load_external_data=False).graph
    kept = {tensor.name: tensor for tensor in graph.initializer}
    external = {name for name, tensor in kept.items() if tensor.data_location == TensorProto.EXTERNAL}
    assert external == {"a, stored", "b, stored"} and kept.keys() - external == {"own"}
    (found,) = onnxruntime.InferenceSession(tmp_path / "g.onnx").run(None, {})
    np.testing.assert_allclose(found, first.T @ second @ np.full((40, 40), 0.5, np.float32), rtol=1e-4, atol=1e-4)


def test_the_format_says_which_weights_the_graphs_read(in_place, exported):
    content = json.loads((in_place / "graphs.json").read_text())
    assert content["precision"] == "fp32" and len(content["weights"]) == 64
    assert json.loads((exported / "graphs.json").read_text())["weights"] is None
