"""Checkpoints of transformers' VisionEncoderDecoderModel become captioners that compute the same, or nothing at all.

Their weights are random and their sizes tiny; their kinds, names and files are those of the published ones.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from public_checkpoints import END, save_checkpoint
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import DeiTConfig, ViTConfig

from captioner import cli
from captioner.config import RunConfig
from captioner.convert import convert_model, decoders, encoders
from captioner.data.captions import encode_texts
from captioner.errors import CaptionerError
from captioner.hub.load import load_model
from captioner.infer.captioner import Captioner
from captioner.infer.tokenizer import load_tokenizer
from captioner.training.trainer import Trainer, train

KINDS = ("vit, gpt2", "deit, gpt2")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By kind. Not to be written to."""
    folders = {kind: tmp_path_factory.mktemp("checkpoint") for kind in KINDS}
    for kind, folder in folders.items():
        save_checkpoint(kind, folder)
    return folders


@pytest.fixture(scope="module")
def converted(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("converted")
    for number, source in enumerate(checkpoints.values()):
        assert convert_model(source, folder / str(number)) < 1e-9
    return {kind: folder / str(number) for number, kind in enumerate(checkpoints)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(8)]
    for number, path in enumerate(paths):
        pixels = generator.integers(0, 256, (5 + number, 9, 3), dtype=np.uint8)  # coarse: the pictures differ
        Image.fromarray(pixels).resize((70, 50 + number), Image.Resampling.NEAREST).save(path)
    return paths


def test_the_checkpoints_tested_have_the_names_of_the_published_ones(checkpoints):
    names = load_file(checkpoints["vit, gpt2"] / "model.safetensors").keys()
    assert {
        "encoder.embeddings.cls_token",
        "encoder.embeddings.patch_embeddings.projection.weight",
        "encoder.encoder.layer.1.attention.attention.query.bias",
        "encoder.encoder.layer.1.attention.output.dense.weight",
        "encoder.encoder.layer.1.intermediate.dense.weight",
        "encoder.pooler.dense.weight",
        "decoder.transformer.h.1.crossattention.q_attn.weight",
        "decoder.transformer.h.1.ln_cross_attn.weight",
        "decoder.transformer.wte.weight",
    } <= names
    assert "encoder.embeddings.distillation_token" in load_file(checkpoints["deit, gpt2"] / "model.safetensors")


def test_its_card_says_where_it_comes_from_and_how_to_use_it(checkpoint, tmp_path):
    (checkpoint / "README.md").write_text("---\nlicense: mit\n---\n\n# The original\n")
    convert_model(checkpoint, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.to_dict() == {"license": "mit", "library_name": "captioner", "pipeline_tag": "image-to-text"}
    for words in (f"# {checkpoint}, converted", 'Captioner.from_pretrained("out")', "# The original"):
        assert words in card.text


@pytest.mark.parametrize("is_marked", [True, False], ids=["special", "ordinary in the file"])
def test_text_that_spells_a_special_token_stays_text(checkpoint, tmp_path, is_marked):
    change(checkpoint / "tokenizer.json", "added_tokens", 0, "special", value=is_marked)
    convert_model(checkpoint, tmp_path / "out")
    tokenizer = load_model(tmp_path / "out", "out")[1].tokenizer
    exported = load_tokenizer(tmp_path / "out")
    for text in (f"a sign that says {END} now", END, f"dog{END}s"):
        ids = tokenizer(text).input_ids
        assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert exported.encode(text) == encode_texts(tokenizer, [text])[0] == ids[:-1]


def test_banned_and_forced_words_are_spelled_as_in_the_middle_of_a_caption(converted):
    """GPT-2 has a token for " dogs" and others for "dogs"."""
    captioner = Captioner.from_pretrained(converted["vit, gpt2"], device="cpu")
    words = captioner.word_options(" two dogs ", ["dogs", " play  in "], "dogs")
    (within,), (alone,) = (encode_texts(captioner.backend.processor.tokenizer, [text]) for text in (" dogs", "dogs"))
    start = captioner.backend.model.config.decoder_start_token_id
    assert within != alone
    assert words["force_words_ids"] == (tuple(within),)
    assert words["bad_words_ids"][0] == tuple(within) and (start, *alone) in words["bad_words_ids"]
    texts = [captioner.backend.tokenizer.decode(ids) for ids in words["bad_words_ids"]]
    assert texts == [" dogs", " play in", "dogs", "play in"]
    assert captioner.backend.processor.tokenizer.decode(words["prefix_ids"]) == "two dogs"


@pytest.fixture
def recipe(photos: list[Path], tmp_path: Path) -> dict[str, Any]:
    lines = [{"image": str(photo), "caption": "a bus in the street"} for photo in photos]
    data = tmp_path / "captions.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return {
        "output_dir": str(tmp_path / "run"),
        "data": {"train": {"path": str(data)}, "validation": {"path": str(data)}, "max_caption_tokens": 24},
        "optimization": {"batch_size": 8},
        "phases": [
            {"name": "cached", "steps": 40, "learning_rates": {"decoder": 0.01}},
            {"name": "joint", "steps": 2, "learning_rates": {"trunk": 1e-5, "bridge": 1e-4, "decoder": 1e-4}},
        ],
    }


def test_another_encoder_learns_with_its_decoder(converted, recipe):
    trunk = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 24}
    recipe["model"] = {"encoder_name": "vit_tiny_patch16_224", "encoder_kwargs": trunk, "image_size": 32, **sizes}
    recipe["pretrained"] = {"decoder": str(converted["vit, gpt2"])}
    model = Trainer(RunConfig.model_validate(recipe), resume=False).model
    donor, _ = load_model(converted["vit, gpt2"], "vit")
    torch.testing.assert_close(model.decoder.state_dict(), donor.decoder.state_dict())
    for field in ("decoder_start_token_id", "eos_token_id", "hidden_act"):
        assert getattr(model.config, field) == getattr(donor.config, field)


