"""Tables of names and captions: every mistake in one is named with its file and row, at the cost chosen."""

import json
from pathlib import Path
from typing import Any

import pytest
from layouts import CAPTIONS, ROWS, check, check_images, photo, problem, stored, table, write_csv, write_jsonl
from loading import load, refusal, skipped

from captioner.data.sources import Skip, tables
from captioner.data.sources.stored_images import StoredImage


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv(folder: Path, delimiter: str) -> None:
    check(load(write_csv(folder / "shapes.csv", ROWS, delimiter)))


def test_csv_with_rows_in_any_order_and_captions_that_need_quotes(folder: Path) -> None:
    rows = [
        ("a.jpg", 'a "red", square'),
        ("b.jpg", "two\nlines"),
        ("a.jpg", " padded "),
        ("./images/a.jpg", "same"),
    ]
    first, second = load(write_csv(folder / "shapes.csv", rows))
    assert first.captions == ('a "red", square', "padded", "same")
    assert second.captions == ("two lines",)


def test_jsonl(folder: Path) -> None:
    check(load(write_jsonl(folder / "flat.jsonl", [{"image": n, "caption": c} for n, c in ROWS])))
    check(load(write_jsonl(folder / "list.jsonl", [{"image": n, "caption": c} for n, c in CAPTIONS.items()])))


def test_parquet_of_names(folder: Path) -> None:
    names, captions = zip(*ROWS, strict=True)
    table(image=list(names), caption=list(captions)).to_parquet(folder / "flat.parquet")
    check(load(folder / "flat.parquet"))
    table(file_name=list(CAPTIONS), caption=list(CAPTIONS.values())).to_parquet(folder / "list.parquet")
    check(load(folder / "list.parquet"))


def test_parquet_of_images_merges_by_picture_not_by_name(tmp_path: Path) -> None:
    stored([name for name, _ in ROWS]).to_parquet(tmp_path / "stored.parquet")
    samples = load(tmp_path / "stored.parquet")
    check(samples, [0, 2, 3])
    assert all(isinstance(sample.image, StoredImage) for sample in samples)  # bytes stay on disk
    assert str(samples[1].image) == f"{tmp_path / 'stored.parquet'}: row 2"


def test_parquet_with_lists_of_captions_keeps_a_row_a_sample(tmp_path: Path) -> None:
    cells = [{"bytes": photo(name), "path": None} for name in CAPTIONS]
    rows = table(image=cells * 2, caption=[list(said) for said in CAPTIONS.values()] * 2)
    rows.to_parquet(tmp_path / "stored.parquet")
    samples = load(tmp_path / "stored.parquet")
    check(samples[:3], [0, 1, 2])
    assert len(samples) == 6


def test_a_column_divides_a_table(folder: Path) -> None:
    rows = [("a.jpg", "a", "train"), ("b.jpg", "b", "val"), ("c.jpg", "c", "train")]
    path = write_csv(folder / "shapes.csv", rows, header=("image", "caption", "split"))
    assert [s.id for s in load(path, split="train")] == ["a.jpg", "c.jpg"]
    assert refusal(path) == (f"{path}: holds several splits; choose one of them: 'train' (2 rows), 'val' (1 rows)")


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
def test_mistakes_in_a_csv(folder: Path, row: tuple[str, ...], reason: str, kept: int) -> None:
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
def test_csv_with_a_quote_left_open(folder: Path, rows: str, line: int, kept: list[str]) -> None:
    path = folder / "shapes.csv"
    path.write_text("image,caption\n" + rows)
    assert refusal(path).startswith(f"{path}:{line}: malformed row: a quote is opened on this line and not closed")
    samples, skips = skipped(path)
    assert [skip.where for skip in skips] == [f"{path}:{line}"]
    assert [caption for sample in samples for caption in sample.captions] == kept


def test_csv_row_of_several_lines_is_named_by_its_first(folder: Path) -> None:
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
def test_csv_headers(folder: Path, header: str, message: str) -> None:
    (folder / "shapes.csv").write_text(header)
    assert message in refusal(folder / "shapes.csv", on_error="skip")


def test_csv_with_blank_lines_first_and_columns_of_no_name(folder: Path) -> None:
    (folder / "shapes.csv").write_text("\n\nimage,caption,,\na.jpg,a,,\n\nb.jpg,b,,\n")
    assert [s.captions for s in load(folder / "shapes.csv")] == [("a",), ("b",)]


def test_a_nul_character_costs_its_row(folder: Path) -> None:
    path = folder / "shapes.csv"
    path.write_text("image,caption\na.jpg,a\nb.jpg,b\0b\nc.jpg,c\n")
    samples, (skip,) = skipped(path)
    assert (len(samples), skip.where, "NUL" in skip.reason) == (2, f"{path}:3", True)


