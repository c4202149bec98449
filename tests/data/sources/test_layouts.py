"""What holds in every layout: splits, labels, names of images, and sources that are refused."""

import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from layouts import ROWS, photo, table, write_coco, write_csv, write_jsonl, write_karpathy
from loading import load, refusal, skipped


def test_images_are_found_not_decoded(folder: Path) -> None:
    (folder / "images" / "a.jpg").write_bytes(b"")
    assert len(load(write_csv(folder / "shapes.csv", ROWS))) == 3


def test_a_split_that_does_not_exist(folder: Path) -> None:
    from datasets import DatasetDict

    message = refusal(write_karpathy(folder), split="vall", on_error="skip")
    assert "no split 'vall'; there is 'train' (1 rows), 'val' (1 rows), 'restval' (1 rows); did you mean" in message
    assert "did you mean 'val'" in message
    assert "choose one of them: 'train'" in refusal(write_karpathy(folder))
    assert "a COCO file is one split; choose none" in refusal(write_coco(folder), split="val")
    assert "add a column named split, or choose none" in refusal(write_csv(folder / "shapes.csv", ROWS), split="val")
    rows = table(image=["a.jpg"], caption=["a"])
    DatasetDict({"train": rows}).save_to_disk(folder / "single")
    assert "no split 'val'; there is train" in refusal(f"hf:{folder / 'single'}", split="val")
    DatasetDict({"train": rows, "test": rows}).save_to_disk(folder / "saved")
    assert "there is train, test; did you mean 'test'" in refusal(f"hf:{folder / 'saved'}", split="tests")
    assert "choose one of them: train, test" in refusal(f"hf:{folder / 'saved'}")


def test_labels(folder: Path) -> None:
    from datasets import ClassLabel

    rows = [
        {"image": "a.jpg", "caption": "a", "tags": ["red", "square", "red"]},
        {"image": "a.jpg", "caption": "b", "tags": "warm"},
        {"image": "b.jpg", "caption": "b", "tags": None},
    ]
    path = write_jsonl(folder / "shapes.jsonl", rows)
    assert [s.labels for s in load(path, label_column="tags")] == [("red", "square", "warm"), ()]
    assert [s.labels for s in load(path)] == [(), ()]
    classes = table(image=["a.jpg", "b.jpg"], caption=["a", "b"], kind=[1, 0])
    classes = classes.cast_column("kind", ClassLabel(names=["cold", "warm"]))
    classes.save_to_disk(folder / "classes")
    options = {"label_column": "kind", "images": str(folder / "images")}
    for streaming in (False, True):
        samples = load(f"hf:{folder / 'classes'}", streaming=streaming, **options)
        assert [s.labels for s in samples] == [("warm",), ("cold",)]


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.csv") == f"{tmp_path / 'none.csv'}: no such file or folder"
    assert refusal(f"hf:{tmp_path / 'none'}").startswith(f"hf:{tmp_path / 'none'}: ")
    assert "nowhere: no such folder of images" in refusal(write_csv(tmp_path / "x.csv", ROWS), images="nowhere")