def test_it_learns_on(converted, photos, recipe, tmp_path):
    recipe["pretrained"] = {"captioner": str(converted["vit, gpt2"])}
    train(RunConfig.model_validate(recipe))
    assert Captioner.from_pretrained(tmp_path / "run", device="cpu")(photos[0]).text == "a bus in the street"


WITHOUT_TORCH = """
import sys
sys.modules.update(dict.fromkeys(["torch", "torchvision", "transformers", "timm", "sentencepiece"]))
from captioner import Captioner

print(Captioner.from_pretrained(sys.argv[1])(sys.argv[2]).text)
"""


def test_it_is_exported_and_captions_without_torch(converted, photos, tmp_path):
    for library in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(library, reason=f"an export is made for this test: {library}, of 'captioner[export]'")
    from captioner.export.onnx import export_model

    export_model(converted["deit, gpt2"], tmp_path / "exported")
    expected = Captioner.from_pretrained(converted["deit, gpt2"], device="cpu")(photos)
    found = Captioner.from_pretrained(tmp_path / "exported")(photos)
    assert [caption.text for caption in found] == [caption.text for caption in expected]
    assert [token.text for token in found[0].tokens] == [token.text for token in expected[0].tokens]
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "exported"), str(photos[0])]
    finished = subprocess.run(command, check=False, capture_output=True, text=True, encoding="utf-8")
    assert finished.stdout == expected[0].text + "\n", finished.stderr


def test_timm_names_are_used_where_they_fit(monkeypatch):
    def trunk(encoder: type, **sizes: int) -> tuple[str, dict[str, Any]]:
        settings = encoders.vision_transformer(encoder(**sizes), "encoder").settings
        return settings["encoder_name"], settings["encoder_kwargs"]

    assert trunk(ViTConfig) == ("vit_base_patch16_224", {})
    assert trunk(ViTConfig, image_size=384, patch_size=32) == ("vit_base_patch32_224", {})
    small = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    assert trunk(DeiTConfig, **small) == ("deit_small_distilled_patch16_224", {})
    shape = {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 12, "mlp_ratio": 4.0}
    assert trunk(ViTConfig, **{**small, "num_attention_heads": 12}) == ("vit_base_patch16_224", shape)


