"""Folders of photos with captions beside them: a folder or file that cannot be read costs itself, and is named."""

import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from layouts import CAPTIONS, ROWS, check, check_images, photo, problem, table, write_csv, write_jsonl, write_karpathy
from loading import load, refusal, skipped


def test_folder_with_sidecars(folder: Path) -> None:
    for name, captions in CAPTIONS.items():
        (folder / "images" / name).with_suffix(".txt").write_text("\n".join(captions) + "\n\n", "utf-8-sig")
    (folder / "images" / "._a.jpg").write_bytes(b"written by another system's file manager")
    check(load(folder / "images"))
    check(load(folder), [f"images/{name}" for name in CAPTIONS])


@pytest.mark.parametrize("name", ["metadata.csv", "captions.csv"])
def test_folder_with_a_csv(folder: Path, name: str) -> None:
    write_csv(folder / "images" / name, ROWS, header=("file_name", "text"))
    check(load(folder / "images", caption_column="text"))


def test_folder_with_a_jsonl(folder: Path) -> None:
    write_jsonl(folder / "images" / "metadata.jsonl", [{"file_name": n, "caption": c} for n, c in CAPTIONS.items()])
    check(load(folder / "images"))


def test_mistakes_in_sidecars(folder: Path) -> None:
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


def test_folders_that_mean_something_else(folder: Path) -> None:
    write_karpathy(folder)
    assert "holds dataset_shapes.json; give that file" in refusal(folder)
    table(image=["a.jpg"], caption=["a"]).save_to_disk(folder / "saved")
    assert f"write hf:{folder / 'saved'}" in refusal(folder / "saved")


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
def test_sidecars_match_whatever_case_and_composition_their_names_have(tmp_path: Path, image: str, text: str) -> None:
    (tmp_path / image).write_bytes(photo("a.jpg"))
    (tmp_path / text).write_text("a caption")
    (sample,) = load(tmp_path)
    assert (sample.id, sample.captions) == (image, ("a caption",))


def test_of_several_sidecars_the_one_of_the_very_name_counts_and_two_are_refused(tmp_path: Path) -> None:
    for name in ("A.jpg", "a.jpg"):
        (tmp_path / name).write_bytes(photo("a.jpg"))
        (tmp_path / name).with_suffix(".txt").write_text(f"of {name}")
    assert [s.captions for s in load(tmp_path)] == [("of A.jpg",), ("of a.jpg",)]
    (tmp_path / "a.caption").write_text("another")
    problem(tmp_path, tmp_path, str(tmp_path / "a.jpg"), "captions: a.caption and a.txt; keep one", 1)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    photos = tmp_path / "photos"
    for place in (photos, photos / "sub"):
        place.mkdir()
        (place / "a.jpg").write_bytes(photo("a.jpg"))
        (place / "a.txt").write_text("a caption")
    return photos


@pytest.mark.parametrize("captioned", [True, False])
def test_one_that_may_not_be_read(photos: Path, captioned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir, denied = os.scandir, str(photos / "sub")

    def scan(path: str) -> Any:
        if path == denied:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    problem(photos, photos, denied, "cannot be read: Permission denied", 1, captioned=captioned)


def test_a_text_that_may_not_be_read(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, denied = open, str(photos / "sub" / "a.txt")

    def refuse(path: Any, *args: Any, **options: Any) -> Any:
        if path == denied:
            raise PermissionError(13, "Permission denied", path)
        return real(path, *args, **options)

    monkeypatch.setattr("builtins.open", refuse)
    problem(photos, photos, denied, "cannot be read: Permission denied", 1)


@pytest.mark.parametrize("name", ["loop", "loop.jpg"])
def test_a_link_that_leads_nowhere(photos: Path, name: str) -> None:
    (photos / name).symlink_to(name)
    problem(photos, photos, str(photos / name), "cannot be read: Too many levels of symbolic links", 2)
    (photos / name).unlink()
    (photos / name).symlink_to("gone")
    problem(photos, photos, str(photos / name), "cannot be read: No such file or directory", 2)


def test_links_to_folders_are_followed_and_loops_end(photos: Path, tmp_path: Path) -> None:
    (photos / "sub" / "up").symlink_to(photos)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "b.jpg").write_bytes(photo("b.jpg"))
    (elsewhere / "b.txt").write_text("linked")
    (photos / "linked").symlink_to(elsewhere)
    assert [s.id for s in load(photos)] == ["a.jpg", "linked/b.jpg", "sub/a.jpg"]


def test_brackets_in_names(photos: Path) -> None:
    odd = photos.parent / "trip [2023] *?"
    photos.rename(odd)
    assert [s.id for s in load(odd)] == ["a.jpg", "sub/a.jpg"]
    write_csv(odd / "x.csv", [("a.jpg", "a")])
    assert len(load(odd / "x.csv")) == 1
    table(image=["a.jpg"], caption=["a"]).to_parquet(odd / "x[1].parquet")
    assert len(load(odd / "x[1].parquet")) == 1


def test_deep_nesting(tmp_path: Path) -> None:
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


def test_images_alone(folder: Path) -> None:
    (folder / "images" / "a.txt").write_text("not read, nor missed beside the others")
    check_images(folder, ["images/a.jpg", "images/b.jpg", "images/c.jpg"])


def test_a_folder_of_photos_says_so_where_captions_are_wanted(folder: Path) -> None:
    assert "a.jpg: the image has no caption: no a.txt beside it" in refusal(folder)
