"""Features are read again only where they would come out the same."""

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from captioner.config import DataConfig, SourceConfig
from captioner.data.dataset import CaptionDataset
from captioner.data.sources import Sample, load_samples
from captioner.errors import CaptionerError
from captioner.hub.load import load_model
from captioner.training.feature_cache import cache_features, delete_unusable

Name = Callable[..., str]


@pytest.fixture
def name(tiny_captioner: Path, tmp_path: Path) -> Name:
    """The file that the features of these samples are kept in, the model being changed as told."""
    accelerator = Accelerator(cpu=True)

    def cached(
        samples: Sequence[Sample], precision: str = "no", pooling: int = 1, scale: int = 1, **preprocessing: Any
    ) -> str:
        model, processor = load_model(tiny_captioner, "tiny", encoder_pooling=pooling)
        for field, value in preprocessing.items():
            setattr(processor.image_processor, field, value)
        dataset = CaptionDataset(samples, processor, DataConfig(train={"path": "x"}, validation={"path": "x"}))
        dataset.min_size *= scale
        stand_in = SimpleNamespace(
            mixed_precision=precision,
            is_main_process=True,
            process_index=0,
            num_processes=1,
            device=torch.device("cpu"),
            autocast=accelerator.autocast,
            wait_for_everyone=accelerator.wait_for_everyone,
        )
        folder = tmp_path / "features"
        before = set(folder.glob("*"))
        store = cache_features(model, dataset, folder, stand_in, 4, 0, lambda batch: None)
        assert len(store) == len(samples)
        new = set(folder.glob("*")) - before
        return new.pop().name if new else "as before"

    return cached


def encoded(color: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), color).save(file, "BMP")
    return file.getvalue()


def parquet(path: Path, *colors: str) -> list[Sample]:
    """As many rows and bytes, whatever the colours."""
    rows = [
        {"image": {"bytes": encoded(color), "path": None}, "caption": [f"row {i}"]} for i, color in enumerate(colors)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return load_samples(SourceConfig(path=str(path)))[0]


def test_a_photo_in_a_table_is_known_by_what_it_shows(name: Name, tmp_path: Path) -> None:
    path = tmp_path / "photos.parquet"
    first = name(parquet(path, "red", "green"))
    assert name(parquet(path, "red", "green")) == "as before"
    assert name(parquet(path, "red", "blue")) not in (first, "as before")
    assert name(parquet(path, "green", "red")) not in (first, "as before")


def test_a_file_that_was_replaced_is_noticed_though_size_and_time_are_the_same(name: Name, tmp_path: Path) -> None:
    photo = tmp_path / "photo.bmp"
    photo.write_bytes(encoded("red"))
    status = photo.stat()
    samples = [Sample("photo", str(photo), ("a photo",))]
    name(samples)
    assert name(samples) == "as before"
    photo.write_bytes(encoded("blue"))
    os.utime(photo, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert photo.stat().st_size == status.st_size and photo.stat().st_mtime_ns == status.st_mtime_ns
    assert name(samples) != "as before"


@pytest.mark.parametrize("image", [encoded("red"), Image.new("RGB", (32, 32), "red")], ids=["bytes", "decoded"])
def test_all_that_shapes_features_is_in_their_name(name: Name, image: Any) -> None:
    samples = [Sample("photo", image, ("a photo",))]
    names = [
        name(samples),
        name(samples, pooling=2),
        name(samples, precision="bf16"),
        name(samples, resize_mode="pad"),
        name(samples, scale=2),
        name([Sample("photo", encoded("blue"), ("a photo",))]),
    ]
    assert len(set(names)) == 6 and "as before" not in names
    assert (
        name([Sample("photo", image.copy() if isinstance(image, Image.Image) else image, ("other words",))])
        == "as before"
    )


def test_features_that_are_damaged_are_named(name: Name, tmp_path: Path) -> None:
    samples = [Sample("photo", encoded("red"), ("a photo",))]
    path = tmp_path / "features" / name(samples)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CaptionerError, match=rf"{path}: damaged"):
        name(samples)


def test_stores_of_another_trunk_are_deleted_and_those_of_this_one_stay(name: Name, tmp_path: Path) -> None:
    folder, samples = tmp_path / "features", [Sample("photo", encoded("red"), ("a photo",))]
    kept, others = name(samples), [Sample("photo", encoded("blue"), ("a photo",))]
    also_kept, other_trunk = name(others), name(samples, pooling=2)
    (folder / f"{other_trunk}.part").touch()
    delete_unusable(folder, kept.partition("-")[0])
    assert {path.name for path in folder.iterdir()} == {kept, also_kept}
    delete_unusable(folder, None)
    assert not list(folder.iterdir())