@pytest.mark.parametrize("caption", ["...", " . ", "!", "- -", "。。", "…", "\u200b", "\ufeff", '"."'])
def test_a_caption_without_a_word_is_no_caption(folder: Path, caption: str) -> None:
    path = write_csv(folder / "shapes.csv", [("a.jpg", "a"), ("b.jpg", caption), ("b.jpg", "b")])
    problem(folder, path, f"{path}:3", "the caption holds no word", 2)


@pytest.mark.parametrize("caption", ["7", "🐕", "狗", "$", "a."])
def test_a_caption_of_one_letter_digit_or_symbol_is_one(folder: Path, caption: str) -> None:
    assert load(write_csv(folder / "shapes.csv", [("a.jpg", caption)]))[0].captions == (caption,)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_unicode_files_of_any_encoding(folder: Path, encoding: str) -> None:
    said = "a café \U0001f415"
    (folder / "x.csv").write_bytes(f"image,caption\r\na.jpg,{said}\r\n".encode(encoding))
    assert load(folder / "x.csv")[0].captions == (said,)
    row = json.dumps({"image": "a.jpg", "caption": said}, ensure_ascii=False)
    (folder / "x.jsonl").write_bytes(f"{row}\n{row}\n".encode(encoding))
    assert load(folder / "x.jsonl")[0].captions == (said, said)
    (folder / "images" / "a.txt").write_bytes(f"{said}\r\n\r\nsecond\r\n".encode(encoding))
    assert skipped(folder / "images")[0][0].captions == (said, "second")


def test_files_of_windows_1252_are_told_so(folder: Path) -> None:
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


def test_csv_of_another_encoding(folder: Path) -> None:
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
def test_mistakes_in_a_jsonl(folder: Path, row: Any, reason: str) -> None:
    path = write_jsonl(folder / "shapes.jsonl", [{"image": "b.jpg", "caption": "b"}, row])
    message = refusal(path)
    assert message.startswith(f"{path}:2: ") and reason in message
    samples, (skip,) = skipped(path)
    assert skip.where == f"{path}:2" and reason in skip.reason
    assert samples[0].captions == ("b",) and all(sample.captions == ("good",) for sample in samples[1:])


def test_jsonl_lines_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_LINE_CHARACTERS", 64)
    rows = [
        {"image": "b.jpg", "caption": "b"},
        {"image": "a.jpg", "caption": "x" * 500},
        {"image": "c.jpg", "caption": "c"},
    ]
    path = write_jsonl(folder / "shapes.jsonl", rows)
    problem(folder, path, f"{path}:2", "over the limit of 64 characters", 2)


def test_mistakes_in_a_parquet(folder: Path) -> None:
    path = folder / "shapes.parquet"
    table(image=["a.jpg", None, "b.jpg"], caption=["a", "b", None]).to_parquet(path)
    samples, skips = skipped(path)
    assert [s.id for s in samples] == ["a.jpg"]
    assert skips == [
        Skip(f"{path}: row 1", "the image's name is empty"),
        Skip(f"{path}: row 2", "the caption is empty"),
    ]


def test_a_star_in_the_name_of_a_parquet_file_is_no_pattern(folder: Path) -> None:
    table(image=["a.jpg"], caption=["a"]).to_parquet(folder / "x*.parquet")
    table(image=["b.jpg"], caption=["b"]).to_parquet(folder / "xyz.parquet")
    assert [s.id for s in load(folder / "x*.parquet")] == ["a.jpg"]


def test_a_missing_column_lists_those_there_are(folder: Path) -> None:
    path = write_csv(folder / "shapes.csv", ROWS, header=("image", "Caption"))
    expected = "no column 'caption'; there is 'image', 'Caption'; did you mean 'Caption'?"
    assert refusal(path, on_error="skip") == f"{path}: {expected}"
    table(photo=["a.jpg"], caption=["a"]).to_parquet(folder / "x.parquet")
    assert "no column 'image'; there is 'photo', 'caption'" in refusal(folder / "x.parquet")


def test_images_alone(folder: Path) -> None:
    check_images(write_csv(folder / "x.csv", [(name,) for name in CAPTIONS], header=("image",)), list(CAPTIONS))
    check_images(write_jsonl(folder / "x.jsonl", [{"file_name": name} for name in CAPTIONS]), list(CAPTIONS))
    check_images(write_csv(folder / "y.csv", ROWS), list(CAPTIONS))


def test_labels_of_images_alone(folder: Path) -> None:
    path = write_jsonl(folder / "x.jsonl", [{"image": "a.jpg", "tags": ["red"]}, {"image": "b.jpg", "tags": None}])
    samples = load(path, captioned=False, label_column="tags")
    assert [(s.captions, s.labels) for s in samples] == [((), ("red",)), ((), ())]
