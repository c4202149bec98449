"""What is streamed is read once, and is then the same samples, at hand by index."""

import io
from pathlib import Path

import datasets
import pytest
from PIL import Image

from captioner.config import SourceConfig
from captioner.data.images import load_image
from captioner.data.sources import load_samples
from captioner.data.streamed import stored
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
    samples, skips = load_samples(stored(source, tmp_path / "run", pytest.fail))
    assert [(s.captions, s.labels) for s in samples] == [(s.captions, s.labels) for s in streamed]
    assert [load_image(s.image).getpixel((3, 3)) for s in samples] == COLOURS
    assert not any(isinstance(s.image, bytes) for s in samples)
    assert not skips


def test_a_stream_is_read_once(photos: SourceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = stored(photos, tmp_path / "run", pytest.fail)
    monkeypatch.setattr("captioner.data.streamed.iter_samples", lambda *_: pytest.fail("read again"))
    assert stored(photos, tmp_path / "run", pytest.fail) == first
    files = SourceConfig(path="photos.csv")
    assert stored(files, tmp_path / "run", pytest.fail) is files


def test_a_stream_that_breaks_off_leaves_nothing(
    photos: SourceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(*_: object):  # type: ignore[no-untyped-def]
        yield load_samples(photos)[0][0]
        raise CaptionerError("the network is gone")

    monkeypatch.setattr("captioner.data.streamed.iter_samples", break_off)
    with pytest.raises(CaptionerError, match="the network is gone"):
        stored(photos, tmp_path / "run", pytest.fail)
    assert list((tmp_path / "run").iterdir()) == []
