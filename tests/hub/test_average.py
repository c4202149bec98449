"""The mean of several trainings' weights: right, a model like any other, and only of models that are the same."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from captioner.cli import app
from captioner.errors import CaptionerError
from captioner.hub.average import average_models
from captioner.hub.load import load_model


@pytest.fixture
def changed(tiny_captioner: Path, tmp_path: Path) -> Callable[[str, Callable[[Tensor], Tensor]], Path]:
    def copy(name: str, change: Callable[[Tensor], Tensor]) -> Path:
        folder = shutil.copytree(tiny_captioner, tmp_path / name)
        weights = load_file(folder / "model.safetensors")
        save_file(
            {key: change(tensor) for key, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"}
        )
        return folder

    return copy


def test_the_mean_of_three_is_a_captioner(
    tiny_captioner: Path, changed: Callable[[str, Callable[[Tensor], Tensor]], Path], tmp_path: Path
) -> None:
    changed("b", lambda tensor: tensor + 3)
    changed("run/best", lambda tensor: tensor * 4)
    sources = [str(tiny_captioner), str(tmp_path / "b"), str(tmp_path / "run")]  # a training's folder: its best
    done = CliRunner().invoke(app, ["average", *sources, "-o", str(tmp_path / "mean")])
    assert done.exit_code == 0, done.output
    before = load_model(tiny_captioner, "tiny")[0].state_dict()
    after = load_model(tmp_path / "mean", "mean")[0].state_dict()
    assert after.keys() == before.keys()
    assert all(torch.allclose(after[key], before[key] * 2 + 1, atol=1e-5) for key in before)
    assert "the mean of" in (tmp_path / "mean" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "unlike"),
    [
        ({"num_hidden_layers": 3}, "num_hidden_layers"),
        ({"num_attention_heads": 4}, "num_attention_heads"),  # weights of the same shapes
        ({"image_size": 64}, r"encoder\.trunk\.model\.pos_embed"),
    ],
)
def test_what_is_not_the_same_model_is_refused(
    tiny_captioner: Path, tmp_path: Path, changes: dict[str, int], unlike: str
) -> None:
    model, processor = load_model(tiny_captioner, "tiny")
    for field, value in changes.items():
        setattr(model.config, field, value)
    type(model)(model.config).save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    with pytest.raises(CaptionerError, match=rf"other: differs from .* in {unlike}$"):
        average_models([tiny_captioner, tmp_path / "other"], tmp_path / "mean")
    assert not list(tmp_path.glob("mean*"))


def test_one_model_alone_and_one_of_other_words_are_refused(tiny_captioner: Path, tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match="default: its vocabulary differs from "):
        average_models([tiny_captioner, "default"], tmp_path / "mean")
    with pytest.raises(CaptionerError, match="needs two or more models"):
        average_models([tiny_captioner], tmp_path / "mean")
    assert not list(tmp_path.glob("mean*"))


def test_a_full_disk_costs_one_line_and_leaves_nothing(tiny_captioner: Path, tmp_path: Path, full_disk: Any) -> None:
    with pytest.raises(CaptionerError, match=r"mean: cannot be written: .*File too large"), full_disk():
        average_models([tiny_captioner, tiny_captioner], tmp_path / "mean")
    assert list(tmp_path.iterdir()) == []
