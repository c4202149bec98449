"""What `captioner export` writes is the model, or it is not written."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from captioner import cli
from captioner.errors import CaptionerError
from captioner.infer.captioner import Captioner

for library in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(library, reason=f"an export is made for these tests: {library}, of 'captioner[export]'")

import onnx  # noqa: E402

from captioner.export import onnx as module  # noqa: E402
from captioner.export.onnx import OPSET, export_model  # noqa: E402


def then_branch(choice: onnx.NodeProto) -> onnx.GraphProto:
    return next(attribute.g for attribute in choice.attribute if attribute.name == "then_branch")


@pytest.fixture
def graphs_of_the_export(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is exported gets the graphs of the model, which saves the seconds of tracing."""

    decoder = onnx.load(exported / "decoder.onnx")
    *nodes, choice = decoder.graph.node  # of whether to compute attention, which an export makes last
    attention = then_branch(choice)
    del decoder.graph.node[:], decoder.graph.input[-1]
    attention.node[-1].output[:] = ["attention"]
    decoder.graph.node.extend([*nodes, *attention.node])

    def copy(folder: Path, network: object, precision: str, fuses: bool = True) -> None:
        shutil.copy(exported / "encoder.onnx", folder)
        onnx.save(decoder, folder / "decoder.onnx")

    monkeypatch.setattr(module, "_write_graphs", copy)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 1},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 3},
        {"num_beams": 3, "length_penalty": 0.0},
        {"num_beams": 3, "length_penalty": 2.0, "min_new_tokens": 6},
        {"num_beams": 2, "max_new_tokens": 4, "prefix": "a red", "banned_words": ["green"]},
        {"do_sample": True, "seed": 3, "top_p": 0.9, "num_return_sequences": 2},
    ],
)
def test_an_export_captions_as_its_model_does(tagged_captioner, exported, photos, options):
    expected = Captioner.from_pretrained(tagged_captioner, device="cpu")(photos, **options)
    captioner = Captioner.from_pretrained(exported)
    captions = captioner(photos, batch_size=3, **options)
    singly = captioner(photos * 2, batch_size=1, **options)[:5]  # eight are decoded together, and then the last two
    assert [caption.text for caption in singly] == [caption.text for caption in captions]
    assert len({caption.text for caption in expected}) > 1, "equal captions would hide a wrong order"
    assert any(caption.tags for caption in expected)
    for caption, true in zip(captions, expected, strict=True):
        assert [tag.text for tag in caption.tags] == [tag.text for tag in true.tags]
        assert [tag.score for tag in caption.tags] == pytest.approx([tag.score for tag in true.tags], rel=1e-3)
        for one, other in zip((caption, *caption.alternatives), (true, *true.alternatives), strict=True):
            assert one.text == other.text
            assert [token.text for token in one.tokens] == [token.text for token in other.tokens]
            assert one.confidence == pytest.approx(other.confidence, rel=1e-3)


def test_the_graphs_have_the_opset_and_the_free_dimensions_they_should(exported):
    assert json.loads((exported / "graphs.json").read_text())["opset"] == OPSET
    decoder = onnx.load(exported / "decoder.onnx")
    assert {entry.domain: entry.version for entry in decoder.opset_import}[""] == OPSET
    dimensions = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in decoder.graph.input
    }
    assert dimensions["input_ids"] == ["batch", "captions"]
    assert dimensions["self_key_0"] == ["rows", "past", 32]
    assert dimensions["cross_value_1"][0] == "batch", "an image's captions share its keys and values"


def test_attention_is_computed_only_on_request(exported):
    """ONNX Runtime computes what nobody fetches, too."""
    decoder = onnx.load(exported / "decoder.onnx")
    choice = decoder.graph.node[-1]
    assert (choice.op_type, list(choice.input), list(choice.output)) == ("If", ["with_attention"], ["attention"])
    assert "Softmax" in {node.op_type for node in then_branch(choice).node}
    assert "Softmax" not in {node.op_type for node in decoder.graph.node}


