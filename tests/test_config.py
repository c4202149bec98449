"""A recipe is read as it is meant, or refused by the names of its file and key."""

import os
import re
from pathlib import Path

import pytest

from captioner.config import RunConfig, load_config
from captioner.errors import CaptionerError

CONFIGS = Path(__file__).parents[1] / "configs"

RECIPE = """
output_dir: out
data:
  train: {path: a.csv}
  validation: {path: b.csv}
phases:
  - {name: one, epochs: 1, learning_rates: {decoder: 1e-3}}
  - name: two
    epochs: 2
    learning_rates: {trunk: 1e-4, decoder: 1e-3}
    augmentation: {horizontal_flip: 0.5}
"""

GROUP = """  - repeat: 2
    phases:
      - {name: three, epochs: 2, learning_rates: {decoder: 1e-3}}
      - {name: four, epochs: 1, learning_rates: {trunk: 1e-3}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(CaptionerError) as caught:
        load_config(path, list(overrides))
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_recipe_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in re.findall(r"\$\{(\w+)\}", path.read_text(encoding="utf-8")):
        monkeypatch.setenv(variable, "/somewhere")
    assert isinstance(load_config(path), RunConfig)


def test_a_recipe_is_read_with_its_defaults(recipe: Path) -> None:
    config = load_config(recipe)
    assert [phase.learning_rates for phase in config.phases] == [{"decoder": 1e-3}, {"trunk": 1e-4, "decoder": 1e-3}]
    assert config.phases[0].objectives == {"captioning": 1.0}
    assert not config.phases[0].augmentation.active and config.phases[1].augmentation.active


@pytest.mark.parametrize(
    ("right", "wrong", "key", "nearest"),
    [
        ("output_dir", "ouput_dir", "ouput_dir", "output_dir"),
        ("train:", "trian:", "data.trian", "train"),
        ("{path: b.csv}", "{path: b.csv, spilt: x}", "data.validation.spilt", "split"),
        ("epochs: 2", "epochs: 2\n    label_smothing: 0.1", "phases.1.label_smothing", "label_smoothing"),
        ("horizontal_flip", "horizontal_flips", "phases.1.augmentation.horizontal_flips", "horizontal_flip"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_valid_one(
    recipe: Path, right: str, wrong: str, key: str, nearest: str
) -> None:
    recipe.write_text(RECIPE.replace(right, wrong, 1), encoding="utf-8")
    assert f"{recipe}: unknown key {key!r}; did you mean {nearest!r}?" in refusal(recipe).splitlines()


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("epochs: 2", "epochs: many", "phases.1.epochs: Input should be a valid integer"),
        ("epochs: 2", "epochs: 0", "phases.1.epochs: Input should be greater than or equal to 1"),
        (
            "{trunk: 1e-4",
            "{stem: 1e-4",
            "phases.1.learning_rates.stem: Input should be 'trunk', 'bridge', 'embeddings', 'decoder'",
        ),
        ("trunk: 1e-4", "trunk: .nan", "phases.1.learning_rates.trunk: Input should be a finite number"),
        ("trunk: 1e-4", "trunk: 0", "phases.1.learning_rates: Value error, needs at least one part"),
        ("name: two", "name: one", "Value error, phases: every phase needs a different name"),
        ("{path: b.csv}", "b.csv", "data.validation: Input should be"),
        ("output_dir: out", "seed: 1", "the key 'output_dir' is required"),
        ("name: two", "name: two\n    layer_decay: 2", "phases.1.layer_decay: Input should be less than or equal to 1"),
        ("{decoder: 1e-3}", "{decoder: 1e-3}, layer_decay: 0.5", "layer_decay need a learning rate for trunk"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(recipe: Path, right: str, wrong: str, message: str) -> None:
    recipe.write_text(RECIPE.replace(right, wrong, 1), encoding="utf-8")
    explained = refusal(recipe)
    assert explained.startswith(f"{recipe}: ")
    assert message in explained


def test_files_that_are_no_recipes_are_refused(recipe: Path) -> None:
    missing = recipe.with_name("recpie.yaml")
    assert refusal(missing) == f"{missing}: no such recipe; did you mean {recipe}?"
    recipe.write_text("output_dir: [out", encoding="utf-8")
    assert refusal(recipe).startswith(f"{recipe}: not a YAML file: ")
    recipe.write_bytes(b"\xff\xfe\x00")
    assert refusal(recipe).startswith(f"{recipe}: not a YAML file: ")
    recipe.write_text("- a list", encoding="utf-8")
    assert refusal(recipe) == f"{recipe}: a recipe is a mapping of keys to values"
    recipe.write_text("", encoding="utf-8")
    assert refusal(recipe) == f"{recipe}: a recipe is a mapping of keys to values"


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        (
            "output_dir: out",
            "output_dir: out\noutput_dir: in",
            "the key 'output_dir' occurs twice, in line 2 and in line 3",
        ),
        (
            "  train: {path: a.csv}",
            '  train: {path: a.csv}\n  "train": {path: c.csv}',
            "'train' occurs twice, in line 4 and in line 5",
        ),
        (
            "{path: b.csv}",
            "{path: b.csv, split: val, path: c.csv}",
            "the key 'path' occurs twice, in line 5 and in line 5",
        ),
        ("epochs: 2", "epochs: 2\n    name: three", "the key 'name' occurs twice, in line 8 and in line 10"),
    ],
)
def test_a_key_that_stands_twice_is_named_with_its_file_and_lines(
    recipe: Path, right: str, wrong: str, message: str
) -> None:
    recipe.write_text(RECIPE.replace(right, wrong, 1), encoding="utf-8")
    explained = refusal(recipe)
    assert explained.startswith(f"{recipe}: ") and message in explained


def test_two_sections_of_one_name_are_refused_in_overrides_too(recipe: Path) -> None:
    recipe.write_text(
        f"{RECIPE}optimization: {{batch_size: 8}}\noptimization: {{weight_decay: 0.1}}\n", encoding="utf-8"
    )
    assert refusal(recipe) == f"{recipe}: the key 'optimization' occurs twice, in line 12 and in line 13"
    recipe.write_text(RECIPE, encoding="utf-8")
    override = "optimization={batch_size: 8, batch_size: 16}"
    assert (
        refusal(recipe, override)
        == f"override {override!r}: the key 'batch_size' occurs twice, in line 1 and in line 1"
    )


def test_anchors_and_merged_keys_are_no_doubles(recipe: Path) -> None:
    """Nor is a merged key that is given anew, in a mapping that others merge before it is read itself."""
    recipe.write_text(
        RECIPE.replace("{name: one, epochs: 1,", "&one {<<: {epochs: 3, word_dropout: 0.1}, name: one, epochs: 1,", 1)
        + "  - {<<: *one, name: three, epochs: 4}\n"
        + "  - {<<: *one, <<: {label_smoothing: 0.2}, name: four}\n",
        encoding="utf-8",
    )
    phases = load_config(recipe).phases
    assert [(phase.name, phase.epochs, phase.word_dropout, phase.label_smoothing) for phase in phases] == [
        ("one", 1, 0.1, 0.1), ("two", 2, 0.0, 0.1), ("three", 4, 0.1, 0.1), ("four", 1, 0.1, 0.2)
    ]  # fmt: skip


def test_overrides_reach_sections_and_items_of_lists(recipe: Path) -> None:
    config = load_config(
        recipe,
        ["seed=7", "model.encoder_kwargs.depth=2", "phases.1.epochs=5", "phases.0.augmentation.crop_scale=[0.5, 1]",
         "data.train.path=x=y.csv"],
    )  # fmt: skip
    assert (config.seed, config.model.encoder_kwargs, config.data.train.path) == (7, {"depth": 2}, "x=y.csv")
    assert [phase.epochs for phase in config.phases] == [1, 5]
    assert config.phases[0].augmentation.crop_scale == (0.5, 1.0)
    replaced = load_config(recipe, ["phases.1={name: three, epochs: 9, learning_rates: {decoder: 1}}"])
    assert [phase.name for phase in replaced.phases] == ["one", "three"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "override 'seed': write key=value"),
        ("=3", "override '=3': write key=value"),
        ("seed=[1", "override 'seed=[1': the value is not YAML"),
        ("phases.2.epochs=1", "'2' is not an index below 2"),
        ("phases.2=1", "'2' is not an index below 2"),
        ("phases.-1.epochs=1", "'-1' is not an index below 2"),
        ("phases.².epochs=1", "'²' is not an index below 2"),
        ("phases.one.epochs=1", "'one' is not an index below 2"),
        ("output_dir.name=x", "output_dir is a value and has no keys"),
        ("output_dir.name.first=x", "'name' is a key of a value that has no keys"),
        ("sede=7", "unknown key 'sede'; did you mean 'seed'?"),
        ("model.hiden_size=7", "unknown key 'model.hiden_size'; did you mean 'hidden_size'?"),
    ],
)
def test_an_override_that_goes_nowhere_is_refused(recipe: Path, override: str, message: str) -> None:
    assert message in refusal(recipe, override)


def test_a_group_takes_its_phases_in_turn_each_with_one_schedule(recipe: Path) -> None:
    recipe.write_text(RECIPE + GROUP, encoding="utf-8")
    turns = [(epoch.phase.name, epoch.number, epoch.total) for epoch in load_config(recipe).schedule()[3:]]
    assert turns == [
        ("three", 0, 4), ("three", 1, 4), ("four", 0, 2), ("three", 2, 4), ("three", 3, 4), ("four", 1, 2)
    ]  # fmt: skip
    recipe.write_text(RECIPE + GROUP.replace("{name: four", "{label_smothing: 0.1, name: four"), encoding="utf-8")
    explained = f"{recipe}: unknown key 'phases.2.phases.1.label_smothing'; did you mean 'label_smoothing'?"
    assert refusal(recipe) == explained
    recipe.write_text(RECIPE + GROUP.replace("name: four", "name: one"), encoding="utf-8")
    assert "phases: every phase needs a different name" in refusal(recipe)


def test_variables_are_expanded_or_missed_by_name(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe.write_text(RECIPE.replace("a.csv", '"${CAPTIONER_TEST_DATA}/a.csv"'), encoding="utf-8")
    monkeypatch.delenv("CAPTIONER_TEST_DATA", raising=False)
    assert f"{recipe}: the environment variable CAPTIONER_TEST_DATA is not set" in refusal(recipe)
    monkeypatch.setenv("CAPTIONER_TEST_DATA", os.sep + "photos")
    assert load_config(recipe).data.train.path == "/photos/a.csv"


def test_captions_longer_than_the_decoder_are_refused_before_training(recipe: Path) -> None:
    message = refusal(recipe, "data.max_caption_tokens=65")
    assert "data.max_caption_tokens 65 is above model.max_position_embeddings 64" in message
