import os
from pathlib import Path

import pytest

from captioner.annotate.paths import find_images
from captioner.errors import CaptionerError


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    names = [
        "b.jpg",
        "a.PNG",
        "notes.txt",
        "noext",
        ".hidden.jpg",
        "sub/d.webp",
        "sub/c.jpg",
        ".git/x.jpg",
        "sub/deep/e.gif",
    ]
    for name in names:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


ALL = ["photos/a.PNG", "photos/b.jpg", "photos/sub/c.jpg", "photos/sub/d.webp", "photos/sub/deep/e.gif"]


def test_a_folder_gives_its_visible_images_sorted(tree):
    assert list(find_images(["photos"])) == ALL


def test_globs_expand_files_and_folders(tree):
    assert list(find_images(["photos/*.jpg"])) == ["photos/b.jpg"]
    assert list(find_images(["photos/**/*"])) == ALL
    assert list(find_images(["ph*"])) == ALL


def test_an_existing_name_with_glob_characters_is_that_file(tree):
    Path("photos/[1].jpg").touch()
    assert list(find_images(["photos/[1].jpg"])) == ["photos/[1].jpg"]


def test_files_named_outright_are_taken_whatever_their_name(tree):
    assert list(find_images(["photos/notes.txt", "photos/.hidden.jpg"])) == ["photos/notes.txt", "photos/.hidden.jpg"]


@pytest.mark.parametrize(
    "paths",
    [
        ["photos", "photos"],
        ["photos/b.jpg", "photos", "photos/sub/c.jpg", "./photos/b.jpg"],
        ["photos/sub/deep", "photos", "photos/sub"],
        ["photos/*", "photos/**/*.jpg", str(Path("photos/../photos"))],
    ],
)
def test_no_image_comes_twice(tree, paths):
    found = [os.path.realpath(path) for path in find_images(paths)]
    assert sorted(found) == sorted(os.path.realpath(path) for path in ALL)
    assert list(find_images(paths)) == list(find_images(paths))


def test_a_file_named_first_keeps_its_place(tree):
    assert list(find_images(["photos/sub/d.webp", "photos"])) == [
        "photos/sub/d.webp",
        *(p for p in ALL if "d.w" not in p),
    ]


def test_symbolic_links_are_followed_once_and_loops_end(tree):
    elsewhere = tree / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "z.jpg").touch()
    Path("photos/loop").symlink_to(tree / "photos")
    Path("photos/one").symlink_to(elsewhere)
    Path("photos/two").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(tree / "photos")
    assert list(find_images(["photos"])) == [*ALL[:2], "photos/one/z.jpg", *ALL[2:]]
    Path("photos/dangling.jpg").symlink_to("nowhere.jpg")  # an image that cannot be read, to be reported as such
    assert "photos/dangling.jpg" in list(find_images(["photos"]))


@pytest.mark.parametrize(("path", "message"), [("gone", "no such file or folder"), ("*.jpg", "matches nothing")])
def test_a_path_that_leads_nowhere_is_an_error(tree, path, message):
    with pytest.raises(CaptionerError, match=message):
        list(find_images(["photos", path]))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a folder that may not be read")
def test_a_folder_that_may_not_be_read_is_reported_like_an_image(tree):
    Path("photos/sub").chmod(0)
    assert list(find_images(["photos"])) == [*ALL[:2], "photos/sub"]
    Path("photos/sub").chmod(0o700)