@pytest.fixture
def checkpoint(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """One to be damaged."""
    return shutil.copytree(checkpoints["vit, gpt2"], tmp_path / "checkpoint")


def change(file: Path, *path: str, value: Any) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(content), encoding="utf-8")


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_files_as_old_releases_wrote_them_are_read(checkpoints, checkpoint, tmp_path, kind):
    """Shards, pickles, causal masks among the weights, vocab.json with merges.txt, a feature extractor, one name for
    the tie."""
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    path.unlink()
    weights["decoder.transformer.h.0.attn.bias"] = torch.ones(1, 1, 24, 24).tril()
    weights["decoder.transformer.h.0.crossattention.masked_bias"] = torch.tensor(-1e4)
    weights["decoder.lm_head.weight"] = weights.pop("decoder.transformer.wte.weight")
    stem, save = ("model", save_file) if kind == "safetensors" else ("pytorch_model", torch.save)
    for number in (1, 2):
        names = sorted(weights)[number - 1 :: 2]
        save({name: weights[name] for name in names}, checkpoint / f"{stem}-0000{number}-of-00002.{kind}")
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    (checkpoint / "tokenizer.json").unlink()
    tokenizer.model.save(str(checkpoint))
    words = {"tokenizer_class": "GPT2Tokenizer", "bos_token": END, "eos_token": END, "unk_token": END}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(words))
    (checkpoint / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()))
    picture = {"feature_extractor_type": "ViTFeatureExtractor", "do_resize": True, "size": 32, "resample": 2}
    colours = {"do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (checkpoint / "preprocessor_config.json").write_text(json.dumps(picture | colours))

    convert_model(checkpoint, tmp_path / "old")
    convert_model(checkpoints["vit, gpt2"], tmp_path / "new")
    old, new = (load_model(tmp_path / name, name) for name in ("old", "new"))
    torch.testing.assert_close(old[0].state_dict(), new[0].state_dict())
    assert old[1].image_processor.preprocessing == new[1].image_processor.preprocessing
    assert old[1].tokenizer("a man").input_ids == new[1].tokenizer("a man").input_ids


def spoil(folder: Path, what: str) -> None:
    config = folder / "config.json"
    match what:
        case "another model":
            change(config, "model_type", value="clip")
        case "another encoder":
            change(config, "encoder", value={"model_type": "clip_vision_model"})
        case "another decoder":
            change(config, "decoder", value={"model_type": "opt"})
        case "scaled layers":
            change(config, "decoder", "scale_attn_by_inverse_layer_idx", value=True)
        case "unscaled attention":
            change(config, "decoder", "scale_attn_weights", value=False)
        case "an activation":
            change(config, "decoder", "activation_function", value="magic")
        case "the encoder's activation":
            change(config, "encoder", "hidden_act", value="relu")
        case "a word for a number":
            change(config, "decoder", "n_layer", value="two")
        case "oblong images":
            change(config, "encoder", "image_size", value=[32, 64])
        case "no end":
            change(folder / "generation_config.json", "eos_token_id", value=50256)
        case "missing weights":
            change_weights(folder, lambda weights: weights.pop("decoder.transformer.h.1.ln_2.bias"))
        case "unknown weights":
            change_weights(folder, lambda weights: weights.update({"decoder.adapter.weight": torch.ones(2)}))
        case "cut weights":
            path = folder / "model.safetensors"
            path.write_bytes(path.read_bytes()[:-8])
        case "a pickle":
            (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        case "no preprocessing":
            (folder / "preprocessor_config.json").unlink()
        case "other preprocessing":
            change(folder / "preprocessor_config.json", "size", value={"height": 48, "width": 48})
        case "another filter":
            change(folder / "preprocessor_config.json", "resample", value=4)
        case "no rescaling":
            change(folder / "preprocessor_config.json", "do_rescale", value=False)
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "nothing":
            shutil.rmtree(folder)
            folder.mkdir()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "another model",
            "a 'clip' model, which transformers reads as VisionEncoderDecoderModel; convert reads vision",
        ),
        ("another encoder", "its encoder is 'clip_vision_model'; convert reads vit, deit, beit, swin"),
        ("another decoder", "its decoder is 'opt'; convert reads gpt2, bert, roberta, trocr"),
        ("scaled layers", "its decoder has scale_attn_by_inverse_layer_idx True; a captioner has False"),
        ("unscaled attention", "its decoder has scale_attn_weights False; a captioner has True"),
        ("an activation", "its decoder's activation 'magic' is unknown"),
        ("the encoder's activation", "its encoder has hidden_act 'relu'; a captioner has 'gelu'"),
        ("a word for a number", "n_layer"),
        ("oblong images", "its images or patches are not square"),
        ("no end", "its eos_token_id is 50256, not one of its decoder's 301 tokens"),
        ("missing weights", "weights missing: decoder.transformer.h.1.ln_2.bias"),
        ("unknown weights", "weights unknown: decoder.adapter.weight"),
        ("cut weights", "cannot be converted"),
        ("a pickle", "pytorch_model.bin: damaged, or not written by torch.save"),
        ("no preprocessing", "there is no preprocessor_config.json or"),
        ("other preprocessing", "its image processor makes images of 48 pixels, its encoder takes 32"),
        ("no rescaling", "its image processor does not resize, rescale by 1/255 and normalize"),
        ("another filter", "cannot be converted"),
        ("no tokenizer", "there is no tokenizer.json or vocab.json"),
        ("nothing", "there is no config.json"),
    ],
)
def test_what_cannot_be_converted_costs_one_line_and_leaves_nothing(
    checkpoint, tmp_path, monkeypatch, capsys, what, message
):
    spoil(checkpoint, what)
    monkeypatch.setattr(sys, "argv", ["captioner", "convert", str(checkpoint), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    err = capsys.readouterr().err
    assert end.value.code == 2
    assert err.startswith(f"error: {checkpoint}: ") and message in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_model_that_would_disagree_is_not_written(checkpoint, tmp_path, monkeypatch):
    swapped = {**decoders.GPT2_LAYER, "self_attn_norm": "ln_2", "mlp_norm": "ln_1"}
    monkeypatch.setattr(decoders, "GPT2_LAYER", swapped)
    with pytest.raises(CaptionerError, match="not converted, because its logits and ours would differ by"):
        convert_model(checkpoint, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_what_exists_is_not_overwritten(checkpoint, tmp_path):
    with pytest.raises(CaptionerError, match="exists already"):
        convert_model(checkpoint, tmp_path)
    with pytest.raises(CaptionerError, match="no folder"):
        convert_model(checkpoint, tmp_path / "no" / "where")


def test_a_full_disk_costs_one_line_and_leaves_nothing(checkpoints, tmp_path, full_disk):
    with pytest.raises(CaptionerError, match=r"out: cannot be written: .*File too large"), full_disk():
        convert_model(checkpoints["vit, gpt2"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_converts_and_captions(checkpoint, photos, tmp_path, monkeypatch, capsys):
    for arguments in (["convert", checkpoint, tmp_path / "out"], ["annotate", photos[0], "--model", tmp_path / "out"]):
        monkeypatch.setattr(sys, "argv", ["captioner", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
    said, captioned = capsys.readouterr().out.splitlines()
    assert said.startswith(f"{tmp_path / 'out'}: logits within ") and said.endswith(f"of those of {checkpoint}")
    assert captioned.startswith(f"{photos[0]}\t")
