import os
import subprocess
import sys
from pathlib import Path

import pytest

import captioner
from captioner.annotate.paths import find_images
from captioner.data.images import ImageError, load_image
from captioner.errors import CaptionerError

ROOT = str(Path(captioner.__file__).parents[1])


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


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gone", "no such file or folder"),
        ("gone/*.jpg", "matches nothing"),
        ("*.jpg", "matches nothing"),
        ("", "no such file or folder"),
        ("photos/b.jpg/c.jpg", "no such file or folder"),
        ("https://example.org/a.jpg", "is a URL, and URLs are not fetched"),
        ("https://example.org/a.jpg?width=*", "is a URL, and URLs are not fetched"),
        (300 * "x", "File name too long"),
    ],
)
def test_a_path_that_leads_nowhere_is_an_error(tree, path, message):
    with pytest.raises(CaptionerError, match=message):
        list(find_images(["photos", path]))


@pytest.mark.parametrize("link", ["sub/self", "sub/self.jpg", "self", "a-loop", "photos"])
def test_a_link_that_cannot_be_followed_costs_only_itself(tree, link):
    path = Path("photos") / link
    path.symlink_to(path.name)
    expected = sorted([*ALL, "photos/sub/self.jpg"]) if link.endswith(".jpg") else ALL
    assert list(find_images(["photos"])) == expected
    assert list(find_images(["photos/**/*"])) == expected
    with pytest.raises(ImageError, match="Too many levels of symbolic links"):
        load_image(next(find_images([str(path)])))


def test_two_loops_of_links_do_not_multiply(tree):
    for name in ("one", "two", "sub/one", "sub/two"):
        (Path("photos") / name).symlink_to(tree / "photos")
    assert list(find_images(["photos/**/*.jpg"])) == ["photos/b.jpg", "photos/sub/c.jpg"]
    assert list(find_images(["**/d.*"])) == ["photos/sub/d.webp"]
    assert list(find_images(["photos"])) == ALL


@pytest.mark.parametrize("folder", ["trip [2023]", "a*b", "what?", "[!x]"])
def test_a_folder_s_name_is_no_pattern(tree, folder):
    for place in (folder, "trip 2", "ab", "axb", "whats", "y"):
        Path(place).mkdir()
        Path(place, "1.jpg").touch()
    inner = Path(folder, "in [side]")
    inner.mkdir()
    (inner / "2.jpg").touch()
    assert list(find_images([f"{folder}/*.jpg"])) == [f"{folder}/1.jpg"]
    assert list(find_images([f"{folder}/*/2.jpg"])) == [f"{folder}/in [side]/2.jpg"]
    assert list(find_images([f"{folder}/**/*.jpg"])) == [f"{folder}/1.jpg", f"{folder}/in [side]/2.jpg"]
    assert list(find_images([f"{folder}/in [side]/?.jpg"])) == [f"{folder}/in [side]/2.jpg"]


@pytest.mark.skipif(os.name == "nt", reason="paths are shorter there")
def test_folders_may_be_nested_deeper_than_the_stack(tree):
    descend = os.open("photos", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=descend)
        below = os.open("d", os.O_RDONLY, dir_fd=descend)
        os.close(descend)
        descend = below
    os.close(os.open("last.jpg", os.O_CREAT, dir_fd=descend))
    os.close(descend)
    last = "photos/" + 1500 * "d/" + "last.jpg"
    assert list(find_images(["photos"])) == [*ALL[:2], last, *ALL[2:]]
    assert list(find_images(["photos/**/*.jpg"])) == ["photos/b.jpg", last, "photos/sub/c.jpg"]
    subprocess.run(["rm", "-rf", "photos/d"], check=True)  # too deep for pytest's own cleaning


AS_ANOTHER_USER = """
import os, sys
from captioner.annotate.paths import find_images
from captioner.data.images import ImageError, load_image
if os.geteuid() == 0:
    os.seteuid(65534)
for path in find_images(sys.argv[1:]):
    try:
        load_image(path)
    except ImageError as error:
        print(path, error.reason)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX permissions")
@pytest.mark.parametrize("paths", [["photos"], ["photos/**/*"], ["photos/*"]])
@pytest.mark.parametrize(
    ("mode", "reported"),
    [
        (0o000, ["photos/sub"]),
        (0o311, ["photos/sub"]),
        (0o744, ["photos/sub/album", "photos/sub/c.jpg", "photos/sub/d.webp", "photos/sub/deep"]),
    ],
)
def test_what_may_not_be_read_is_reported_like_an_image(tree, mode, reported, paths):
    elsewhere = tree / "elsewhere"
    elsewhere.mkdir()
    Path("photos/sub/album").symlink_to(elsewhere)
    for folder in (tree, *tree.parents[:2]):
        folder.chmod(0o755)
    Path("photos/sub").chmod(mode if os.geteuid() == 0 else mode & 0o700)
    command = [sys.executable, "-c", AS_ANOTHER_USER, *paths]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": ROOT})
    Path("photos/sub").chmod(0o755)
    lines = [line for line in result.stdout.splitlines() if line.startswith("photos/sub")]
    assert result.stderr == "" and lines == [f"{path} no_permission" for path in reported]


def test_a_name_composed_another_way_is_the_file_on_disk(tree):
    nfc, nfd = "caf\u00e9", "cafe\u0301"
    for place in (nfd, nfc + " 2"):
        Path(place).mkdir()
        Path(place, f"{nfd}.jpg").touch()
    assert list(find_images([f"{nfc}/{nfc}.jpg"])) == [f"{nfd}/{nfd}.jpg"]
    assert list(find_images([f"{nfd} 2/caf?.jpg"])) == [f"{nfc} 2/{nfd}.jpg"]
    assert list(find_images([nfc])) == [f"{nfd}/{nfd}.jpg"]


@pytest.mark.skipif(os.sep != "/", reason="a backslash separates folders there")
def test_backslashes_separate_folders_unless_such_a_name_is_there(tree):
    assert list(find_images(["photos\\sub\\c.jpg", "photos\\notes.txt", "photos\\*.jpg"])) == [
        "photos/sub/c.jpg",
        "photos/notes.txt",
        "photos/b.jpg",
    ]
    Path("photos\\b.jpg").touch()
    assert list(find_images(["photos\\b.jpg"])) == ["photos\\b.jpg"]


def test_suffixes_count_in_any_case(tree):
    for name in ("1.JPG", "2.JpEg", "3.TXT"):
        Path("photos/sub", name).touch()
    assert list(find_images(["photos/sub"]))[:2] == ["photos/sub/1.JPG", "photos/sub/2.JpEg"]
