"""What formats write: the caption that counts of each image in a project, and who wrote it."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.annotate.alt_text import MAX_CHARACTERS, alt_text
from captioner.annotate.project import COUNTED_FLAGS, Project
from captioner.annotate.provenance import writer_line
from captioner.data.archives import ArchiveMember
from captioner.data.images import ImageError

CHUNK = 500

Report = Callable[[str, str], object]
"""Is told what was left out (a path), and why."""


@dataclass(frozen=True)
class Annotation:
    """An image and its caption.

    Attributes:
        id: the image's number in the project.
        path: the image file, or the archive that holds it.
        member: its name in the archive, or "".
        place: a relative name for copies, unique in the project.
        words: the caption's words with their confidences; none of a person's.
        flags: of the photo and of the caption, with their details.
        writer: who wrote the caption, as a line: "default 1a2b3c4d (model)", "ann (person)".
        verified: a person wrote it or has accepted it.
    """

    id: int
    path: str
    member: str
    place: str
    size: int
    caption: str
    confidence: float | None
    alternatives: list[dict[str, Any]]
    tags: list[dict[str, Any]]
    words: list[dict[str, Any]]
    flags: dict[str, str]
    width: int | None
    height: int | None
    model: str
    writer: str
    verified: bool

    @property
    def alt(self) -> str:
        """The caption as an alternative text."""
        return alt_text(self.caption)

    @property
    def long(self) -> str | None:
        """The caption, if an alternative text cannot hold it all."""
        return self.caption if len(self.caption) > MAX_CHARACTERS else None

    @property
    def name(self) -> str:
        return f"{self.path}/{self.member}" if self.member else self.path

    def name_from(self, folder: Path) -> str:
        """The image's name as a file in `folder` has it: relative, with /; absolute on another drive."""
        try:
            return os.path.relpath(self.name, os.path.abspath(folder)).replace(os.sep, "/")
        except ValueError:  # Windows
            return self.name.replace(os.sep, "/")

    def read(self) -> bytes:
        """The image file's bytes. Raises ImageError."""
        if self.member:
            return ArchiveMember(self.path, self.member, self.size).read()
        try:
            return Path(self.path).read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ImageError(self.path, "missing", f"cannot be read: {reason}") from error

    def record(self, folder: Path) -> dict[str, Any]:
        """The fields of tables; the image's name starts from `folder`."""
        return {
            "image": self.name_from(folder),
            "caption": self.caption,
            "confidence": None if self.confidence is None else round(self.confidence, 4),
            "alternatives": self.alternatives,
            "tags": self.tags,
            "width": self.width,
            "height": self.height,
            "model": self.model,
            "words": self.words,
            "flags": self.flags,
            "abstained": "abstained" in self.flags,
            "writer": self.writer,
            "verified": self.verified,
        }


def annotations(project: Project, *, verified: bool = False) -> Iterator[Annotation]:
    """Every image that is there and has a caption, in the order in which the project came to know them.

    Args:
        verified: those only whose caption a person wrote or has accepted.
    """
    last = 0
    while rows := project.rows(
        f"""SELECT annotations.*,
            (SELECT json_group_object(name, detail) FROM {COUNTED_FLAGS} AND images.id = annotations.id) AS flags
        FROM annotations WHERE id > ? AND caption IS NOT NULL ORDER BY id LIMIT {CHUNK}""",
        last,
    ):
        for row in rows:
            annotation = _annotation(project, row)
            if annotation.verified or not verified:
                yield annotation
        last = rows[-1]["id"]


def _place(number: int, path: str, member: str) -> str:
    """The image's name in the project without what would lead out of a folder. If it has such parts, the image's number
    keeps it apart from others."""
    name = f"{path}/{member}" if member else path
    parts = name.replace("\\", "/").split("/")
    kept = [part for part in parts if part not in ("", ".", "..") and not part.endswith(":")]
    return name if kept == parts else "/".join([*kept[:-1], f"{number:08}-{kept[-1]}"])


def with_bytes(annotations: Iterable[Annotation], report: Report) -> Iterator[tuple[Annotation, bytes]]:
    """Each image's bytes; those that cannot be read are reported and left out."""
    for annotation in annotations:
        try:
            data = annotation.read()
        except ImageError as error:
            report(error.source, error.message)
        else:
            yield annotation, data


def _annotation(project: Project, row: Any) -> Annotation:
    kind, reviewer = row["writer_kind"], row["decided_by"]
    return Annotation(
        id=row["id"],
        path=project.absolute(row["path"]),
        member=row["member"],
        place=_place(row["id"], row["path"], row["member"]),
        size=row["size"],
        caption=row["caption"],
        confidence=row["confidence"],
        alternatives=json.loads(row["alternatives"] or "[]"),
        tags=json.loads(row["tags"] or "[]"),
        words=[{"word": word, "confidence": confidence} for word, confidence in json.loads(row["words"] or "[]")],
        flags=json.loads(row["flags"]),
        width=row["width"],
        height=row["height"],
        model=row["writer"] if kind == "model" else "",
        writer=writer_line(kind, row["writer"], row["writer_version"], row["verdict"], reviewer),
        verified=kind != "model" or row["verdict"] == "accepted",
    )
