"""Alternative texts, and the linter for captions that are none."""

import sys
from pathlib import Path

import pytest
from PIL import Image
from stub_captioner import StubCaptioner, update_with

from captioner import cli
from captioner.annotate.alt_text import MAX_CHARACTERS, alt_text
from captioner.annotate.project import Project


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a dog runs on grass", "A dog runs on grass."),
        ("a dog runs on grass .", "A dog runs on grass."),
        ("A dog runs!", "A dog runs!"),
        ("a picture of a dog", "A dog."),
        ("A black and white photograph of two men", "A black and white photograph of two men."),
        ("the image shows a dog", "The image shows a dog."),
        ("an image of  two\ndogs", "Two dogs."),
        ("photo of a dog showing its teeth", "A dog showing its teeth."),
        ("this is a photo of a dog", "A dog."),
        ("a man taking a picture of a dog", "A man taking a picture of a dog."),
        ("", ""),
        ("écureuil", "Écureuil."),
    ],
)
def test_a_caption_becomes_a_sentence_without_what_a_screen_reader_says_anyway(caption, expected):
    assert alt_text(caption) == expected
    assert alt_text(expected) == expected


@pytest.mark.parametrize(
    "caption",
    [
        "a dog and " * 30,
        "word" * 60,
        "a dog that runs over a very long beach by the blue sea, " * 4,
        "x" * 125,
        "x" * 124,
    ],
)
def test_it_is_short_and_ends_between_words(caption):
    text = alt_text(caption)
    assert 60 < len(text) <= MAX_CHARACTERS and text.endswith(".")
    assert not text.endswith((" and.", " a.", ",.", " ."))
    if " " in caption:
        assert set(text.lower().rstrip(".").replace(",", "").split()) <= set(caption.replace(",", "").split())


@pytest.fixture
def lint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Lint a project in which photos have these captions."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()

    def run(captions: dict[str, str], *arguments: str, near: bool = False, status: int = 3) -> list[list[str]]:
        for number, name in enumerate(captions):
            Image.new("RGB", (8, 8), (number * 20, 0, 0)).save(Path("photos", name))
        update_with(StubCaptioner(), "a.captions", "photos")
        with Project("a.captions") as project:
            for image in project.images():
                text = captions[Path(image.path).name]
                if text:
                    project.decide(image.id, image.version, "edited", "ann", text)
                else:
                    project.decide(image.id, image.version, "rejected", "ann")
            if near:
                with project.transaction() as connection:
                    connection.execute("UPDATE images SET near = 1")
        monkeypatch.setattr(sys, "argv", ["captioner", "lint", "a.captions", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert (end.value.code or 0) == status
        return [line.split("\t") for line in capsys.readouterr().out.splitlines()]

    return run


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("a.png", "a dog " * 30, "too-long"),
        ("DSC_0012.png", "DSC_0012", "file-name"),
        ("x.png", "x.png", "file-name"),
        ("a.png", "beach day.JPG", "file-name"),
        ("a.png", "IMG 2034", "file-name"),
        ("a.png", "Picture of a dog", "states-the-obvious"),
        ("a.png", "An image showing a dog", "states-the-obvious"),
        ("a.png", "image", "placeholder"),
        ("a.png", "Alt text.", "placeholder"),
        ("a.png", "A DOG ON THE GRASS", "capitals"),
        ("a.png", "", "no-caption"),
    ],
)
def test_each_fault_is_named(lint, name, text, rule):
    assert [line[:2] for line in lint({name: text})] == [[f"photos/{name}", rule]]


def test_good_texts_pass(lint):
    assert lint({"a.png": "A dog runs on grass.", "image of dog.png": "A dog in a photo studio"}, status=0) == []


def test_one_text_for_different_photos_is_found_and_copies_are_not(lint):
    found = lint({"a.png": "A dog", "b.png": "A dog", "c.png": "A cat"})
    assert [line[:2] for line in found] == [["photos/a.png", "same-text"], ["photos/b.png", "same-text"]]


def test_photos_that_look_alike_may_share_a_text_but_should_not_differ(lint):
    assert lint({"a.png": "A dog", "b.png": "A dog"}, near=True, status=0) == []


def test_look_alikes_with_different_texts_are_listed(lint):
    assert {line[1] for line in lint({"a.png": "A dog", "b.png": "A cat"}, near=True)} == {"look-alikes"}


def test_the_longest_length_can_be_chosen(lint):
    assert [line[1] for line in lint({"a.png": "A dog runs"}, "--max-characters", "5")] == ["too-long"]


def test_alternative_texts_of_a_model_pass_and_captions_are_no_alternative_texts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8), (20, 0, 0)).save("a.png")
    update_with(StubCaptioner(), "alt.captions", "a.png", style="alt")
    with Project("alt.captions") as project, project.transaction() as connection:
        monkeypatch.setattr(sys, "argv", ["captioner", "lint", "alt.captions"])
        for text, status in (("A dog.", 0), ("a dog", 3)):
            connection.execute("UPDATE captions SET text = ?", (text,))
            connection.execute("COMMIT")
            with pytest.raises(SystemExit) as end:
                cli.main()
            assert (end.value.code or 0) == status, capsys.readouterr().out
            connection.execute("BEGIN")
