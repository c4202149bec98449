"""`captioner annotate -o album.captions`: what a run does, and what it leaves alone."""

import csv
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stub_captioner import StubCaptioner, update_with

from captioner import cli
from captioner.annotate import runs
from captioner.annotate.paths import given_images
from captioner.annotate.project import Project
from captioner.annotate.update import Loaded, Request, Summary, update
from captioner.decoding.options import GenerationOptions
from captioner.distributed import Process
from captioner.errors import CaptionerError
from captioner.files import exclusive

STUB = Path(__file__).parents[1] / "stub_captioner.py"


def paint(path: Path, number: int, **save: object) -> None:
    """A picture of one colour, which the stub names."""
    Image.new("RGB", (9, 8), (number % 256, number // 256 * 20, 7)).save(path, **save)


def caption_of(number: int) -> str:
    return f"colour {number % 256} {number // 256 * 20} 7"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        paint(folder / f"{number}.png", number)
    monkeypatch.chdir(tmp_path)
    return Path("photos")


@pytest.fixture
def stub() -> StubCaptioner:
    return StubCaptioner()


@pytest.fixture
def captions(photos: Path) -> Callable[[], dict[str, str | None]]:
    """What the project says of each image that is there."""

    def read() -> dict[str, str | None]:
        with Project("a.captions") as project:
            rows = project.rows("SELECT path, member, caption FROM annotations ORDER BY path, member")
        return {f"{row['path']}/{row['member']}".rstrip("/"): row["caption"] for row in rows}

    return read


def decide(path: str, *decision: str) -> None:
    with Project("a.captions") as project:
        (image,) = project.images("path = ?", path)
        project.decide(image.id, image.version, *decision)


ALL = {f"photos/{number}.png": caption_of(number) for number in range(5)}


def test_each_image_is_captioned_once_and_a_second_run_opens_none(photos, stub, captions, monkeypatch):
    assert update_with(stub, "a.captions", photos).captioned == 5
    assert captions() == ALL
    monkeypatch.setattr(Image, "open", None)
    monkeypatch.setattr(runs, "open_image", None)
    summary = update_with(None, "a.captions", photos)  # without a model too
    assert (summary.images, summary.captioned, summary.failed.total()) == (5, 0, 0)
    assert next(summary.lines()) == "0 captioned, 5 skipped, 0 failed"


def test_only_new_and_changed_images_are_captioned(photos, stub, captions):
    update_with(stub, "a.captions", photos)
    paint(photos / "1.png", 100)
    paint(photos / "6.png", 6)
    assert update_with(stub, "a.captions", photos).captioned == 2
    assert captions() == ALL | {"photos/1.png": caption_of(100), "photos/6.png": caption_of(6)}
    with Project("a.captions") as project:
        assert [caption.text for caption in project.captions(2)] == [caption_of(1), caption_of(100)]


def test_a_new_time_alone_does_not_change_an_image(photos, stub, captions):
    update_with(stub, "a.captions", photos)
    os.utime(photos / "1.png", (1, 1))
    assert update_with(stub, "a.captions", photos).captioned == 0
    assert update_with(None, "a.captions", photos).captioned == 0
    assert captions() == ALL


def test_a_renamed_image_keeps_its_caption_and_its_decision(photos, stub, captions):
    update_with(stub, "a.captions", photos)
    decide("photos/1.png", "edited", "ann", "Rex")
    (photos / "new").mkdir()
    (photos / "1.png").rename(photos / "new" / "rex.png")
    summary = update_with(stub, "a.captions", photos)
    assert (summary.captioned, summary.renamed, summary.missing) == (0, 1, 0)
    assert captions()["photos/new/rex.png"] == "Rex" and len(captions()) == 5


def test_a_deleted_image_is_marked_and_comes_back_with_its_caption(photos, stub, captions):
    update_with(stub, "a.captions", photos)
    (photos / "1.png").rename("aside.png")
    assert update_with(stub, "a.captions", photos).missing == 1
    assert "photos/1.png" not in captions()
    Path("aside.png").rename(photos / "1.png")
    assert update_with(stub, "a.captions", photos).captioned == 0
    assert captions() == ALL


def test_images_that_a_run_is_not_given_are_left_alone(photos, stub, captions):
    update_with(stub, "a.captions", photos)
    paint(photos / "1.png", 100)
    summary = update_with(stub, "a.captions", photos / "0.png")
    assert (summary.images, summary.captioned, summary.missing) == (1, 0, 0)
    assert captions() == ALL


def test_exact_copies_are_captioned_once(photos, stub, captions):
    shutil.copy(photos / "1.png", photos / "a copy.png")
    summary = update_with(stub, "a.captions", photos)
    assert (summary.captioned, summary.copied, stub.captioned) == (5, 1, 5)
    assert captions() == ALL | {"photos/a copy.png": caption_of(1)}
    shutil.copy(photos / "1.png", photos / "later.png")
    summary = update_with(stub, "a.captions", photos)
    assert (summary.captioned, summary.copied) == (0, 1)
    (photos / "x.png").write_bytes(b"broken")
    (photos / "y.png").write_bytes(b"broken")
    assert update_with(stub, "a.captions", photos).failed == {"not_an_image": 2}


def test_overwrite_makes_captions_again_but_leaves_people_s_words(photos, stub, captions):
    update_with(stub, "a.captions", photos)
    decide("photos/0.png", "edited", "ann", "Rex")
    decide("photos/1.png", "accepted", "ann")
    decide("photos/2.png", "rejected", "ann")
    other = StubCaptioner(version="2")
    other.caption = lambda mean: stub.caption([1, 1, 1])
    summary = update_with(other, "a.captions", photos, overwrite=True)
    assert (summary.captioned, summary.by_people) == (3, 2)
    new = "colour 1 1 1"
    assert list(captions().values()) == ["Rex", caption_of(1), new, new, new]
    assert update_with(other, "a.captions", photos).captioned == 0
    with Project("a.captions") as project:
        assert len({caption.writer.version for caption in project.captions(4)}) == 2


def test_an_overwriting_that_is_stopped_goes_on_and_a_finished_one_starts_again(photos, stub):
    update_with(stub, "a.captions", photos)

    class Stops(StubCaptioner):
        batch_size = 1

        def add(self, images):
            if self.captioned == 2:
                raise KeyboardInterrupt
            return super().add(images)

    with pytest.raises(KeyboardInterrupt):
        update_with(Stops(), "a.captions", photos, overwrite=True)
    assert update_with(stub, "a.captions", photos, overwrite=True).captioned == 3
    assert update_with(stub, "a.captions", photos, overwrite=True).captioned == 5


def test_overwrite_human_lets_the_model_take_over_and_keeps_what_people_wrote(photos, stub, captions):
    (photos / "0.txt").write_text("my cat\n")
    update_with(stub, "a.captions", photos)
    decide("photos/1.png", "edited", "ann", "Rex")
    assert list(captions().values())[:2] == ["my cat", "Rex"]
    assert update_with(stub, "a.captions", photos, overwrite_human=True).captioned == 1
    assert captions() == ALL
    assert update_with(stub, "a.captions", photos).captioned == 0 and captions() == ALL
    with Project("a.captions") as project:
        assert "my cat" in [caption.text for caption in project.captions(1)]
        image = project.image(2)
        assert project.undo(2, image.version, "ann").verdict == "edited"


def test_images_that_fail_cost_themselves_and_are_tried_again_when_asked_or_changed(photos, stub, captions):
    (photos / "1.png").write_bytes(b"broken")
    (photos / "2.png").write_bytes((photos / "2.png").read_bytes()[:40])
    summary = update_with(stub, "a.captions", photos)
    assert summary.captioned == 3 and summary.failed.total() == 2
    assert [name for name, _ in summary.failures] == ["photos/1.png", "photos/2.png"]
    assert captions()["photos/1.png"] is None
    assert update_with(None, "a.captions", photos).failed == summary.failed
    assert update_with(stub, "a.captions", photos, retry_errors=True).failed == summary.failed
    paint(photos / "1.png", 1)
    assert update_with(stub, "a.captions", photos).captioned == 1
    assert captions()["photos/1.png"] == caption_of(1)


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_tried_again_when_asked(photos, stub):
    (photos / "1.png").chmod(0)
    assert update_with(stub, "a.captions", photos).failed == {"no_permission": 1}
    (photos / "1.png").chmod(0o600)
    assert update_with(stub, "a.captions", photos, retry_errors=True).captioned == 1


def test_a_file_that_is_missing_when_its_turn_comes_is_a_failure(photos, stub):
    (photos / "gone.png").symlink_to("nowhere.png")
    assert update_with(stub, "a.captions", photos).failed == {"missing": 1}
    assert update_with(None, "a.captions", photos).failed == {"missing": 1}


def test_a_dry_run_says_what_there_is_to_do_and_writes_nothing(photos, stub, captions):
    assert update_with(None, "a.captions", photos, dry_run=True).planned == 5
    assert os.listdir() == ["photos"]
    update_with(stub, "a.captions", photos)
    paint(photos / "6.png", 6)
    before = {path: Path(path).stat().st_mtime_ns for path in os.listdir() if path != "photos"}
    assert update_with(None, "a.captions", photos, dry_run=True).planned == 1
    assert update_with(None, "a.captions", photos, dry_run=True, overwrite=True).planned == 6
    assert {path: Path(path).stat().st_mtime_ns for path in os.listdir() if path != "photos"} == before
    assert captions() == ALL


def test_two_runs_at_once_are_refused_and_a_dead_one_is_not_in_the_way(photos, stub):
    with (
        exclusive(Path("a.captions")),
        pytest.raises(CaptionerError, match=r"a\.captions: another run is at work on it"),
    ):
        update_with(stub, "a.captions", photos)
    Path("a.captions.lock").write_text("left by a run that was killed")
    assert update_with(stub, "a.captions", photos).captioned == 5
    assert sorted(os.listdir()) == ["a.captions", "photos"]


def test_images_in_archives_are_captioned_and_changed_ones_again(photos, stub, captions):
    with zipfile.ZipFile("a.zip", "w") as archive:
        for number in range(3):
            archive.write(photos / f"{number}.png", f"in/{number}.png")
        archive.writestr("in/notes.txt", "no image")
        archive.writestr("__MACOSX/in/._0.png", "no image either")
        archive.writestr("in/broken.png", "broken")
    with tarfile.open("b.tar", "w") as archive:
        archive.add(photos / "4.png", "./4.png")
    summary = update_with(stub, "a.captions", "a.zip", "b.tar")
    assert (summary.images, summary.captioned, summary.failed) == (5, 4, {"not_an_image": 1})
    expected = {f"a.zip/in/{number}.png": caption_of(number) for number in range(3)}
    assert captions() == expected | {"a.zip/in/broken.png": None, "b.tar/4.png": caption_of(4)}
    assert update_with(None, "a.captions", "a.zip", "b.tar").captioned == 0
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.write(photos / "0.png", "in/0.png")
        archive.write(photos / "3.png", "in/1.png")
    summary = update_with(stub, "a.captions", "a.zip", "b.tar")
    assert (summary.captioned, summary.missing) == (1, 2)
    assert captions() == {
        "a.zip/in/0.png": caption_of(0),
        "a.zip/in/1.png": caption_of(3),
        "b.tar/4.png": caption_of(4),
    }


def test_alternative_texts_are_sentences(photos, stub, captions):
    update_with(stub, "a.captions", photos, style="alt")
    assert captions()["photos/3.png"] == "Colour 3 0 7."


def test_images_of_a_project_may_have_any_name(photos, stub, captions):
    names = ['it\'s % _ "quoted".png', "новый 🐕.png", "tab\there.png"] + (
        [os.fsdecode(b"caf\xe9.png")] if sys.platform == "linux" else []
    )
    for number, name in enumerate(names, 10):
        paint(photos / name, number)
    assert update_with(stub, "a.captions", photos).captioned == 5 + len(names)
    assert captions()[f"photos/{names[-1]}"] == caption_of(9 + len(names))
    assert update_with(None, "a.captions", photos).captioned == 0


def test_a_project_in_another_folder_finds_its_images_from_anywhere(photos, stub, tmp_path, monkeypatch):
    Path("albums").mkdir()
    update_with(stub, "albums/a.captions", photos)
    monkeypatch.chdir(photos)
    assert update_with(None, "../albums/a.captions", ".").captioned == 0
    assert update_with(None, "../albums/a.captions", tmp_path / "photos").captioned == 0


def test_two_processes_share_the_work_and_write_one_project(photos, captions):
    barrier = threading.Barrier(2, timeout=60)

    class Rank(Process):
        def barrier(self):
            barrier.wait()

    for number in range(30):
        paint(photos / f"{number:03}.png", number)
    shutil.copy(photos / "1.png", photos / "a copy.png")
    stubs = [StubCaptioner(), StubCaptioner()]

    def work(rank: int) -> Summary | None:
        loaded = Loaded(stubs[rank], GenerationOptions(), 4, [stubs[0].folder])
        images = lambda: given_images(["photos"])  # noqa: E731
        return update(Path("a.captions"), images, Request(), lambda *_: loaded, Rank(rank, 2), 2)

    with ThreadPoolExecutor(2) as pool:
        summary, nothing = pool.map(work, (0, 1))
    assert nothing is None and summary.images == summary.captioned + summary.copied == 36
    assert all(stub.captioned > 0 for stub in stubs) and sum(stub.captioned for stub in stubs) == summary.captioned
    assert captions() == ALL | {f"photos/{number:03}.png": caption_of(number) for number in range(30)} | {
        "photos/a copy.png": caption_of(1)
    }


JSONL = """\
{"image": "photos/0.png", "caption": "colour 0 0 7", "confidence": 0.5, "alternatives": [], "tags": [], "width": 9, "height": 8, "model": "stub"}
{"image": "photos/é.png", "caption": "colour 9 0 7", "confidence": 0.5, "alternatives": [], "tags": [], "width": 9, "height": 8, "model": "stub"}
"""  # noqa: E501
CSV = """\
image,caption,confidence,alternatives,tags,width,height,model
photos/0.png,colour 0 0 7,0.5,[],[],9,8,stub
photos/é.png,colour 9 0 7,0.5,[],[],9,8,stub
"""
TABLE = "photos/0.png\tcolour 0 0 7\nphotos/é.png\tcolour 9 0 7\n"
ERRORS = """\
{"image": "photos/x.png", "error": "not_an_image", "message": "not an image in a supported format, whatever its name says"}
"""  # noqa: E501


@pytest.mark.parametrize(("name", "golden"), [("out.jsonl", JSONL), ("out.csv", CSV), (None, TABLE)])
def test_what_is_written_without_a_project_is_as_it_was(photos, monkeypatch, capsys, name, golden):
    """Golden outputs of the release before projects."""
    for number in range(1, 5):
        (photos / f"{number}.png").unlink()
    paint(photos / "é.png", 9)
    (photos / "x.png").write_bytes(b"broken")
    monkeypatch.setattr("captioner.cli.annotate.load_captioner", lambda *_: Wordless())
    monkeypatch.setattr(sys, "argv", ["captioner", "annotate", "photos", *(["-o", name] if name else [])])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    assert end.value.code == 3
    if name is None:
        assert said.out == golden and said.err.startswith("photos/x.png: not an image")
        return
    if name == "out.jsonl":
        rows = [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]
        first = "".join(json.dumps({key: row[key] for key in list(row)[:8]}, ensure_ascii=False) + "\n" for row in rows)
    else:
        with open(name, encoding="utf-8", newline="") as file:
            first = "".join(",".join(cells[:8]) + "\n" for cells in csv.reader(file))
    assert first == golden, "newer fields come after those that were there"
    errors = Path("out.errors.jsonl" if name == "out.jsonl" else f"{name}.errors.jsonl")
    assert errors.read_text() == ERRORS and said.err == "2 captioned, 1 failed\n"
    assert sorted(os.listdir()) == sorted(["photos", name, errors.name])


class Wordless(StubCaptioner):
    """The stub, with the options that the command asks a captioner for."""

    def word_options(self, *words: object) -> dict[str, object]:
        return {}

    def options(self, **given: object) -> GenerationOptions:
        return GenerationOptions(**given)


def test_projects_need_no_torch(photos):
    script = f"import runpy, sys; sys.modules['torch'] = None; runpy.run_path({str(STUB)!r}, run_name='__main__')"
    finished = subprocess.run(
        [sys.executable, "-c", script, "a.captions", "0", "photos"], capture_output=True, text=True
    )
    assert finished.stdout.startswith("begins\n5 captioned"), finished.stderr


def kill_a_run(photos: Path, seconds: float) -> None:
    """Start a run, and kill it so long after it has begun."""
    command = [sys.executable, str(STUB), "a.captions", "0.01", str(photos)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"begins\n"
        time.sleep(seconds)
        process.kill()


def contents(path: str) -> list[tuple[object, ...]]:
    query = "SELECT path, hash, width, height, caption, confidence, tokens FROM annotations ORDER BY path"
    with Project(path) as project:
        assert project.rows("PRAGMA integrity_check")[0][0] == "ok"
        return [tuple(row) for row in project.rows(query)]


def test_a_run_that_is_killed_at_any_instant_goes_on_and_nothing_is_lost_or_doubled(photos, stub):
    kills = int(os.environ.get("CAPTIONER_KILLS", "3"))
    for number in range(25 * kills):
        paint(photos / f"{number:03}.png", number)
    update_with(stub, "whole.captions", photos)
    seconds = np.random.default_rng().uniform(0, 0.2, kills)
    for instant in seconds:
        kill_a_run(photos, instant)
    left = update_with(stub, "a.captions", photos)
    assert left.captioned > 0, f"the runs that were killed after {seconds} did it all: the test shows nothing"
    assert contents("a.captions") == contents("whole.captions")
    with Project("a.captions") as project:
        ((made,),) = project.rows("SELECT count(*) FROM captions")
        ((images,),) = project.rows("SELECT count(DISTINCT image) FROM captions")
    assert made == images == left.images


def test_a_disk_that_is_full_at_any_write_ends_the_run_in_one_line_and_the_next_goes_on(photos, stub, monkeypatch):
    for number in range(60):
        paint(photos / f"{number:03}.png", number)
    update_with(stub, "whole.captions", photos)
    with Project("whole.captions") as project:
        ((pages,),) = project.rows("PRAGMA page_count")
    for room in np.random.default_rng().integers(1, pages, 5):
        with monkeypatch.context() as patched:
            patched.setattr(sqlite3, "connect", with_room_for(room))
            with pytest.raises(CaptionerError, match=r"^a\.captions: database or disk is full$"):
                update_with(stub, "a.captions", photos)
    update_with(stub, "a.captions", photos)
    assert contents("a.captions") == contents("whole.captions")


def with_room_for(pages: int) -> Callable[..., sqlite3.Connection]:
    connect = sqlite3.connect

    def small(*arguments: object, **named: object) -> sqlite3.Connection:
        connection = connect(*arguments, **named)
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    return small


def test_a_file_that_may_not_grow_ends_the_run_in_one_line_and_the_next_goes_on(photos, stub, captions, full_disk):
    update_with(stub, "a.captions", photos / "0.png")
    with full_disk(), pytest.raises(CaptionerError, match=r"^a\.captions: disk I/O error$"):
        update_with(stub, "a.captions", photos)
    update_with(stub, "a.captions", photos)
    assert captions() == ALL
