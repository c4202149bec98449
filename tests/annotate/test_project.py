"""The project file: whose words count, what reviewers may undo, and what is refused."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from captioner.annotate.project import Project
from captioner.annotate.project_records import Conflict, NewCaption, ProjectImage, Writer
from captioner.annotate.schema import MIGRATIONS
from captioner.errors import CaptionerError

MODEL = Writer("model", "tiny", "0123", '{"num_beams": 3}')


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with Project(tmp_path / "album.captions", create=True) as project:
        for number in range(3):
            add_image(project, f"{number}.jpg")
        yield project


def add_image(project: Project, path: str) -> None:
    with project.transaction() as connection:
        values = (path.encode("utf-8", "surrogateescape"), 1, 2)
        connection.execute("INSERT INTO images (path, member, size, mtime) VALUES (CAST(? AS TEXT), '', ?, ?)", values)


def suggest(project: Project, text: str, image: int = 1, **more: object) -> int:
    return project.add_suggestion(image, NewCaption(text, **more), project.writer_id(MODEL))


def text_of(project: Project, image: int = 1) -> str | None:
    ((text,),) = project.rows("SELECT caption FROM annotations WHERE id = ?", image)
    return text


def test_a_caption_comes_back_as_it_was_stored_with_its_writer(project):
    more = {
        "confidence": 0.5,
        "tokens": [("a", -0.1), ("dog", -0.7)],
        "words": [("dog", 0.4)],
        "alternatives": [{"caption": "a cat", "confidence": 0.2}],
        "tags": [{"tag": "animal", "score": 0.9}],
    }
    suggest(project, "a dog", flags={"low confidence": "0.5"}, **more)
    (stored,) = project.captions(1)
    assert {name: getattr(stored, name) for name in more} == more
    assert (stored.text, stored.writer, stored.flags) == ("a dog", MODEL, {"low confidence": "0.5"})
    assert project.flags(1) == {"low confidence": "0.5"}


def test_a_person_beats_the_model_and_a_reviewer_beats_both(project):
    suggest(project, "a dog")
    assert text_of(project) == "a dog"
    project.add_words(1, "Rex", project.writer_id(Writer("sidecar")))
    suggest(project, "a brown dog")
    assert text_of(project) == "Rex"
    project.decide(1, project.image(1).version, "edited", "ann", "Rex on the beach")
    project.add_words(1, "Rex again", project.writer_id(Writer("sidecar")))
    suggest(project, "a dog on sand")
    assert text_of(project) == "Rex on the beach"
    assert [caption.text for caption in project.captions(1)] == [
        "a dog", "Rex", "a brown dog", "Rex on the beach", "Rex again", "a dog on sand"
    ], "nothing is lost"  # fmt: skip


def test_a_rejection_lasts_until_another_text_is_offered(project):
    suggest(project, "a dog")
    assert project.decide(1, 1, "rejected", "ann").verdict == "rejected"
    assert text_of(project) is None
    suggest(project, "a dog")
    assert (project.image(1).verdict, text_of(project)) == ("rejected", None)
    suggest(project, "a cat")
    assert (project.image(1).verdict, text_of(project)) == (None, "a cat")


def test_a_rejected_edit_does_not_bring_the_model_s_caption_back(project):
    suggest(project, "a dog")
    edited = project.decide(1, 1, "edited", "ann", "Rex")
    assert project.decide(1, edited.version, "rejected", "bob").verdict == "rejected"
    assert text_of(project) is None


def test_undo_and_redo_reach_the_beginning_and_a_new_decision_ends_redo(project):
    suggest(project, "a dog")

    def state() -> tuple[str | None, str | None]:
        return project.image(1).verdict, text_of(project)

    def act(name: str, *arguments: str) -> None:
        getattr(project, name)(1, project.image(1).version, *arguments)

    states = [state()]
    for decision in (("edited", "ann", "Rex"), ("accepted", "bob"), ("rejected", "ann")):
        act("decide", *decision)
        states.append(state())
    assert states == [(None, "a dog"), ("edited", "Rex"), ("accepted", "Rex"), ("rejected", None)]
    for expected in states[2::-1]:
        act("undo", "ann")
        assert state() == expected
    with pytest.raises(CaptionerError, match="nothing to undo"):
        act("undo", "ann")
    for expected in states[1:]:
        act("redo", "ann")
        assert state() == expected
    act("undo", "ann")
    act("decide", "edited", "ann", "Rex!")
    with pytest.raises(CaptionerError, match="nothing to redo"):
        act("redo", "ann")
    assert len(project.history(1)) == 3 + 3 + 3 + 2, "every act is kept"


def test_the_second_of_two_reviewers_is_told_and_both_texts_are_kept(project):
    suggest(project, "a dog")
    seen = project.image(1).version
    project.decide(1, seen, "edited", "ann", "Rex")
    with pytest.raises(Conflict, match=r"0\.jpg: changed by somebody else") as caught:
        project.decide(1, seen, "edited", "bob", "Max")
    assert caught.value.current.verdict == "edited" and text_of(project) == "Rex"
    kept = project.captions(1)[-1]
    assert (kept.id, kept.text, kept.writer) == (caught.value.kept, "Max", Writer("person", "bob"))
    assert project.flags(1) == {"conflict": "bob wrote at the same time: Max"}
    for act in (project.undo, project.redo):
        with pytest.raises(Conflict):
            act(1, seen, "bob")
    with pytest.raises(Conflict) as caught:
        project.decide(1, seen, "rejected", "bob")
    assert caught.value.kept is None


def test_a_new_suggestion_changes_the_version_only_if_it_is_shown(project):
    suggest(project, "a dog")
    accepted = project.decide(1, 1, "accepted", "ann")
    suggest(project, "a cat")
    assert project.image(1).version == accepted.version
    undone = project.undo(1, accepted.version, "ann")
    suggest(project, "a bird")
    with pytest.raises(Conflict):
        project.decide(1, undone.version, "accepted", "ann")


def test_editing_to_what_is_shown_accepts_it(project):
    suggest(project, "a dog")
    image = project.decide(1, 1, "edited", "ann", " a  dog\n")
    assert image.verdict == "accepted" and len(project.captions(1)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("x" * 10_001, "over the limit"),
        ("a\0b", "NUL"),
        ("\ud800", "not valid Unicode"),
        ("...", "no word"),
    ],
)
def test_words_that_cannot_be_used_are_refused_and_nothing_changes(project, text, message):
    suggest(project, "a dog")
    with pytest.raises(CaptionerError, match=message):
        project.decide(1, 1, "edited", "ann", text)
    assert project.image(1).version == 1 and not project.history(1) and len(project.captions(1)) == 1


def test_hostile_text_is_only_text(project):
    text = "'); DROP TABLE images; -- <script>alert(1)</script> 🐕"
    project.decide(1, 0, "edited", text, text)
    assert text_of(project) == text and project.history(1)[0].reviewer == text


@pytest.mark.parametrize("decision", [("accepted", "ann"), ("rejected", "ann")])
def test_an_image_without_a_caption_can_only_be_edited(project, decision):
    with pytest.raises(CaptionerError, match="has no caption yet"):
        project.decide(1, 0, *decision)
    with pytest.raises(CaptionerError, match="accepted, rejected, or edited with a text"):
        project.decide(1, 0, "edited", "ann")


def test_shares_cover_all_images_once(project):
    assert [project.assign(name, share, 2) for share, name in enumerate(("ann", "bob"), 1)] == [2, 1]
    assert sorted(image.reviewer for image in project.images()) == ["ann", "ann", "bob"]
    with pytest.raises(CaptionerError, match="share 3 of 2"):
        project.assign("ann", 3, 2)


def test_a_path_that_is_not_valid_text_comes_back_as_it_is(project):
    add_image(project, os.fsdecode(b"caf\xe9.jpg"))
    assert os.fsencode(project.image(4).path) == b"caf\xe9.jpg"


def test_paths_start_from_the_project_s_folder(project, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert project.relative("../photos/a.jpg") == "photos/a.jpg"
    assert project.relative("a.jpg") == "elsewhere/a.jpg"
    assert project.absolute("photos/a.jpg") == str(tmp_path / "photos" / "a.jpg")


def test_decisions_are_on_disk_and_captions_need_not_be(project, tmp_path):
    ((full,),) = project.rows("PRAGMA synchronous")
    with Project(tmp_path / "album.captions", durable=False) as other:
        ((normal,),) = other.rows("PRAGMA synchronous")
        ((journal,),) = other.rows("PRAGMA journal_mode")
    assert (full, normal, journal) == (2, 1, "wal")


def test_what_raises_leaves_nothing_behind(project):
    with pytest.raises(ZeroDivisionError), project.transaction():
        suggest(project, "a dog")
        1 / 0  # noqa: B018
    assert not project.captions(1) and project.image(1).version == 0


def test_threads_and_other_openings_write_in_turn(project, tmp_path):
    def write(mine: Project, name: str) -> None:
        for number in range(20):
            suggest(mine, f"{name} {number}")

    with Project(tmp_path / "album.captions") as other:
        pairs = [(project, "a"), (project, "b"), (other, "c")]
        threads = [threading.Thread(target=write, args=pair) for pair in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len({caption.text for caption in project.captions(1)}) == 60


def test_every_field_of_an_image_is_a_column(project):
    assert isinstance(project.image(1), ProjectImage) and project.image(1).name == "0.jpg"
    with pytest.raises(CaptionerError, match="no image 9"):
        project.image(9)


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")


def newer(path: Path) -> None:
    Project(path, create=True).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("no database, but long enough to look at " * 20), "not a caption project"),
        (foreign, "an SQLite file of another program"),
        (newer, "written by a newer version of captioner"),
        (lambda path: path.mkdir(), "unable to open"),
        (lambda path: None, "no such project"),
    ],
    ids=["text", "foreign", "newer", "folder", "nothing"],
)
def test_a_file_that_is_no_project_is_refused_and_left_alone(tmp_path, make, message):
    path = tmp_path / "x.captions"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(CaptionerError, match=message) as caught:
        Project(path, create=path.exists())
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert (path.read_bytes() if path.is_file() else None) == before


def test_decisions_of_one_transaction_are_one_act(project):
    with project.transaction():
        for image in (1, 2):
            project.decide(image, 0, "edited", "ann", "a dog")
    project.decide(3, 0, "edited", "ann", "a dog")
    first, second, third = (project.history(image)[0].decided for image in (1, 2, 3))
    assert first == second < third
