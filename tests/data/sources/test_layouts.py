"""Every layout gives the same samples; every mistake in one is named with its file and row, at the cost chosen."""

import csv
import io
import json
import os
import pickle
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import pytest
from loading import load, refusal, skipped
from PIL import Image

from captioner.config import SourceConfig
from captioner.data.images import load_image
from captioner.data.sources import Sample, Skip, hf_datasets, iter_samples, tables
from captioner.data.sources.stored_images import StoredImage

CAPTIONS = {
    "a.jpg": ("a red square", "something red"),
    "b.jpg": ("a blue square",),
    "c.jpg": ("绿色的方块", "مربع أخضر"),
}
COLOURS = {"a.jpg": (255, 0, 0), "b.jpg": (0, 0, 255), "c.jpg": (0, 255, 0)}
ROWS = [(name, caption) for name, captions in CAPTIONS.items() for caption in captions]


def photo(name: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), COLOURS[name]).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds images/a.jpg, b.jpg, c.jpg."""
    (tmp_path / "images").mkdir()
    for name in CAPTIONS:
        (tmp_path / "images" / name).write_bytes(photo(name))
    return tmp_path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def write_karpathy(folder: Path, images: list[dict[str, Any]] | None = None) -> Path:
    if images is None:
        images = [
            {
                "filename": name,
                "filepath": "images",
                "cocoid": i,
                "split": split,
                "sentences": [{"raw": c} for c in said],
            }
            for i, ((name, said), split) in enumerate(zip(CAPTIONS.items(), ["train", "val", "restval"], strict=True))
        ]
    path = folder / "dataset_shapes.json"
    path.write_text(json.dumps({"images": images, "dataset": "shapes"}))
    return path


def write_coco(folder: Path, images: list[Any] | None = None, annotations: list[Any] | None = None) -> Path:
    names = list(CAPTIONS)
    tree = {
        "images": images or [{"id": 10 + i, "file_name": name} for i, name in enumerate(names)],
        "annotations": annotations
        or [{"id": k, "image_id": 10 + names.index(name), "caption": c} for k, (name, c) in enumerate(ROWS)],
    }
    path = folder / "captions_val2017.json"
    path.write_text(json.dumps(tree))
    return path


def write_csv(
    path: Path, rows: list[Any], delimiter: str = ",", header: tuple[str, ...] = ("image", "caption")
) -> Path:
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def table(**columns: list[Any]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict(columns)


def stored(names: list[str]) -> Any:
    """An image column that holds the files themselves, all by the same name, as some tables on the Hub do."""
    from datasets import Image as ImageFeature

    cells = [{"bytes": photo(name), "path": "image.png"} for name in names]
    return table(image=cells, caption=[caption for _, caption in ROWS]).cast_column("image", ImageFeature())


class TestLayouts:
    """Written one way and another, the three images come out the same."""

    def check(self, samples: list[Sample], ids: list[str | int] | None = None) -> None:
        assert [sample.captions for sample in samples] == list(CAPTIONS.values())
        assert [sample.id for sample in samples] == (ids or list(CAPTIONS))
        assert [load_image(sample.image).getpixel((3, 3)) for sample in samples] == list(COLOURS.values())
        assert pickle.loads(pickle.dumps(samples)) == samples

    def test_karpathy(self, folder: Path) -> None:
        path = write_karpathy(folder)
        assert [s.id for s in load(path, split="train")] == [0, 2]  # restval counts as train
        assert [s.id for s in load(path, split="restval")] == [2]
        self.check(load(path, split="train")[:1] + load(path, split="val") + load(path, split="restval"), [0, 1, 2])
        moved = folder / "elsewhere"
        (folder / "images").rename(moved)
        assert len(load(path, split="train", images=str(moved))) == 2

    def test_karpathy_prefers_coco_ids(self, folder: Path) -> None:
        image = {"filename": "a.jpg", "cocoid": 391895, "sentences": [{"raw": "a"}]}
        assert load(write_karpathy(folder, [image]))[0].id == 391895

    def test_coco(self, folder: Path) -> None:
        self.check(load(write_coco(folder)), [10, 11, 12])

    def test_coco_as_its_archive_unpacks(self, folder: Path) -> None:
        (folder / "annotations").mkdir()
        (folder / "images").rename(folder / "val2017")
        self.check(load(write_coco(folder / "annotations")), [10, 11, 12])

    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
    def test_csv(self, folder: Path, delimiter: str) -> None:
        self.check(load(write_csv(folder / "shapes.csv", ROWS, delimiter)))

    def test_csv_with_rows_in_any_order_and_captions_that_need_quotes(self, folder: Path) -> None:
        rows = [
            ("a.jpg", 'a "red", square'),
            ("b.jpg", "two\nlines"),
            ("a.jpg", " padded "),
            ("./images/a.jpg", "same"),
        ]
        first, second = load(write_csv(folder / "shapes.csv", rows))
        assert first.captions == ('a "red", square', "padded", "same")
        assert second.captions == ("two lines",)

    def test_jsonl(self, folder: Path) -> None:
        self.check(load(write_jsonl(folder / "flat.jsonl", [{"image": n, "caption": c} for n, c in ROWS])))
        self.check(load(write_jsonl(folder / "list.jsonl", [{"image": n, "caption": c} for n, c in CAPTIONS.items()])))

    def test_parquet_of_names(self, folder: Path) -> None:
        names, captions = zip(*ROWS, strict=True)
        table(image=list(names), caption=list(captions)).to_parquet(folder / "flat.parquet")
        self.check(load(folder / "flat.parquet"))
        table(file_name=list(CAPTIONS), caption=list(CAPTIONS.values())).to_parquet(folder / "list.parquet")
        self.check(load(folder / "list.parquet"))

    def test_parquet_of_images_merges_by_picture_not_by_name(self, tmp_path: Path) -> None:
        stored([name for name, _ in ROWS]).to_parquet(tmp_path / "stored.parquet")
        samples = load(tmp_path / "stored.parquet")
        self.check(samples, [0, 2, 3])
        assert all(isinstance(sample.image, StoredImage) for sample in samples)  # bytes stay on disk
        assert str(samples[1].image) == f"{tmp_path / 'stored.parquet'}: row 2"

    def test_parquet_with_lists_of_captions_keeps_a_row_a_sample(self, tmp_path: Path) -> None:
        cells = [{"bytes": photo(name), "path": None} for name in CAPTIONS]
        rows = table(image=cells * 2, caption=[list(said) for said in CAPTIONS.values()] * 2)
        rows.to_parquet(tmp_path / "stored.parquet")
        samples = load(tmp_path / "stored.parquet")
        self.check(samples[:3], [0, 1, 2])
        assert len(samples) == 6

    def test_folder_with_sidecars(self, folder: Path) -> None:
        for name, captions in CAPTIONS.items():
            (folder / "images" / name).with_suffix(".txt").write_text("\n".join(captions) + "\n\n", "utf-8-sig")
        (folder / "images" / "._a.jpg").write_bytes(b"written by another system's file manager")
        self.check(load(folder / "images"))
        self.check(load(folder), [f"images/{name}" for name in CAPTIONS])

    @pytest.mark.parametrize("name", ["metadata.csv", "captions.csv"])
    def test_folder_with_a_csv(self, folder: Path, name: str) -> None:
        write_csv(folder / "images" / name, ROWS, header=("file_name", "text"))
        self.check(load(folder / "images", caption_column="text"))

    def test_folder_with_a_jsonl(self, folder: Path) -> None:
        write_jsonl(folder / "images" / "metadata.jsonl", [{"file_name": n, "caption": c} for n, c in CAPTIONS.items()])
        self.check(load(folder / "images"))

    @pytest.mark.parametrize("streaming", [False, True])
    def test_datasets_imagefolder(self, folder: Path, streaming: bool) -> None:
        write_csv(folder / "images" / "metadata.csv", list(CAPTIONS.items()), header=("file_name", "text"))
        rows = load(f"hf:{folder / 'images'}", caption_column="text", streaming=streaming)
        assert [load_image(s.image).getpixel((3, 3)) for s in rows] == list(COLOURS.values())

    @pytest.mark.parametrize("streaming", [False, True])
    def test_datasets_saved_to_disk(self, tmp_path: Path, streaming: bool) -> None:
        from datasets import DatasetDict

        rows = stored([name for name, _ in ROWS])
        rows.save_to_disk(tmp_path / "one")
        DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(tmp_path / "two")
        ids: list[str | int] = [0, 2, 3]
        self.check(load(f"hf:{tmp_path / 'one'}", streaming=streaming), ids)
        self.check(load(f"hf:{tmp_path / 'two'}", split="train", streaming=streaming), ids)
        assert len(load(f"hf:{tmp_path / 'two'}", split="test", streaming=streaming)) == 1

    def test_datasets_streamed_out_of_an_archive(self, tmp_path: Path) -> None:
        (tmp_path / "zipped").mkdir()
        with zipfile.ZipFile(tmp_path / "zipped" / "train.zip", "w") as archive:
            for name in CAPTIONS:
                archive.writestr(name, photo(name))
            archive.writestr(
                "metadata.jsonl", "".join(json.dumps({"file_name": n, "text": n}) + "\n" for n in CAPTIONS)
            )
        samples = load(f"hf:{tmp_path / 'zipped'}", caption_column="text", streaming=True)
        assert [load_image(s.image).getpixel((3, 3)) for s in samples] == list(COLOURS.values())
        assert [s.captions for s in samples] == [(name,) for name in CAPTIONS]

    def test_images_are_found_not_decoded(self, folder: Path) -> None:
        (folder / "images" / "a.jpg").write_bytes(b"")
        assert len(load(write_csv(folder / "shapes.csv", ROWS))) == 3


class TestSplits:
    def test_a_column_divides_a_table(self, folder: Path) -> None:
        rows = [("a.jpg", "a", "train"), ("b.jpg", "b", "val"), ("c.jpg", "c", "train")]
        path = write_csv(folder / "shapes.csv", rows, header=("image", "caption", "split"))
        assert [s.id for s in load(path, split="train")] == ["a.jpg", "c.jpg"]
        assert refusal(path) == (f"{path}: holds several splits; choose one of them: 'train' (2 rows), 'val' (1 rows)")

    def test_a_column_divides_a_data_set_of_one_split(self, folder: Path) -> None:
        table(image=list(CAPTIONS), caption=["a", "b", "c"], split=["train", "val", "train"]).save_to_disk(folder / "s")
        path = f"hf:{folder / 's'}"
        assert [s.id for s in load(path, split="val", images=str(folder / "images"))] == ["b.jpg"]

    def test_a_split_that_does_not_exist(self, folder: Path) -> None:
        from datasets import DatasetDict

        message = refusal(write_karpathy(folder), split="vall", on_error="skip")
        assert "no split 'vall'; there is 'train' (1 rows), 'val' (1 rows), 'restval' (1 rows); did you mean" in message
        assert "did you mean 'val'" in message
        assert "choose one of them: 'train'" in refusal(write_karpathy(folder))
        assert "a COCO file is one split; choose none" in refusal(write_coco(folder), split="val")
        assert "add a column named split, or choose none" in refusal(
            write_csv(folder / "shapes.csv", ROWS), split="val"
        )
        rows = table(image=["a.jpg"], caption=["a"])
        DatasetDict({"train": rows}).save_to_disk(folder / "single")
        assert "no split 'val'; there is train" in refusal(f"hf:{folder / 'single'}", split="val")
        DatasetDict({"train": rows, "test": rows}).save_to_disk(folder / "saved")
        assert "there is train, test; did you mean 'test'" in refusal(f"hf:{folder / 'saved'}", split="tests")
        assert "choose one of them: train, test" in refusal(f"hf:{folder / 'saved'}")


def problem(folder: Path, path: Path, where: str, reason: str, kept: int, **options: Any) -> None:
    """The mistake raises by default; else it is listed, and `kept` samples remain."""
    message = refusal(path, **options)
    assert where in message and reason in message, message
    samples, skips = skipped(path, **options)
    assert [(skip.where, reason in skip.reason) for skip in skips] == [(where, True)], skips
    assert len(samples) == kept


class TestProblems:
    @pytest.mark.parametrize(
        ("row", "reason", "kept"),
        [
            (("none.jpg", "a caption"), "the image is missing: 'none.jpg' is not in", 3),
            (("", "a caption"), "the image's name is empty", 3),
            (("a.jpg", "  "), "the caption is empty", 3),
            (("a.jpg",), "malformed row: 1 fields, the header has 2", 3),
            (("a.jpg", "one", "two"), "malformed row: 3 fields, the header has 2", 3),
            (("a.jpg", "x" * 10_001), "the caption has 10,001 characters", 3),
            (("a.jpg", "x" * 200_000), "malformed row: field larger than field limit", 3),
        ],
    )
    def test_csv(self, folder: Path, row: tuple[str, ...], reason: str, kept: int) -> None:
        path = write_csv(folder / "shapes.csv", [*ROWS[:2], row, *ROWS[2:]])
        problem(folder, path, f"{path}:4", reason, kept)

    @pytest.mark.parametrize(
        ("rows", "line", "kept"),
        [
            ('a.jpg,a\nb.jpg,"left open\nc.jpg,c\n', 3, ["a", "c"]),
            ('a.jpg,a\nb.jpg,"left open\nc.jpg,c"\n', 3, ["a", 'c"']),  # the quote closes, one row too late
            ('b.jpg,"left open\na.jpg,"a, in quotes"\nc.jpg,c\n', 2, ["a, in quotes", "c"]),
            ('b.jpg,"left open\na.jpg,a\nc.jpg,"c"\n', 2, ["a", "c"]),
            ('a.jpg,a\nc.jpg,c\nb.jpg,"left open', 4, ["a", "c"]),
            ('b.jpg,"left open\n' + "a.jpg,a\n" * 20_000, 2, ["a"] * 20_000),
        ],
    )
    def test_csv_with_a_quote_left_open(self, folder: Path, rows: str, line: int, kept: list[str]) -> None:
        path = folder / "shapes.csv"
        path.write_text("image,caption\n" + rows)
        assert refusal(path).startswith(f"{path}:{line}: malformed row: a quote is opened on this line and not closed")
        samples, skips = skipped(path)
        assert [skip.where for skip in skips] == [f"{path}:{line}"]
        assert [caption for sample in samples for caption in sample.captions] == kept

    def test_csv_row_of_several_lines_is_named_by_its_first(self, folder: Path) -> None:
        path = folder / "shapes.csv"
        path.write_text('image,caption\na.jpg,"two\nlines"\n\nnone.jpg,"three\nmore\nlines"\nb.jpg,b\n')
        problem(folder, path, f"{path}:5", "the image is missing", 2)

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ("", "shapes.csv: the file is empty"),
            ("\n \n", "shapes.csv: the file is empty"),
            ("image,caption,caption\na.jpg,a,b", "shapes.csv: the header names 'caption' twice"),
            ("image,image,caption\na.jpg,b.jpg,a", "shapes.csv: the header names 'image' twice"),
            ("a.jpg,a caption\n", "shapes.csv: no column 'image'; there is 'a.jpg', 'a caption'"),
            (",\na.jpg,a", "shapes.csv: no column 'image'; there is '', ''"),
            ('image,"caption\na.jpg,a', "shapes.csv:1: not the header of a csv file"),
        ],
    )
    def test_csv_headers(self, folder: Path, header: str, message: str) -> None:
        (folder / "shapes.csv").write_text(header)
        assert message in refusal(folder / "shapes.csv", on_error="skip")

    def test_csv_with_blank_lines_first_and_columns_of_no_name(self, folder: Path) -> None:
        (folder / "shapes.csv").write_text("\n\nimage,caption,,\na.jpg,a,,\n\nb.jpg,b,,\n")
        assert [s.captions for s in load(folder / "shapes.csv")] == [("a",), ("b",)]

    def test_a_nul_character_costs_its_row(self, folder: Path) -> None:
        path = folder / "shapes.csv"
        path.write_text("image,caption\na.jpg,a\nb.jpg,b\0b\nc.jpg,c\n")
        samples, (skip,) = skipped(path)
        assert (len(samples), skip.where, "NUL" in skip.reason) == (2, f"{path}:3", True)

    @pytest.mark.parametrize("caption", ["...", " . ", "!", "- -", "。。", "…", "\u200b", "\ufeff", '"."'])
    def test_a_caption_without_a_word_is_no_caption(self, folder: Path, caption: str) -> None:
        path = write_csv(folder / "shapes.csv", [("a.jpg", "a"), ("b.jpg", caption), ("b.jpg", "b")])
        problem(folder, path, f"{path}:3", "the caption holds no word", 2)

    @pytest.mark.parametrize("caption", ["7", "🐕", "狗", "$", "a."])
    def test_a_caption_of_one_letter_digit_or_symbol_is_one(self, folder: Path, caption: str) -> None:
        assert load(write_csv(folder / "shapes.csv", [("a.jpg", caption)]))[0].captions == (caption,)

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
    def test_unicode_files_of_any_encoding(self, folder: Path, encoding: str) -> None:
        said = "a café \U0001f415"
        (folder / "x.csv").write_bytes(f"image,caption\r\na.jpg,{said}\r\n".encode(encoding))
        assert load(folder / "x.csv")[0].captions == (said,)
        row = json.dumps({"image": "a.jpg", "caption": said}, ensure_ascii=False)
        (folder / "x.jsonl").write_bytes(f"{row}\n{row}\n".encode(encoding))
        assert load(folder / "x.jsonl")[0].captions == (said, said)
        (folder / "images" / "a.txt").write_bytes(f"{said}\r\n\r\nsecond\r\n".encode(encoding))
        assert skipped(folder / "images")[0][0].captions == (said, "second")

    def test_files_of_windows_1252_are_told_so(self, folder: Path) -> None:
        reason = "not valid Unicode text"
        (folder / "x.csv").write_bytes("image,caption\na.jpg,a\nb.jpg,a café\n".encode("cp1252"))
        problem(folder, folder / "x.csv", f"{folder / 'x.csv'}:3", reason, 1)
        assert "perhaps Windows-1252, 'b.jpg,a café" in refusal(folder / "x.csv")
        assert "save the file as UTF-8" in refusal(folder / "x.csv")
        rows = '{"image": "a.jpg", "caption": "a"}\n{"image": "b.jpg", "caption": "a café"}\n'
        (folder / "x.jsonl").write_bytes(rows.encode("cp1252"))
        problem(folder, folder / "x.jsonl", f"{folder / 'x.jsonl'}:2", reason, 1)
        for name in "abc":
            (folder / "images" / f"{name}.txt").write_text("a caption")
        (folder / "images" / "b.txt").write_bytes("a café".encode("cp1252"))
        problem(folder, folder / "images", f"{folder / 'images' / 'b.txt'}:1", reason, 2)

    def test_csv_of_another_encoding(self, folder: Path) -> None:
        path = folder / "shapes.csv"
        path.write_bytes("image,caption\na.jpg,a\nb.jpg,a café\n".encode("latin-1"))
        problem(folder, path, f"{path}:3", "not valid Unicode text", 1)

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ('{"image": "a.jpg", "caption": "a"', "malformed row: not JSON"),
            ("[" * 100_000, "malformed row: not JSON"),
            ("[1]", "malformed row: not an object"),
            (
                {"image": "a.jpg", "captoin": "a"},
                "no column 'caption'; there is 'image', 'captoin'; did",
            ),
            ({"image": "a.jpg", "caption": 7}, "the caption is not text: 7"),
            ({"image": "a.jpg", "caption": ["good", None]}, "the caption is empty"),
            ({"image": "a.jpg", "caption": []}, "the image has no caption"),
            ({"image": 7, "caption": "a"}, "the image's name is not text: 7"),
            ({"image": "a.jpg", "caption": "half \ud83d"}, "not valid Unicode text"),
            ({"image": "a\0.jpg", "caption": "a"}, "the image is missing"),
            ({"image": "a.jpg", "caption": "a\0b"}, "the caption holds a NUL character"),
            ({"image": "https://example.org/a.jpg", "caption": "a"}, "is a URL, and URLs are not fetched"),
            ('{"image": "a.jpg", "caption": "a", "caption": "b"}', "malformed row: not JSON: 'caption' is there twice"),
        ],
    )
    def test_jsonl(self, folder: Path, row: Any, reason: str) -> None:
        path = write_jsonl(folder / "shapes.jsonl", [{"image": "b.jpg", "caption": "b"}, row])
        message = refusal(path)
        assert message.startswith(f"{path}:2: ") and reason in message
        samples, (skip,) = skipped(path)
        assert skip.where == f"{path}:2" and reason in skip.reason
        assert samples[0].captions == ("b",) and all(sample.captions == ("good",) for sample in samples[1:])

    def test_jsonl_lines_are_bounded(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tables, "MAX_LINE_CHARACTERS", 64)
        rows = [
            {"image": "b.jpg", "caption": "b"},
            {"image": "a.jpg", "caption": "x" * 500},
            {"image": "c.jpg", "caption": "c"},
        ]
        path = write_jsonl(folder / "shapes.jsonl", rows)
        problem(folder, path, f"{path}:2", "over the limit of 64 characters", 2)

    def test_karpathy(self, folder: Path) -> None:
        image = {"filename": "a.jpg", "cocoid": 0, "sentences": [{"raw": "a"}]}
        good = {"filename": "b.jpg", "cocoid": 1, "sentences": [{"raw": "b"}]}
        for bad, reason in [
            (image | {"cocoid": 1}, "the id 1 is taken by"),
            (image | {"filename": "none.jpg"}, "the image is missing"),
            (image | {"sentences": []}, "the image has no caption"),
            (image | {"sentences": [{"raw": ""}]}, "the caption is empty"),
            (image | {"cocoid": None}, "malformed: the image's id is None"),
            (7, "malformed: not an object but 7"),
        ]:
            path = write_karpathy(folder, [good, bad])  # type: ignore[list-item]
            problem(folder, path, f"{path}: images[1]", reason, 1)

    def test_coco(self, folder: Path) -> None:
        path = write_coco(
            folder,
            annotations=[{"image_id": i, "caption": "a"} for i in (10, 11, 99)] + [{"image_id": 12, "caption": "c"}],
        )
        problem(folder, path, f"{path}: annotations[2]", "there is no image with the id 99", 3)
        path = write_coco(folder, annotations=[{"image_id": i, "caption": "a"} for i in (10, 11)])
        problem(folder, path, f"{path}: images[2]", "the image has no caption", 2)
        path = write_coco(
            folder, images=[{"id": 10, "file_name": "a.jpg"}] * 2, annotations=[{"image_id": 10, "caption": "a"}]
        )
        problem(folder, path, f"{path}: images[1]", "the id 10 is taken by", 1)
        path = write_coco(folder, annotations=[{"image_id": 10, "bbox": [0, 0, 1, 1]}])
        assert "its annotations have no captions" in refusal(path)

    def test_parquet(self, folder: Path) -> None:
        path = folder / "shapes.parquet"
        table(image=["a.jpg", None, "b.jpg"], caption=["a", "b", None]).to_parquet(path)
        samples, skips = skipped(path)
        assert [s.id for s in samples] == ["a.jpg"]
        assert skips == [
            Skip(f"{path}: row 1", "the image's name is empty"),
            Skip(f"{path}: row 2", "the caption is empty"),
        ]

    def test_sidecars(self, folder: Path) -> None:
        photos = folder / "images"
        (photos / "a.txt").write_text("a caption\n")
        (photos / "b.txt").write_text(" \n")
        (photos / "d.txt").write_text("of a photo that is gone")
        assert "c.jpg: the image has no caption: no c.txt beside it" in refusal(write_nothing(photos, "a", "b"))
        (photos / "b.txt").write_text(" \n")
        samples, skips = skipped(photos)
        assert [s.id for s in samples] == ["a.jpg"]
        assert [(Path(skip.where).name, skip.reason.split(":")[0]) for skip in skips] == [
            ("b.txt", "the caption is empty"),
            ("c.jpg", "the image has no caption"),
            ("d.txt", "the image is missing"),
        ]


def write_nothing(folder: Path, *stems: str) -> Path:
    for stem in stems:
        (folder / f"{stem}.txt").write_text("a caption\n")
    return folder


class TestRefusals:
    """What no policy can skip."""

    def test_a_source_that_is_not_there(self, tmp_path: Path) -> None:
        assert refusal(tmp_path / "none.csv") == f"{tmp_path / 'none.csv'}: no such file or folder"
        assert refusal(f"hf:{tmp_path / 'none'}").startswith(f"hf:{tmp_path / 'none'}: ")
        assert "nowhere: no such folder of images" in refusal(write_csv(tmp_path / "x.csv", ROWS), images="nowhere")

    def test_a_layout_that_is_not_known(self, folder: Path) -> None:
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

    def test_a_missing_column_lists_those_there_are(self, folder: Path) -> None:
        path = write_csv(folder / "shapes.csv", ROWS, header=("image", "Caption"))
        expected = "no column 'caption'; there is 'image', 'Caption'; did you mean 'Caption'?"
        assert refusal(path, on_error="skip") == f"{path}: {expected}"
        table(photo=["a.jpg"], caption=["a"]).to_parquet(folder / "x.parquet")
        assert "no column 'image'; there is 'photo', 'caption'" in refusal(folder / "x.parquet")

    def test_a_source_without_one_usable_sample(self, folder: Path) -> None:
        path = write_csv(folder / "shapes.csv", [("x/a.jpg", "a"), ("x/b.jpg", "b")])
        message = refusal(path, on_error="skip")
        assert message.startswith(f"{path}: no usable sample; the first problem: {path}:2: the image is missing")
        assert "no usable sample" in refusal(write_csv(folder / "shapes.csv", []))

    def test_folders_that_mean_something_else(self, folder: Path) -> None:
        write_karpathy(folder)
        assert "holds dataset_shapes.json; give that file" in refusal(folder)
        table(image=["a.jpg"], caption=["a"]).save_to_disk(folder / "saved")
        assert f"write hf:{folder / 'saved'}" in refusal(folder / "saved")

    def test_code_in_a_data_set_is_not_run(self, tmp_path: Path) -> None:
        (tmp_path / "scripted").mkdir()
        mark = tmp_path / "it ran"
        (tmp_path / "scripted" / "scripted.py").write_text(f"open({str(mark)!r}, 'w')")
        assert "scripts are no longer supported" in refusal(f"hf:{tmp_path / 'scripted'}")
        assert not mark.exists()

    def test_a_file_that_may_not_be_read(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_csv(folder / "shapes.csv", ROWS)

        def denied(*_: Any, **__: Any) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("builtins.open", denied)
        assert refusal(path) == f"{path}: Permission denied"


class TestWhereImagesMayLie:
    def test_own_files_name_any_image_of_the_user(self, folder: Path) -> None:
        (folder / "lists").mkdir()
        rows = [(str(folder / "images" / "a.jpg"), "absolute"), (os.path.join("..", "images", "a.jpg"), "climbing")]
        (sample,) = load(write_csv(folder / "lists" / "shapes.csv", rows))
        assert sample.captions == ("absolute", "climbing")

    def test_the_chosen_folder_alone_is_searched(self, folder: Path) -> None:
        (folder / "chosen").mkdir()
        path = write_csv(folder / "shapes.csv", [("a.jpg", "a")])
        assert "'a.jpg' is not in" in refusal(path, images=str(folder / "chosen"))

    def test_data_sets_of_others_stay_in_the_folder(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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

    def test_a_streamed_file_that_is_gone_costs_its_row(self, folder: Path) -> None:
        path = f"zip://a.jpg::{folder / 'gone.zip'}"
        assert hf_datasets._fetch(path) == path

    def test_data_sets_do_not_choose_servers(self) -> None:
        for path in ("https://example.org/a.jpg", "zip://a.jpg::https://example.org/a.zip", "file:///etc/passwd"):
            assert hf_datasets._fetch(path) == path  # a name, which is then not found


NAMES = [  # on disk, in the source
    (unicodedata.normalize("NFD", "café.jpg"), unicodedata.normalize("NFC", "café.jpg")),
    (unicodedata.normalize("NFC", "café.jpg"), unicodedata.normalize("NFD", "café.jpg")),
    (unicodedata.normalize("NFD", "한글/é.jpg"), unicodedata.normalize("NFC", "한글") + "/" + "e\u0301.jpg"),
    ("sub/1.jpg", "sub\\1.jpg"),
    (unicodedata.normalize("NFD", "é/1.jpg"), unicodedata.normalize("NFC", "é") + "\\1.jpg"),
    ("1.JPG", "1.jpg"),
    ("Photos/1.jpg", "photos/1.JPG"),
]


class TestNamesThatMeanTheSame:
    """Files move between systems that compose letters, separate folders and tell case apart in other ways."""

    @pytest.mark.parametrize(("there", "named"), NAMES)
    @pytest.mark.parametrize("layout", ["csv", "jsonl", "karpathy", "coco", "parquet", "saved", "folder with a csv"])
    def test_in_every_layout(self, tmp_path: Path, layout: str, there: str, named: str) -> None:
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

    def test_the_file_of_the_very_name_comes_first_and_of_several_others_none(self, folder: Path) -> None:
        photos = folder / "images"
        for name in ("x.jpg", "X.JPG"):
            (photos / name).write_bytes(photo("a.jpg"))
        path = write_csv(folder / "x.csv", [("x.jpg", "one"), ("X.JPG", "two"), ("x.JPG", "three")])
        samples, (skip,) = skipped(path)
        assert [sample.image for sample in samples] == [str(photos / "x.jpg"), str(photos / "X.JPG")]
        assert "'x.JPG' is not in" in skip.reason

    def test_they_do_not_lead_out_of_the_folder(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        (folder / "SECRET.jpg").write_bytes(photo("a.jpg"))
        names = ["a.jpg", "..\\secret.jpg", "../secret.jpg"]
        foreign = datasets.DatasetDict({"train": table(image=names, caption=list("abc"))})
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: foreign)
        samples, skips = skipped("hf:someone/photos", images=str(folder / "images"))
        assert (len(samples), len(skips)) == (1, 2)

    @pytest.mark.parametrize(
        ("image", "text"),
        [
            ("1.JPG", "1.TXT"),
            ("1.jpg", "1.TXT"),
            ("Photo.jpg", "photo.txt"),
            ("1.jpg", "1.caption"),
            ("1.jpg", "1.Caption"),
            (unicodedata.normalize("NFC", "é.jpg"), unicodedata.normalize("NFD", "é.txt")),
            (unicodedata.normalize("NFD", "é.jpg"), unicodedata.normalize("NFC", "é.caption")),
        ],
    )
    def test_sidecars(self, tmp_path: Path, image: str, text: str) -> None:
        (tmp_path / image).write_bytes(photo("a.jpg"))
        (tmp_path / text).write_text("a caption")
        (sample,) = load(tmp_path)
        assert (sample.id, sample.captions) == (image, ("a caption",))

    def test_of_several_sidecars_the_one_of_the_very_name_counts_and_two_are_refused(self, tmp_path: Path) -> None:
        for name in ("A.jpg", "a.jpg"):
            (tmp_path / name).write_bytes(photo("a.jpg"))
            (tmp_path / name).with_suffix(".txt").write_text(f"of {name}")
        assert [s.captions for s in load(tmp_path)] == [("of A.jpg",), ("of a.jpg",)]
        (tmp_path / "a.caption").write_text("another")
        problem(tmp_path, tmp_path, str(tmp_path / "a.jpg"), "captions: a.caption and a.txt; keep one", 1)


class TestFoldersThatAreHardToWalk:
    """A folder costs itself, and is named."""

    @pytest.fixture
    def photos(self, tmp_path: Path) -> Path:
        photos = tmp_path / "photos"
        for place in (photos, photos / "sub"):
            place.mkdir()
            (place / "a.jpg").write_bytes(photo("a.jpg"))
            (place / "a.txt").write_text("a caption")
        return photos

    @pytest.mark.parametrize("captioned", [True, False])
    def test_one_that_may_not_be_read(self, photos: Path, captioned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        scandir, denied = os.scandir, str(photos / "sub")

        def scan(path: str) -> Any:
            if path == denied:
                raise PermissionError(13, "Permission denied", path)
            return scandir(path)

        monkeypatch.setattr(os, "scandir", scan)
        problem(photos, photos, denied, "cannot be read: Permission denied", 1, captioned=captioned)

    def test_a_text_that_may_not_be_read(self, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real, denied = open, str(photos / "sub" / "a.txt")

        def refuse(path: Any, *args: Any, **options: Any) -> Any:
            if path == denied:
                raise PermissionError(13, "Permission denied", path)
            return real(path, *args, **options)

        monkeypatch.setattr("builtins.open", refuse)
        problem(photos, photos, denied, "cannot be read: Permission denied", 1)

    @pytest.mark.parametrize("name", ["loop", "loop.jpg"])
    def test_a_link_that_leads_nowhere(self, photos: Path, name: str) -> None:
        (photos / name).symlink_to(name)
        problem(photos, photos, str(photos / name), "cannot be read: Too many levels of symbolic links", 2)
        (photos / name).unlink()
        (photos / name).symlink_to("gone")
        problem(photos, photos, str(photos / name), "cannot be read: No such file or directory", 2)

    def test_links_to_folders_are_followed_and_loops_end(self, photos: Path, tmp_path: Path) -> None:
        (photos / "sub" / "up").symlink_to(photos)
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "b.jpg").write_bytes(photo("b.jpg"))
        (elsewhere / "b.txt").write_text("linked")
        (photos / "linked").symlink_to(elsewhere)
        assert [s.id for s in load(photos)] == ["a.jpg", "linked/b.jpg", "sub/a.jpg"]

    def test_brackets_in_names(self, photos: Path) -> None:
        odd = photos.parent / "trip [2023] *?"
        photos.rename(odd)
        assert [s.id for s in load(odd)] == ["a.jpg", "sub/a.jpg"]
        write_csv(odd / "x.csv", [("a.jpg", "a")])
        assert len(load(odd / "x.csv")) == 1
        table(image=["a.jpg"], caption=["a"]).to_parquet(odd / "x[1].parquet")
        assert len(load(odd / "x[1].parquet")) == 1

    def test_a_star_in_the_name_of_a_parquet_file_is_no_pattern(self, folder: Path) -> None:
        table(image=["a.jpg"], caption=["a"]).to_parquet(folder / "x*.parquet")
        table(image=["b.jpg"], caption=["b"]).to_parquet(folder / "xyz.parquet")
        assert [s.id for s in load(folder / "x*.parquet")] == ["a.jpg"]

    def test_deep_nesting(self, tmp_path: Path) -> None:
        deep, here = 1100, os.getcwd()
        os.chdir(tmp_path)
        try:
            for _ in range(deep):
                os.mkdir("d")
                os.chdir("d")
            Path("a.jpg").write_bytes(photo("a.jpg"))
            Path("a.txt").write_text("a caption")
            assert [s.captions for s in load(tmp_path)] == [("a caption",)]
        finally:
            for name in ("a.jpg", "a.txt"):
                Path(name).unlink(missing_ok=True)
            for _ in range(deep):  # what clears the folder afterwards may go by recursion
                os.chdir("..")
                os.rmdir("d")
            os.chdir(here)


class TestDataSetsNamedLikeSomethingElse:
    @pytest.mark.parametrize("name", ["csv", "imagefolder", "parquet", "webdataset", "text"])
    def test_a_folder_named_like_a_loader_is_that_folder(
        self, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(folder)  # whose photos are not those of the data set
        (folder / name).mkdir()
        write_csv(folder / name / "metadata.csv", [("only.png", "of the folder")], header=("file_name", "caption"))
        (folder / name / "only.png").write_bytes(photo("a.jpg"))
        for streaming in (False, True):
            assert [s.captions for s in load(f"hf:{name}", streaming=streaming)] == [("of the folder",)]

    @pytest.mark.parametrize("name", ["csv", "imagefolder", "parquet"])
    def test_a_loader_is_no_data_set(self, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        assert refusal(f"hf:{name}").startswith(f"hf:{name}: a loader of `datasets`, not a data set")

    def test_no_name_and_a_name_that_is_a_pattern(self, folder: Path) -> None:
        assert refusal("hf:") == "hf:: names no data set"
        (folder / "images").rename(folder / "images[1]")
        assert "rename the folder" in refusal(f"hf:{folder / 'images[1]'}")


class TestStreaming:
    def test_samples_come_before_the_source_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
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

    def test_each_process_of_a_launch_reads_the_whole(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stored([name for name, _ in ROWS]).save_to_disk(tmp_path / "shapes")
        monkeypatch.setenv("WORLD_SIZE", "2")
        for process in "01":  # training divides the samples; a source that did too would lose half of them
            monkeypatch.setenv("RANK", process)
            assert len(load(f"hf:{tmp_path / 'shapes'}", streaming=True)) == 3

    def test_files_do_not_stream(self) -> None:
        with pytest.raises(ValueError, match="hf:NAME"):
            SourceConfig(path="shapes.csv", streaming=True)


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


def test_flickr8k() -> None:
    root = os.environ.get("CAPTIONER_FLICKR8K")
    if root is None:
        pytest.skip("CAPTIONER_FLICKR8K does not name the folder with dataset_flickr8k.json and images/")
    train, val = (load(Path(root) / "dataset_flickr8k.json", split=split) for split in ("train", "val"))
    assert (len(train), len(val)) == (6000, 1000)
    assert {len(sample.captions) for sample in train + val} == {5}
    assert not {sample.image for sample in train} & {sample.image for sample in val}
    assert len({sample.id for sample in train + val}) == 7000
    assert all(load_image(sample.image).size == (224, 224) for sample in val[:50])


class TestImagesAlone:
    """With `captioned: false` every layout gives its images, captions or none."""

    def check(self, path: Path | str, ids: list[str | int], **options: Any) -> None:
        samples = load(path, captioned=False, **options)
        assert [(s.id, s.captions) for s in samples] == [(i, ()) for i in ids]
        assert [load_image(s.image).getpixel((3, 3)) for s in samples] == list(COLOURS.values())[: len(ids)]

    def test_a_folder_with_folders(self, folder: Path) -> None:
        (folder / "images" / "a.txt").write_text("not read, nor missed beside the others")
        self.check(folder, ["images/a.jpg", "images/b.jpg", "images/c.jpg"])

    def test_files_of_names(self, folder: Path) -> None:
        self.check(write_csv(folder / "x.csv", [(name,) for name in CAPTIONS], header=("image",)), list(CAPTIONS))
        self.check(write_jsonl(folder / "x.jsonl", [{"file_name": name} for name in CAPTIONS]), list(CAPTIONS))
        self.check(write_csv(folder / "y.csv", ROWS), list(CAPTIONS))

    def test_karpathy_and_coco(self, folder: Path) -> None:
        self.check(write_karpathy(folder, [{"filename": name, "sentences": []} for name in CAPTIONS]), list(CAPTIONS))
        self.check(write_coco(folder), [10, 11, 12])
        path = folder / "image_info_unlabeled2017.json"
        path.write_text(json.dumps({"images": [{"id": 7, "file_name": "a.jpg"}]}))
        self.check(path, [7])

    @pytest.mark.parametrize("captioned", [False, True])
    def test_images_in_a_table(self, tmp_path: Path, captioned: bool) -> None:
        rows = stored([name for name, _ in ROWS])
        rows = rows if captioned else rows.remove_columns("caption").select([0, 2, 3])
        rows.to_parquet(tmp_path / "stored.parquet")
        self.check(tmp_path / "stored.parquet", [0, 2, 3] if captioned else [0, 1, 2])
        rows.save_to_disk(tmp_path / "saved")
        self.check(f"hf:{tmp_path / 'saved'}", [0, 2, 3] if captioned else [0, 1, 2], streaming=True)

    def test_labels_stay(self, folder: Path) -> None:
        path = write_jsonl(folder / "x.jsonl", [{"image": "a.jpg", "tags": ["red"]}, {"image": "b.jpg", "tags": None}])
        samples = load(path, captioned=False, label_column="tags")
        assert [(s.captions, s.labels) for s in samples] == [((), ("red",)), ((), ())]

    def test_a_folder_of_photos_says_so_where_captions_are_wanted(self, folder: Path) -> None:
        assert "a.jpg: the image has no caption: no a.txt beside it" in refusal(folder)
