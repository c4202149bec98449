"""hf:NAME: data sets on disk and streamed; those of others stay in their folder and contact no server."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from layouts import CAPTIONS, COLOURS, ROWS, check, check_images, photo, stored, table, write_csv
from loading import load, refusal, skipped

from captioner.config import SourceConfig
from captioner.data.images import load_image
from captioner.data.sources import hf_datasets, iter_samples


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_imagefolder(folder: Path, streaming: bool) -> None:
    write_csv(folder / "images" / "metadata.csv", list(CAPTIONS.items()), header=("file_name", "text"))
    rows = load(f"hf:{folder / 'images'}", caption_column="text", streaming=streaming)
    assert [load_image(s.image).getpixel((3, 3)) for s in rows] == list(COLOURS.values())


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_saved_to_disk(tmp_path: Path, streaming: bool) -> None:
    from datasets import DatasetDict

    rows = stored([name for name, _ in ROWS])
    rows.save_to_disk(tmp_path / "one")
    DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(tmp_path / "two")
    ids: list[str | int] = [0, 2, 3]
    check(load(f"hf:{tmp_path / 'one'}", streaming=streaming), ids)
    check(load(f"hf:{tmp_path / 'two'}", split="train", streaming=streaming), ids)
    assert len(load(f"hf:{tmp_path / 'two'}", split="test", streaming=streaming)) == 1


def test_datasets_streamed_out_of_an_archive(tmp_path: Path) -> None:
    (tmp_path / "zipped").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped" / "train.zip", "w") as archive:
        for name in CAPTIONS:
            archive.writestr(name, photo(name))
        archive.writestr("metadata.jsonl", "".join(json.dumps({"file_name": n, "text": n}) + "\n" for n in CAPTIONS))
    samples = load(f"hf:{tmp_path / 'zipped'}", caption_column="text", streaming=True)
    assert [load_image(s.image).getpixel((3, 3)) for s in samples] == list(COLOURS.values())
    assert [s.captions for s in samples] == [(name,) for name in CAPTIONS]


def test_a_column_divides_a_data_set_of_one_split(folder: Path) -> None:
    table(image=list(CAPTIONS), caption=["a", "b", "c"], split=["train", "val", "train"]).save_to_disk(folder / "s")
    path = f"hf:{folder / 's'}"
    assert [s.id for s in load(path, split="val", images=str(folder / "images"))] == ["b.jpg"]


def test_code_in_a_data_set_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "scripted").mkdir()
    mark = tmp_path / "it ran"
    (tmp_path / "scripted" / "scripted.py").write_text(f"open({str(mark)!r}, 'w')")
    assert "scripts are no longer supported" in refusal(f"hf:{tmp_path / 'scripted'}")
    assert not mark.exists()


def test_data_sets_of_others_stay_in_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    inside, secret = folder / "images", folder / "secret.jpg"
    secret.write_bytes(photo("a.jpg"))
    downloaded = Path(datasets.config.HF_DATASETS_CACHE) / "b.jpg"  # where `datasets` itself unpacks images
    downloaded.write_bytes(photo("b.jpg"))
    names = ["a.jpg", str(downloaded), str(secret), "../secret.jpg", "x/../../secret.jpg"]
    foreign = datasets.DatasetDict({"train": table(image=names, caption=list("abcde"))})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: foreign)
    samples, skips = skipped("hf:someone/photos", images=str(inside))
    assert [s.image for s in samples] == [str(inside / "a.jpg"), str(downloaded)]
    assert len(skips) == 3


def test_names_that_match_otherwise_do_not_lead_out_of_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    (folder / "SECRET.jpg").write_bytes(photo("a.jpg"))
    names = ["a.jpg", "..\\secret.jpg", "../secret.jpg"]
    foreign = datasets.DatasetDict({"train": table(image=names, caption=list("abc"))})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: foreign)
    samples, skips = skipped("hf:someone/photos", images=str(folder / "images"))
    assert (len(samples), len(skips)) == (1, 2)


def test_a_streamed_file_that_is_gone_costs_its_row(folder: Path) -> None:
    path = f"zip://a.jpg::{folder / 'gone.zip'}"
    assert hf_datasets._fetch(path) == path


def test_data_sets_do_not_choose_servers() -> None:
    for path in ("https://example.org/a.jpg", "zip://a.jpg::https://example.org/a.zip", "file:///etc/passwd"):
        assert hf_datasets._fetch(path) == path  # a name, which is then not found


@pytest.mark.parametrize("name", ["csv", "imagefolder", "parquet", "webdataset", "text"])
def test_a_folder_named_like_a_loader_is_that_folder(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)  # whose photos are not those of the data set
    (folder / name).mkdir()
    write_csv(folder / name / "metadata.csv", [("only.png", "of the folder")], header=("file_name", "caption"))
    (folder / name / "only.png").write_bytes(photo("a.jpg"))
    for streaming in (False, True):
        assert [s.captions for s in load(f"hf:{name}", streaming=streaming)] == [("of the folder",)]


@pytest.mark.parametrize("name", ["csv", "imagefolder", "parquet"])
def test_a_loader_is_no_data_set(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert refusal(f"hf:{name}").startswith(f"hf:{name}: a loader of `datasets`, not a data set")


def test_no_name_and_a_name_that_is_a_pattern(folder: Path) -> None:
    assert refusal("hf:") == "hf:: names no data set"
    (folder / "images").rename(folder / "images[1]")
    assert "rename the folder" in refusal(f"hf:{folder / 'images[1]'}")


def test_samples_come_before_the_source_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def endless() -> Any:
        number = 0
        while True:
            name = ("a.jpg", "b.jpg")[number // 2 % 2]
            yield {"image": {"bytes": photo(name), "path": None}, "caption": f"caption {number}"}
            number += 1

    rows = datasets.IterableDataset.from_generator(endless)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.IterableDatasetDict({"train": rows}))
    config = SourceConfig(path="hf:someone/endless", streaming=True)
    stream = iter_samples(config, pytest.fail)
    first, second = next(stream), next(stream)
    assert (first.captions, second.captions) == (("caption 0", "caption 1"), ("caption 2", "caption 3"))
    assert isinstance(first.image, bytes)


def test_each_process_of_a_launch_reads_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored([name for name, _ in ROWS]).save_to_disk(tmp_path / "shapes")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for process in "01":  # training divides the samples; a source that did too would lose half of them
        monkeypatch.setenv("RANK", process)
        assert len(load(f"hf:{tmp_path / 'shapes'}", streaming=True)) == 3


def test_files_do_not_stream() -> None:
    with pytest.raises(ValueError, match="hf:NAME"):
        SourceConfig(path="shapes.csv", streaming=True)


@pytest.mark.parametrize("captioned", [False, True])
def test_images_alone(tmp_path: Path, captioned: bool) -> None:
    rows = stored([name for name, _ in ROWS])
    rows = rows if captioned else rows.remove_columns("caption").select([0, 2, 3])
    rows.to_parquet(tmp_path / "stored.parquet")
    check_images(tmp_path / "stored.parquet", [0, 2, 3] if captioned else [0, 1, 2])
    rows.save_to_disk(tmp_path / "saved")
    check_images(f"hf:{tmp_path / 'saved'}", [0, 2, 3] if captioned else [0, 1, 2], streaming=True)