def test_a_layout_that_is_not_known(folder: Path) -> None:
    (folder / "shapes.xml").write_text("<a/>")
    assert "unknown layout" in refusal(folder / "shapes.xml")
    for text, reason in [
        ("[]", "neither Karpathy's layout"),
        ("{", "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
    ]:
        (folder / "x.json").write_text(text)
        assert reason in refusal(folder / "x.json")
    (folder / "x.parquet").write_bytes(b"PAR1 and no more")
    assert "x.parquet: not a parquet file: " in refusal(folder / "x.parquet")


def test_a_source_without_one_usable_sample(folder: Path) -> None:
    path = write_csv(folder / "shapes.csv", [("x/a.jpg", "a"), ("x/b.jpg", "b")])
    message = refusal(path, on_error="skip")
    assert message.startswith(f"{path}: no usable sample; the first problem: {path}:2: the image is missing")
    assert "no usable sample" in refusal(write_csv(folder / "shapes.csv", []))


def test_a_file_that_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_csv(folder / "shapes.csv", ROWS)

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", denied)
    assert refusal(path) == f"{path}: Permission denied"


def test_own_files_name_any_image_of_the_user(folder: Path) -> None:
    (folder / "lists").mkdir()
    rows = [(str(folder / "images" / "a.jpg"), "absolute"), (os.path.join("..", "images", "a.jpg"), "climbing")]
    (sample,) = load(write_csv(folder / "lists" / "shapes.csv", rows))
    assert sample.captions == ("absolute", "climbing")


def test_the_chosen_folder_alone_is_searched(folder: Path) -> None:
    (folder / "chosen").mkdir()
    path = write_csv(folder / "shapes.csv", [("a.jpg", "a")])
    assert "'a.jpg' is not in" in refusal(path, images=str(folder / "chosen"))


# Files move between systems that compose letters, separate folders and tell case apart in other ways.
NAMES = [  # on disk, in the source
    (unicodedata.normalize("NFD", "café.jpg"), unicodedata.normalize("NFC", "café.jpg")),
    (unicodedata.normalize("NFC", "café.jpg"), unicodedata.normalize("NFD", "café.jpg")),
    (unicodedata.normalize("NFD", "한글/é.jpg"), unicodedata.normalize("NFC", "한글") + "/" + "e\u0301.jpg"),
    ("sub/1.jpg", "sub\\1.jpg"),
    (unicodedata.normalize("NFD", "é/1.jpg"), unicodedata.normalize("NFC", "é") + "\\1.jpg"),
    ("1.JPG", "1.jpg"),
    ("Photos/1.jpg", "photos/1.JPG"),
]


@pytest.mark.parametrize(("there", "named"), NAMES)
@pytest.mark.parametrize("layout", ["csv", "jsonl", "karpathy", "coco", "parquet", "saved", "folder with a csv"])
def test_names_that_mean_the_same(tmp_path: Path, layout: str, there: str, named: str) -> None:
    photos = tmp_path / "images"
    (photos / there).parent.mkdir(parents=True)
    (photos / there).write_bytes(photo("a.jpg"))
    source: Path | str
    match layout:
        case "csv":
            source = write_csv(tmp_path / "x.csv", [(named, "one"), (there, "two")])
        case "jsonl":
            source = write_jsonl(tmp_path / "x.jsonl", [{"image": named, "caption": ["one", "two"]}])
        case "karpathy":
            sentences = [{"raw": "one"}, {"raw": "two"}]
            source = write_karpathy(tmp_path, [{"filename": named, "filepath": "images", "sentences": sentences}])
        case "coco":
            said = [{"image_id": 1, "caption": "one"}, {"image_id": 1, "caption": "two"}]
            source = write_coco(tmp_path, [{"id": 1, "file_name": named}], said)
        case "parquet":
            source = tmp_path / "x.parquet"
            table(image=[named], caption=[["one", "two"]]).to_parquet(source)
        case "saved":
            table(image=[named], caption=[["one", "two"]]).save_to_disk(photos / "saved")
            source = f"hf:{photos / 'saved'}"
        case "folder with a csv":
            source = write_csv(photos / "metadata.csv", [(named, "one"), (there, "two")]).parent
    options = {"images": str(photos)} if layout == "saved" else {}
    (sample,) = load(source, **options)
    assert (sample.image, sample.captions) == (str(photos / there), ("one", "two"))


def test_the_file_of_the_very_name_comes_first_and_of_several_others_none(folder: Path) -> None:
    photos = folder / "images"
    for name in ("x.jpg", "X.JPG"):
        (photos / name).write_bytes(photo("a.jpg"))
    path = write_csv(folder / "x.csv", [("x.jpg", "one"), ("X.JPG", "two"), ("x.JPG", "three")])
    samples, (skip,) = skipped(path)
    assert [sample.image for sample in samples] == [str(photos / "x.jpg"), str(photos / "X.JPG")]
    assert "'x.JPG' is not in" in skip.reason