@pytest.mark.usefixtures("graphs_of_the_export")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_graphs_that_disagree_with_the_model_are_not_written(tagged_captioner, tmp_path, precision):
    other = tmp_path / "other"
    shutil.copytree(tagged_captioner, other)
    weights = load_file(other / "model.safetensors")
    weights["decoder.norm.weight"] = -weights["decoder.norm.weight"]
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(CaptionerError, match=rf"not exported, since the {precision} export disagrees"):
        export_model(other, tmp_path / "out", precision)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


@pytest.mark.usefixtures("graphs_of_the_export")
@pytest.mark.parametrize(("precision", "type_name"), [("fp16", "FLOAT16"), ("int8", "INT8")])
def test_other_precisions_store_their_weights_so(tagged_captioner, tmp_path, photos, monkeypatch, precision, type_name):
    monkeypatch.setitem(module.EQUAL_TOKENS, precision, 0.5)  # random weights are no measure of what quantisation costs
    export_model(tagged_captioner, tmp_path / "out", precision)
    decoder = onnx.load(tmp_path / "out" / "decoder.onnx")
    assert onnx.TensorProto.DataType.Value(type_name) in {tensor.data_type for tensor in decoder.graph.initializer}
    assert Captioner.from_pretrained(tmp_path / "out")(photos[0]).text


@pytest.mark.usefixtures("graphs_of_the_export")
def test_the_generation_settings_of_a_checkpoint_are_the_defaults_of_its_export(tagged_captioner, tmp_path, photos):
    other = shutil.copytree(tagged_captioner, tmp_path / "other")
    settings = json.loads((other / "generation_config.json").read_text())
    settings |= {"num_beams": 2, "max_length": 7, "min_new_tokens": 5, "no_repeat_ngram_size": 1, "length_penalty": 0.5}
    (other / "generation_config.json").write_text(json.dumps(settings))
    export_model(other, tmp_path / "out")
    captioner = Captioner.from_pretrained(tmp_path / "out")
    same = {"num_beams": 2, "max_new_tokens": 6, "min_new_tokens": 5, "no_repeat_ngram_size": 1, "length_penalty": 0.5}
    expected = Captioner.from_pretrained(tagged_captioner, device="cpu")(photos, **same)
    assert [caption.text for caption in captioner(photos)] == [caption.text for caption in expected]
    assert max(len(caption.tokens) for caption in captioner(photos, max_new_tokens=9)) == 9
    assert captioner.backend.defaults == same


def test_its_card_says_what_it_is(exported, tagged_captioner):
    card = ModelCard.load(exported / "README.md")
    assert card.data.to_dict() == {"library_name": "captioner", "pipeline_tag": "image-to-text"}
    for words in (f"# {tagged_captioner}, exported to ONNX (fp32)", 'Captioner.from_pretrained("fp32")'):
        assert words in card.text


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["captioner", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "{model}", "{tmp}"), "exists already"),
        (("export", "{model}", "{tmp}/no/where"), "no folder"),
        (("export", "{model}", "{tmp}/out", "--precision", "int3"), "precision 'int3': choose fp32, fp16, int8"),
        (("export", "{tmp}/none", "{tmp}/out"), "no such folder"),
        (("export", "{exported}", "{tmp}/out"), "exported already"),
        (("annotate", "{photo}", "--model", "{exported}", "--precision", "bf16"), "an exported model runs on the CPU"),
        (("annotate", "{photo}", "--model", "{exported}", "--forced-word", "dog"), "has no forced words"),
    ],
)
def test_mistakes_cost_one_line(tagged_captioner, exported, photos, tmp_path, monkeypatch, capsys, arguments, message):
    names = {"model": tagged_captioner, "exported": exported, "photo": photos[0], "tmp": tmp_path}
    assert run(monkeypatch, *(argument.format(**names) for argument in arguments)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_annotates_with_an_export(exported, photos, monkeypatch, capsys):
    assert run(monkeypatch, "annotate", photos[0], "--model", exported) == 0
    expected = Captioner.from_pretrained(exported)(photos[0]).text
    assert capsys.readouterr().out == f"{photos[0]}\t{expected}\n"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_full_disk_costs_one_line_and_leaves_nothing(tagged_captioner, tmp_path, precision, full_disk):
    with pytest.raises(CaptionerError, match=r"out: cannot be written: .*File too large"), full_disk():
        export_model(tagged_captioner, tmp_path / "out", precision)
    assert list(tmp_path.iterdir()) == []
