"""What is streamed is read once, and is then the same samples, at hand by index."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from PIL import Image

from captioner.config import SourceConfig
from captioner.data.images import load_image
from captioner.data.sources import load_samples
from captioner.data.sources.stream_cache import cache_stream
from captioner.errors import CaptionerError

COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SourceConfig:
    """Three photos saved as a data set: the first has two captions, in rows of their own; the last no label."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [(0, "红色", "warm"), (0, "a red square", "red"), (1, "a green square", "green"), (2, "a blue square", None)]
    images = [{"bytes": _png(COLOURS[index]), "path": None} for index, _, _ in rows]
    table = {"image": images, "caption": [text for _, text, _ in rows], "kind": [kind for _, _, kind in rows]}
    text = datasets.Value("string")
    features = datasets.Features(image=datasets.Image(), caption=text, kind=text)
    datasets.Dataset.from_dict(table, features).save_to_disk(tmp_path / "saved")
    return SourceConfig(path=f"hf:{tmp_path / 'saved'}", streaming=True, label_column="kind")


def _png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("captioned", [True, False])
def test_the_shard_holds_the_samples_of_the_stream(photos: SourceConfig, captioned: bool, tmp_path: Path) -> None:
    source = photos.model_copy(update={"captioned": captioned})
    streamed, _ = load_samples(source)
    samples, skips = load_samples(cache_stream(source, tmp_path / "run", pytest.fail))
    assert [(s.captions, s.labels) for s in samples] == [(s.captions, s.labels) for s in streamed]
    assert [load_image(s.image).getpixel((3, 3)) for s in samples] == COLOURS
    assert not any(isinstance(s.image, bytes) for s in samples)
    assert not skips


def test_a_stream_is_read_once(photos: SourceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cache_stream(photos, tmp_path / "run", pytest.fail)
    monkeypatch.setattr("captioner.data.sources.stream_cache.iter_samples", lambda *_: pytest.fail("read again"))
    assert cache_stream(photos, tmp_path / "run", pytest.fail) == first
    files = SourceConfig(path="photos.csv")
    assert cache_stream(files, tmp_path / "run", pytest.fail) is files


def contents(source: SourceConfig) -> list[tuple[tuple[str, ...], tuple[str, ...], bytes]]:
    return [(s.captions, s.labels, load_image(s.image).tobytes()) for s in load_samples(source)[0]]


def write_photos(folder: Path, *captions: str) -> None:
    """A data set as `datasets` reads folders: one photo a caption."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, _ in enumerate(captions):
        (folder / f"{number}.png").write_bytes(_png(COLOURS[number]))
    rows = [f"{number}.png,{caption},other {caption},{caption}" for number, caption in enumerate(captions)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,caption,second,kind", *rows]) + "\n")


def _other_captions(folder: Path, source: SourceConfig) -> SourceConfig:
    write_photos(folder / "photos", "a kite", "a lake")
    return source


def _another_photo(folder: Path, source: SourceConfig) -> SourceConfig:
    (folder / "photos" / "1.png").write_bytes(_png((9, 9, 9)))
    return source


def _less_photos(folder: Path, source: SourceConfig) -> SourceConfig:
    (folder / "photos" / "1.png").unlink()
    write_photos(folder / "photos", "a dog")
    return source


def _another_folder_of_that_name(folder: Path, source: SourceConfig) -> SourceConfig:
    write_photos(folder / "elsewhere" / "photos", "a kite", "a lake")
    os.chdir(folder / "elsewhere")
    return source


def _another_column(folder: Path, source: SourceConfig) -> SourceConfig:
    return source.model_copy(update={"caption_column": "second"})


def _labels(folder: Path, source: SourceConfig) -> SourceConfig:
    return source.model_copy(update={"label_column": "kind"})


def _no_captions(folder: Path, source: SourceConfig) -> SourceConfig:
    return source.model_copy(update={"captioned": False})


@pytest.mark.parametrize(
    "change",
    [
        _other_captions,
        _another_photo,
        _less_photos,
        _another_folder_of_that_name,
        _another_column,
        _labels,
        _no_captions,
    ],
)
def test_the_shard_of_another_state_of_the_source_is_not_taken_for_this_one(
    change: Callable[[Path, SourceConfig], SourceConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", "a dog", "a cat")
    source = SourceConfig(path="hf:photos", streaming=True)
    before = contents(cache_stream(source, tmp_path / "run", pytest.fail))
    source = change(tmp_path, source)
    clean = contents(cache_stream(source, tmp_path / "clean run", pytest.fail))
    assert contents(cache_stream(source, tmp_path / "run", pytest.fail)) == clean != before


def test_a_weight_changes_no_shard(photos: SourceConfig, tmp_path: Path) -> None:
    first = cache_stream(photos, tmp_path / "run", pytest.fail)
    assert cache_stream(photos.model_copy(update={"weight": 2.0}), tmp_path / "run", pytest.fail).path == first.path


def test_a_stream_that_breaks_off_leaves_nothing(
    photos: SourceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(*_: object):  # type: ignore[no-untyped-def]
        yield load_samples(photos)[0][0]
        raise CaptionerError("the network is gone")

    monkeypatch.setattr("captioner.data.sources.stream_cache.iter_samples", break_off)
    with pytest.raises(CaptionerError, match="the network is gone"):
        cache_stream(photos, tmp_path / "run", pytest.fail)
    assert list((tmp_path / "run").iterdir()) == []
