"""A training prints what it skips of its sources, and computes the batches of a step once."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from captioner.config import OptimizationConfig, PhaseConfig, SourceConfig, Stretch
from captioner.data.dataset import epoch_places
from captioner.errors import CaptionerError
from captioner.training import training_data
from captioner.training.training_data import TrainingData


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "x.csv").write_text("image,caption\na.png,a dog\na.png,...\n")
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"x.csv:3: the caption holds no word: '...' \(on_error: skip leaves it out\)$"),
        ({"image_column": "photo"}, r"no column 'photo'; there is .* \(image_column names another\)$"),
        ({"split": "val"}, r"x.csv: no row has a split, 'val' or other; add a column named split, or choose none$"),
    ],
)
def test_advice_names_the_recipes_own_keys(photos: Path, settings: dict[str, str], message: str) -> None:
    with pytest.raises(CaptionerError, match=message):
        training_data._load_source(SourceConfig(path=str(photos / "x.csv"), **settings), photos, pytest.fail)


def test_what_is_left_out_is_said(photos: Path) -> None:
    said: list[str] = []
    (sample,) = training_data._load_source(
        SourceConfig(path=str(photos / "x.csv"), on_error="skip"), photos, said.append
    )
    (photos / "words.txt").write_text("a dog\n...\n")
    assert sample.captions == ("a dog",)
    assert training_data._load_text(str(photos / "words.txt"), said.append) == ["a dog"]
    assert said == [
        f"skipped {photos}/x.csv:3: the caption holds no word: '...'",
        f"{photos}/x.csv: 1 skipped, 1 kept",
        f"skipped {photos}/words.txt:2: the caption holds no word: '...'",
        f"{photos}/words.txt: 1 skipped, 1 kept",
    ]


class WeightedImages:
    """A data set of 23 images, as often as their weights say: epochs of 26 to 31 places."""

    weights = [0.3, 2.0, 1.0, 0.5] * 5 + [1.0, 3.0, 0.2]

    def __len__(self) -> int:
        return len(self.weights)

    def lengths(self) -> list[int]:
        return [index % 7 for index in range(len(self))]

    def places(self, epoch: int) -> list[tuple[int, int]]:
        return epoch_places(len(self), epoch, self.weights)

    def epoch_size(self, epoch: int) -> int:
        return len(self.places(epoch))


def test_turns_counted_in_steps_take_every_step_once_and_compute_each_epoch_at_most_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = object.__new__(TrainingData)
    data.config = SimpleNamespace(seed=3, optimization=OptimizationConfig(batch_size=2, gradient_accumulation_steps=2))
    data._epoch_starts = {}
    images: Any = WeightedImages()
    by_epoch = PhaseConfig(name="a", epochs=1, learning_rates={"decoder": 1.0})
    expected = [
        step
        for epoch in range(12)
        for step in data.steps(images, Stretch(by_epoch, 0, 1), epoch, process=1, processes=2)
    ]
    computed: list[int] = []
    batches = training_data.bucketed_batches

    def counted(lengths: list[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
        computed.append(epoch)
        return batches(lengths, batch_size, seed, epoch)

    monkeypatch.setattr(training_data, "bucketed_batches", counted)
    by_step = PhaseConfig(name="b", steps=3, learning_rates={"decoder": 1.0})
    turns = len(expected) // 3
    found = [
        step
        for turn in range(turns)
        for step in data.steps(images, Stretch(by_step, turn, turns), 99, process=1, processes=2)
    ]
    assert found == expected[: 3 * turns] and len({len(images.places(epoch)) for epoch in range(12)}) > 2
    assert len(computed) <= 2 * turns  # a turn of 3 steps lies in one epoch of 7 or 8, or in two
    data._epoch_starts = {}
    assert data.steps(images, Stretch(by_step, 5, turns), 99, process=1, processes=2) == expected[15:18]  # resumed
