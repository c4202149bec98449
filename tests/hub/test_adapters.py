"""An adapter in PEFT's files is merged into the model that it is for, wherever it is named, and into no other."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from captioner import Captioner
from captioner.errors import CaptionerError
from captioner.export.onnx import export_model
from captioner.hub.adapters import merge_adapter
from captioner.hub.load import load_model

PIXELS = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
TOKENS = torch.tensor([[1, 5, 6, 7]])


@pytest.fixture(scope="module")
def adapter(tiny_captioner: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As somebody trains one with PEFT alone."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("adapter")
    layers = ["qkv_proj", "kv_proj", "out_proj", "qkv"]
    adapted = get_peft_model(load_model(tiny_captioner, "tiny")[0], LoraConfig(r=2, target_modules=layers))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(folder)
    return folder


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(pixel_values=PIXELS, decoder_input_ids=TOKENS).logits


def test_merging_gives_the_logits_of_peft(tiny_captioner: Path, adapter: Path) -> None:
    plain, model = load_model(tiny_captioner, "tiny")[0], load_model(tiny_captioner, "tiny")[0]
    assert merge_adapter(model, adapter) == str(adapter)
    expected = logits(PeftModel.from_pretrained(load_model(tiny_captioner, "tiny")[0], str(adapter)))
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    assert (logits(plain) - expected).abs().max() > 1e-2
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_captions_and_exports_are_those_of_the_merged_model(
    tiny_captioner: Path, adapter: Path, photos: list[Path], tmp_path: Path
) -> None:
    captioner = Captioner.from_pretrained(tiny_captioner, adapter=adapter)
    captions = [caption.text for caption in captioner(photos)]
    assert captions != [caption.text for caption in Captioner.from_pretrained(tiny_captioner)(photos)]
    assert captioner.name == f"{tiny_captioner} with {adapter}"
    export_model(tiny_captioner, tmp_path / "exported", adapter=adapter)
    assert [caption.text for caption in Captioner.from_pretrained(tmp_path / "exported")(photos)] == captions


def test_an_export_takes_no_adapter(exported: Path, adapter: Path) -> None:
    with pytest.raises(CaptionerError, match="an exported model takes no adapter; export the model with it"):
        Captioner.from_pretrained(exported, adapter=adapter)


def change(adapter: Path, folder: Path, **changes: object) -> Path:
    copy = shutil.copytree(adapter, folder)
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | changes))
    return copy


@pytest.mark.parametrize(
    "changes",
    [{"target_modules": ["no_such_layer"]}, {"target_modules": ["qkv"]}, {"r": 3}, {"peft_type": "IA3"}, {"r": "x"}],
    ids=str,
)
def test_an_adapter_of_another_model_is_refused(
    tiny_captioner: Path, adapter: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    model, _ = load_model(tiny_captioner, "tiny")
    with pytest.raises(CaptionerError, match=r"wrong: does not fit this model: [^\n]+$"):
        merge_adapter(model, change(adapter, tmp_path / "wrong", **changes))


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_without_its_files_is_none_and_pickles_stay_unread(
    tiny_captioner: Path, adapter: Path, tmp_path: Path, file: str
) -> None:
    copy = shutil.copytree(adapter, tmp_path / "copy")
    (copy / file).rename(copy / "adapter_model.bin")
    with pytest.raises(CaptionerError, match=f"not an adapter: the folder has no {file}"):
        merge_adapter(load_model(tiny_captioner, "tiny")[0], copy)
