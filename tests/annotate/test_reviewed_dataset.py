"""Data sets of reviewed captions: what is in them, what stays the same from version to version, what is found wrong."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from albums import add_photo
from PIL import Image
from typer.testing import CliRunner

from captioner.annotate import reviewed_dataset
from captioner.annotate.project import Project
from captioner.cli import app
from captioner.config import SourceConfig
from captioner.data.sources import load_samples
from captioner.errors import CaptionerError


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """40 photos: 20 accepted, 10 edited, 5 rejected, 5 undecided."""
    with Project(tmp_path / "album.captions", create=True) as project, project.transaction():
        for number in range(40):
            image = add_photo(project, f"photos/{number:02}.png", f"photo {number}")
            path = Path(project.folder, f"photos/{number:02}.png")
            Image.new("RGB", (8, 8), (number, 2 * number, 200)).save(path)
            if number < 20:
                project.decide(image, 1, "accepted", "ann")
            elif number < 30:
                project.decide(image, 1, "edited", "bob", f"bob's photo {number}")
            elif number < 35:
                project.decide(image, 1, "rejected", "bob")
    with Project(tmp_path / "album.captions") as project:
        yield project


def build(project: Project, name: str, **settings: float) -> Path:
    folder = Path(project.folder, name)
    left: list[tuple[str, str]] = []
    reviewed_dataset.build(
        project, folder, **{"share": 0.2, "person_weight": 2.0} | settings, report=lambda *what: left.append(what)
    )
    assert left == []
    return folder


def rows_of(folder: Path) -> dict[str, dict]:
    rows = map(json.loads, (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines())
    return {Path(row["image"]).stem: row for row in rows}


def test_accepted_and_edited_captions_are_in_it_with_where_they_come_from(project):
    folder = build(project, "v1")
    rows = rows_of(folder)
    assert sorted(rows) == [f"{number:02}" for number in range(30)]
    fields = ("caption", "verdict", "reviewer", "written_by", "writer", "sample_weight")
    assert {field: rows["00"][field] for field in fields} == {
        "caption": "photo 0", "verdict": "accepted", "reviewer": "ann", "written_by": "model", "writer": "tiny",
        "sample_weight": 1.0,
    }  # fmt: skip
    assert {key: rows["25"][key] for key in ("caption", "written_by", "writer", "sample_weight")} == {
        "caption": "bob's photo 25", "written_by": "person", "writer": "bob", "sample_weight": 2.0,
    }  # fmt: skip
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["by_verdict"] == {"accepted": 20, "edited": 10} and manifest["images"] == 30
    assert sum(manifest["by_split"].values()) == 30 and manifest["by_split"]["val"] > 0


def test_training_reads_it_as_it_is(project):
    folder = build(project, "v1")
    train, skipped = load_samples(SourceConfig(path=str(folder), split="train"))
    val, _ = load_samples(SourceConfig(path=str(folder), split="val"))
    assert len(train) + len(val) == 30 and not skipped
    assert {sample.weight for sample in train} == {1.0, 2.0}


def test_an_image_stays_in_its_part_under_another_name_and_beside_new_ones(project):
    first = {row["hash"]: row["split"] for row in rows_of(build(project, "v1")).values()}
    Path(project.folder, "photos/00.png").rename(Path(project.folder, "photos/first.png"))
    project.rows("UPDATE images SET path = 'photos/first.png' WHERE path = 'photos/00.png' RETURNING id")
    project.decide(40, 1, "accepted", "ann")
    second = {row["hash"]: row["split"] for row in rows_of(build(project, "v2")).values()}
    assert len(second) == 31 and first.items() <= second.items()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_about_the_share_is_for_validation(share):
    digests = [f"{number * 2654435761 % 2**32:08x}" + "0" * 24 for number in range(2000)]
    val = sum(reviewed_dataset.split_of(digest, share) == "val" for digest in digests)
    assert abs(val - 2000 * share) < 10


def test_a_photo_in_an_archive_is_copied_out(project, tmp_path):
    Image.new("RGB", (9, 9), "red").save(tmp_path / "x.png")
    with zipfile.ZipFile(tmp_path / "box.zip", "w") as archive:
        archive.write(tmp_path / "x.png", "in/x.png")
    size = (tmp_path / "x.png").stat().st_size
    values = ("box.zip", "in/x.png", size, 0)
    ((image,),) = project.rows(
        "INSERT INTO images (path, member, size, mtime) VALUES (?, ?, ?, ?) RETURNING id", *values
    )
    project.decide(image, 0, "edited", "ann", "a red square")
    folder = build(project, "v1")
    (row,) = (row for row in rows_of(folder).values() if row["caption"] == "a red square")
    assert (folder / row["image"]).read_bytes() == (tmp_path / "x.png").read_bytes()
    assert reviewed_dataset.validate(folder) == []


def test_diff_goes_by_the_images_not_their_names(project):
    first = build(project, "v1")
    image = project.image(1)
    project.decide(1, image.version, "edited", "ann", "something else")
    project.decide(2, project.image(2).version, "rejected", "ann")
    project.decide(40, 1, "accepted", "ann")
    changes = reviewed_dataset.diff(first, build(project, "v2"))
    assert changes == {
        "added": ["../photos/39.png"],
        "removed": ["../photos/01.png"],
        "changed": [{"image": "../photos/00.png", "before": "photo 0", "after": "something else"}],
        "moved": [],
    }


def test_validate_finds_what_was_changed_since(project):
    folder = build(project, "v1")
    assert reviewed_dataset.validate(folder) == []
    Path(project.folder, "photos/03.png").unlink()
    Image.new("RGB", (8, 8), "white").save(Path(project.folder, "photos/04.png"))
    text = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(text.replace('"photo 5"', '"..."'))
    faults = reviewed_dataset.validate(folder)
    assert len(faults) == 4
    for expected in ("changed since it was built", "image is missing", "image has changed", "holds no word"):
        assert any(expected in fault for fault in faults), expected


def test_what_is_missing_is_left_out_and_said(project):
    Path(project.folder, "photos/03.png").unlink()
    result = CliRunner().invoke(app, ["dataset", "build", str(project.path), "-o", f"{project.folder}/v1"])
    assert result.exit_code == 3 and "photos/03.png" in result.stderr
    assert len(rows_of(Path(project.folder, "v1"))) == 29


def test_nothing_half_written_and_nothing_overwritten(project, tmp_path, full_disk):
    with full_disk(), pytest.raises((CaptionerError, OSError)):
        for image in range(1, 21):
            project.rows("UPDATE captions SET text = ? WHERE image = ? RETURNING id", "x " * 900, image)
        build(project, "v1")
    assert not (tmp_path / "v1").exists()
    (tmp_path / "v2").mkdir()
    with pytest.raises(CaptionerError, match="exists already"):
        build(project, "v2")


def test_a_project_without_a_decision_makes_no_data_set(tmp_path):
    with (
        Project(tmp_path / "x.captions", create=True) as empty,
        pytest.raises(CaptionerError, match="no caption has been accepted or edited"),
    ):
        build(empty, "v1")
    assert not (tmp_path / "v1").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("manifest.json", "{"), ("manifest.json", "[]"), ("metadata.jsonl", "{}\n"), ("metadata.jsonl", "x")],
)
def test_a_damaged_data_set_is_refused_in_one_line(project, name, content):
    folder = build(project, "v1")
    (folder / name).write_text(content)
    for look in (reviewed_dataset.read, reviewed_dataset.stats, reviewed_dataset.validate):
        with pytest.raises(CaptionerError, match="damaged data set"):
            look(folder)
    with pytest.raises(CaptionerError, match="not a data set"):
        reviewed_dataset.read(folder.parent)


def test_the_commands_print_json_and_say_by_their_status_what_they_found(project):
    folder = build(project, "v1")
    run = CliRunner().invoke
    stats = json.loads(run(app, ["dataset", "stats", str(folder)]).stdout)
    assert stats["by_reviewer"] == {"ann": 20, "bob": 10} and stats["words_per_caption"]["median"] == 2
    agreed = json.loads(run(app, ["dataset", "stats", str(project.path)]).stdout)
    assert agreed["verdicts"]["bob"] == {"edited": 10, "rejected": 5}
    assert json.loads(run(app, ["dataset", "diff", str(folder), str(folder)]).stdout)["changed"] == []
    assert run(app, ["dataset", "validate", str(folder)]).exit_code == 0
    (folder / "metadata.jsonl").write_text((folder / "metadata.jsonl").read_text().replace("photo 1", "photo one"))
    assert run(app, ["dataset", "validate", str(folder)]).exit_code == 1
