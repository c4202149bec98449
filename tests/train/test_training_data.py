"""What a training says of its sources."""

from pathlib import Path

import pytest
from PIL import Image

from captioner.config import SourceConfig
from captioner.errors import CaptionerError
from captioner.train import training_data


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
