"""A training starts from what is trained: a captioner's encoder, another's decoder with its words, timm's weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed

from captioner.config import RunConfig
from captioner.errors import CaptionerError
from captioner.hub.find import find_model
from captioner.hub.load import load_model
from captioner.training.trainer import Trainer, train

Recipe = Callable[..., RunConfig]
TINY_PHASE = "phases=[{name: joint, steps: 2, learning_rates: {trunk: 0.001, bridge: 0.001, decoder: 0.001}}]"


@pytest.fixture
def run(recipe: Recipe, tmp_path: Path) -> Path:
    train(recipe(TINY_PHASE, f"output_dir={tmp_path / 'first'}"))
    return tmp_path / "first"


def without_tokenizer(config: RunConfig, **pretrained: str) -> RunConfig:
    values = config.model_dump(exclude_unset=True)
    values.pop("tokenizer")
    return RunConfig.model_validate(values | {"pretrained": pretrained})


def test_an_encoder_of_one_captioner_and_the_decoder_of_another(
    recipe: Recipe, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    donor = load_model(*find_model(run))[0].state_dict()
    config = without_tokenizer(recipe("model.hidden_size=48"), encoder=str(run), decoder=str(run))
    with pytest.raises(CaptionerError, match=r"pretrained\.decoder: nothing in .*first has the shape of this model's"):
        Trainer(config.model_copy(update={"output_dir": str(tmp_path / "narrow")}), resume=False)
    trainer = Trainer(without_tokenizer(recipe("model.num_hidden_layers=3"), encoder=str(run), decoder=str(run)), False)
    found = trainer.model.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in donor.items())
    assert any(name.startswith("decoder.layers.2.") for name in found.keys() - donor.keys())
    said = capsys.readouterr().err
    assert f"encoder from {run}: " in said and "new: decoder.layers.2.cross_attn.kv_proj.bias" in said
    assert trainer.processor.tokenizer.get_vocab() == load_model(*find_model(run))[1].tokenizer.get_vocab()


def test_a_run_is_an_encoder_to_start_from_whatever_dots_its_name_has(
    recipe: Recipe, run: Path, tmp_path: Path
) -> None:
    dotted = run.rename(tmp_path / "first.v2")
    donor = load_model(*find_model(dotted))[0].encoder.state_dict()
    found = Trainer(recipe(f"pretrained={{encoder: {dotted}}}"), resume=False).model.encoder.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in donor.items())


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "encoder"])
def test_what_is_trained_learns_on_with_images_of_another_size(recipe: Recipe, run: Path, whole: bool) -> None:
    values = recipe(TINY_PHASE, "model.image_size=48").model_dump(exclude_unset=True)
    if whole:
        values |= {"model": {"image_size": 48}, "pretrained": str(run)}
        values.pop("tokenizer")
    else:
        values["pretrained"] = {"encoder": str(run)}
    expected = load_model(*find_model(run))[0].encoder.state_dict()
    position_embeddings = expected["trunk.model.pos_embed"]
    expected["trunk.model.pos_embed"] = resample_abs_pos_embed(position_embeddings, (6, 6), (4, 4))
    trainer = Trainer(RunConfig.model_validate(values), resume=False)
    found = trainer.model.encoder.state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)
    trainer.run()
    learnt, processor = load_model(*find_model(trainer.folder.path))
    assert learnt.config.image_size == processor.image_processor.preprocessing.image_size == 48
    assert learnt.encoder.state_dict()["trunk.model.pos_embed"].shape == (1, 37, 64)


def test_words_learnt_first_serve_the_captions_after(recipe: Recipe, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("a red square above a blue circle\n" * 64, encoding="utf-8")
    phases = "phases=[{name: words, steps: 2, objectives: {language_modeling: 1}, learning_rates: {decoder: 0.01}}]"
    train(recipe(phases, f"data.text={words}", f"output_dir={tmp_path / 'words'}"))
    config = without_tokenizer(recipe(TINY_PHASE), decoder=str(tmp_path / "words"))
    trainer = Trainer(config, resume=False)
    donor = load_model(*find_model(tmp_path / "words"))[0].state_dict()
    found = trainer.model.state_dict()
    assert all(torch.equal(donor[name], found[name]) for name in donor if name.startswith("decoder."))
    trainer.run()


def test_a_pretrained_captioner_gets_a_tag_head_of_its_own_names(recipe: Recipe, run: Path, tmp_path: Path) -> None:
    values = recipe(
        "phases=[{name: tags, steps: 1, learning_rates: {heads: 0.01}, objectives: {tags: 1.0}}]",
        "tags={source: captions, num_words: 4}",
    ).model_dump(exclude_unset=True)
    for name in ("tokenizer", "model"):
        values.pop(name)
    with_tags = train(RunConfig.model_validate(values | {"pretrained": str(run)}))
    known = load_model(*find_model(with_tags))[0]
    values |= {"pretrained": str(tmp_path / "run"), "output_dir": str(tmp_path / "again")}
    again = Trainer(RunConfig.model_validate(values), resume=False).model
    assert torch.equal(again.heads.tags.weight, known.heads.tags.weight) and len(known.config.tags) == 4
    known.config.tags = [*reversed(known.config.tags)]
    known.save_pretrained(with_tags)
    values["output_dir"] = str(tmp_path / "other")
    others = Trainer(RunConfig.model_validate(values), resume=False).model
    assert not torch.equal(others.heads.tags.weight, known.heads.tags.weight)
    weights = load_file(with_tags / "model.safetensors")
    save_file({name: weights[name] for name in weights if "heads.tags" not in name}, with_tags / "model.safetensors")
    with pytest.raises(CaptionerError, match=r"weights missing or of another shape: heads\.tags\.bias"):
        load_model(with_tags, "damaged", contrastive_size=8)  # a new head does not excuse a lost one


@pytest.mark.parametrize(
    ("pretrained", "message"),
    [
        ("{encoder: lost.safetensors}", r"model: encoder weights lost\.safetensors: not an existing"),
        ("{encoder: lost/folder}", "lost/folder: no such folder"),
        ("{decoder: lost}", "pretrained decoder has its own tokenizer"),
        ("{captioner: default, encoder: lost}", "a captioner has its own encoder and decoder"),
    ],
)
def test_what_cannot_be_loaded_is_named(recipe: Recipe, pretrained: str, message: str) -> None:
    with pytest.raises(CaptionerError, match=message):
        Trainer(recipe(f"pretrained={pretrained}"), resume=False)
