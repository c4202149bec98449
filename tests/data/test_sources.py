"""Every layout gives the same samples; every mistake in one is named with its file and row, at the cost chosen."""

import csv
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
from loading import load, refusal, skipped
from PIL import Image

from captioner.config import SourceConfig
from captioner.data import sources
from captioner.data.images import load_image
from captioner.data.sources import Sample, Skip, StoredImage, iter_samples

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
        assert refusal(path) == (
            f"{path}: holds several splits; choose one with `split`: 'train' (2 rows), 'val' (1 rows)"
        )

    def test_a_column_divides_a_data_set_of_one_split(self, folder: Path) -> None:
        table(image=list(CAPTIONS), caption=["a", "b", "c"], split=["train", "val", "train"]).save_to_disk(folder / "s")
        path = f"hf:{folder / 's'}"
        assert [s.id for s in load(path, split="val", images=str(folder / "images"))] == ["b.jpg"]

    def test_a_split_that_does_not_exist(self, folder: Path) -> None:
        from datasets import DatasetDict

        message = refusal(write_karpathy(folder), split="vall", on_error="skip")
        assert "no split 'vall'; there is 'train' (1 rows), 'val' (1 rows), 'restval' (1 rows); did you mean" in message
        assert "did you mean 'val'" in message
        assert "choose one with `split`: 'train'" in refusal(write_karpathy(folder))
        assert "leave `split` out" in refusal(write_coco(folder), split="val")
        assert "leave `split` out" in refusal(write_csv(folder / "shapes.csv", ROWS), split="val")
        rows = table(image=["a.jpg"], caption=["a"])
        DatasetDict({"train": rows}).save_to_disk(folder / "single")
        assert "no split 'val'; there is train" in refusal(f"hf:{folder / 'single'}", split="val")
        DatasetDict({"train": rows, "test": rows}).save_to_disk(folder / "saved")
        assert "there is train, test; did you mean 'test'" in refusal(f"hf:{folder / 'saved'}", split="tests")
        assert "choose one with `split`: train, test" in refusal(f"hf:{folder / 'saved'}")


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

    def test_csv_with_a_quote_left_open(self, folder: Path) -> None:
        path = folder / "shapes.csv"
        path.write_text('image,caption\na.jpg,a\nb.jpg,"left open\nc.jpg,c\n')
        problem(folder, path, f"{path}:4", "malformed row: unexpected end of data", 1)

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
                "no column 'caption' (set caption_column); there is 'image', 'captoin'; did",
            ),
            ({"image": "a.jpg", "caption": 7}, "the caption is not text: 7"),
            ({"image": "a.jpg", "caption": ["good", None]}, "the caption is empty"),
            ({"image": "a.jpg", "caption": []}, "the image has no caption"),
            ({"image": 7, "caption": "a"}, "the image's name is not text: 7"),
            ({"image": "a.jpg", "caption": "half \ud83d"}, "not valid Unicode text"),
            ({"image": "a\0.jpg", "caption": "a"}, "the image is missing"),
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
        monkeypatch.setattr(sources, "MAX_LINE_BYTES", 64)
        rows = [
            {"image": "b.jpg", "caption": "b"},
            {"image": "a.jpg", "caption": "x" * 500},
            {"image": "c.jpg", "caption": "c"},
        ]
        path = write_jsonl(folder / "shapes.jsonl", rows)
        problem(folder, path, f"{path}:2", "over the limit of 64 bytes", 2)

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
        assert "images: no such folder: nowhere" in refusal(write_csv(tmp_path / "x.csv", ROWS), images="nowhere")

    def test_a_layout_that_is_not_known(self, folder: Path) -> None:
        (folder / "shapes.xml").write_text("<a/>")
        assert "not a layout we read" in refusal(folder / "shapes.xml")
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
        expected = "no column 'caption' (set caption_column); there is 'image', 'Caption'; did you mean 'Caption'?"
        assert refusal(path, on_error="skip") == f"{path}: {expected}"
        table(photo=["a.jpg"], caption=["a"]).to_parquet(folder / "x.parquet")
        assert "no column 'image' (set image_column); there is 'photo', 'caption'" in refusal(folder / "x.parquet")

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
        assert sources._fetch(path) == path

    def test_data_sets_do_not_choose_servers(self) -> None:
        for path in ("https://example.org/a.jpg", "zip://a.jpg::https://example.org/a.zip", "file:///etc/passwd"):
            assert sources._fetch(path) == path  # a name, which is then not found


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
