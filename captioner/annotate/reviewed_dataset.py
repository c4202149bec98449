"""Versioned data sets of what people have reviewed: built from a project, compared, checked, and ready to train on.

A data set is a folder with `metadata.jsonl`, a row an image, which training reads as it is, and `manifest.json`, which
says what it holds and where it comes from. Photos stay where they are and are known by the hash of their bytes; those
in archives are copied to `images/`, since only files can be trained on.
"""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from captioner.annotate.project import Project
from captioner.annotate.project_records import ProjectImage
from captioner.data.archives import ArchiveMember
from captioner.data.caption_checks import caption_problem
from captioner.data.images import ImageError
from captioner.errors import CaptionerError
from captioner.files import new_folder, open_text

ROWS, MANIFEST, FORMAT = "metadata.jsonl", "manifest.json", 1
TRAIN, VALIDATION = "train", "val"

Report = Callable[[str, str], object]
"""Is told what was left out, and why."""


def build(project: Project, output: Path, *, share: float, person_weight: float, report: Report) -> dict[str, Any]:
    """Write the accepted and edited captions of a project as a data set; return its manifest.

    Args:
        share: of the images that go to validation. Which ones depends on their bytes alone, so an image stays in its
            part from one version to the next.
        person_weight: `sample_weight` of captions that a person wrote; those that a person accepted have 1.
        report: is told of images that are missing or cannot be read.

    Raises:
        CaptionerError: nothing has been reviewed, or `output` exists or cannot be written.
    """
    with new_folder(output) as partial:
        counts: dict[str, Counter[str]] = {name: Counter() for name in ("split", "verdict", "reviewer")}
        with open_text(partial / ROWS, "x") as file:
            for image, caption in _reviewed(project):
                row = _row(project, image, caption, output, partial, share, person_weight, report)
                if row is None:
                    continue
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                for name, count in counts.items():
                    count[row[name]] += 1
        if not counts["split"]:
            raise CaptionerError(f"{project.path}: no caption has been accepted or edited yet, or no image can be read")
        manifest = {
            "format": FORMAT,
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "project": os.path.relpath(project.path, output).replace(os.sep, "/"),
            "validation_share": share,
            "images": sum(counts["split"].values()),
            **{f"by_{name}": dict(sorted(count.items())) for name, count in counts.items()},
            "sha256": _sha256(partial / ROWS),
        }
        with open_text(partial / MANIFEST, "x") as file:
            file.write(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def _reviewed(project: Project) -> Iterator[tuple[ProjectImage, dict[str, Any]]]:
    """Images with an accepted or edited caption, sorted by name, each with what the project says of the caption."""
    rows = project.rows(
        """SELECT id, caption, caption_id, writer_kind, writer, writer_version, decided_by, decided FROM annotations
        WHERE verdict IN ('accepted', 'edited') ORDER BY path, member"""
    )
    for row in rows:
        yield project.image(row["id"]), dict(row)


def _row(
    project: Project,
    image: ProjectImage,
    caption: dict[str, Any],
    output: Path,
    partial: Path,
    share: float,
    person_weight: float,
    report: Report,
) -> dict[str, Any] | None:
    file = project.absolute(image.path)
    try:
        data = ArchiveMember(file, image.member, image.size).read() if image.member else Path(file).read_bytes()
    except (OSError, ImageError) as error:
        report(image.name, getattr(error, "strerror", None) or str(error))
        return None
    digest = xxhash.xxh3_128_hexdigest(data)
    if image.member:
        name = f"images/{digest}{os.path.splitext(image.member)[1].lower()}"
        (partial / "images").mkdir(exist_ok=True)
        (partial / name).write_bytes(data)
    else:
        name = os.path.relpath(file, output).replace(os.sep, "/")
    by_person = caption["writer_kind"] != "model"
    return {
        "image": name,
        "caption": caption["caption"],
        "split": split_of(digest, share),
        "sample_weight": person_weight if by_person else 1.0,
        "hash": digest,
        "verdict": image.verdict,
        "reviewer": caption["decided_by"],
        "decided": round(caption["decided"], 3),
        "written_by": caption["writer_kind"],
        "writer": caption["writer"],
        "writer_version": caption["writer_version"],
        "caption_id": caption["caption_id"],
    }


def split_of(digest: str, share: float) -> str:
    """The part of an image with this hash (hex)."""
    return VALIDATION if int(digest[:8], 16) < share * 2**32 else TRAIN


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The manifest and the rows of a data set.

    Raises:
        CaptionerError: it is none, or is damaged.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        with open(folder / ROWS, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        if manifest["format"] > FORMAT:
            raise CaptionerError(f"{folder}: written by a newer version of captioner; update this one to read it")
        if not all({"image", "caption", "split", "hash"} <= row.keys() for row in rows):
            raise ValueError("a row lacks a field")
    except OSError as error:
        raise CaptionerError(f"{folder}: not a data set of `captioner dataset build`: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CaptionerError(f"{folder}: a damaged data set: {error}") from error
    return manifest, rows


def stats(folder: Path) -> dict[str, Any]:
    """Counts of images, people and words."""
    manifest, rows = read(folder)
    lengths = sorted(len(row["caption"].split()) for row in rows)
    words = Counter(word for row in rows for word in row["caption"].lower().split())
    return {
        **{name: value for name, value in manifest.items() if name.startswith("by_") or name in ("images", "made")},
        "captions": len({row["caption"] for row in rows}),
        "words_per_caption": {"shortest": lengths[0], "median": lengths[len(lengths) // 2], "longest": lengths[-1]},
        "vocabulary": len(words),
        "weight": sum(row.get("sample_weight", 1.0) for row in rows),
    }


def diff(before: Path, after: Path) -> dict[str, list[Any]]:
    """What changed from one data set to another, by the images' bytes, whatever their names are."""
    old, new = ({row["hash"]: row for row in read(folder)[1]} for folder in (before, after))
    both = [digest for digest in old if digest in new]
    return {
        "added": [new[digest]["image"] for digest in new if digest not in old],
        "removed": [old[digest]["image"] for digest in old if digest not in new],
        "changed": [
            {"image": new[digest]["image"], "before": old[digest]["caption"], "after": new[digest]["caption"]}
            for digest in both
            if old[digest]["caption"] != new[digest]["caption"]
        ],
        "moved": [new[digest]["image"] for digest in both if old[digest]["split"] != new[digest]["split"]],
    }


def validate(folder: Path) -> list[str]:
    """Faults of a data set, a line each: rows that were changed, captions and photos that are not what they were."""
    manifest, rows = read(folder)
    faults = []
    if _sha256(folder / ROWS) != manifest.get("sha256"):
        faults.append(f"{ROWS}: changed since it was built")
    if len(rows) != manifest.get("images"):
        faults.append(f"{ROWS}: {len(rows)} rows, the manifest has {manifest.get('images')}")
    for number, row in enumerate(rows, 1):
        faults += [f"{ROWS}:{number}: {row['image']}: {fault}" for fault in _row_faults(folder, manifest, row)]
    return faults


def _row_faults(folder: Path, manifest: dict[str, Any], row: dict[str, Any]) -> Iterator[str]:
    if problem := caption_problem(row["caption"]):
        yield problem
    if row["split"] != split_of(row["hash"], manifest["validation_share"]):
        yield f"is in {row['split']}, where its hash does not put it"
    try:
        digest = xxhash.xxh3_128_hexdigest((folder / row["image"]).read_bytes())
    except OSError as error:
        yield f"the image is missing: {error.strerror}"
    else:
        if digest != row["hash"]:
            yield "the image has changed"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
