"""What a project holds, as Python sees it: images, captions, their writers, and decisions."""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from captioner.errors import CaptionerError

Verdict = Literal["accepted", "edited", "rejected"]
WriterKind = Literal["model", "person", "sidecar", "embedded"]


@dataclass(frozen=True)
class Writer:
    """Who wrote a caption: a model with its version and options, a person, or a file that came with the photo."""

    kind: WriterKind
    name: str = ""
    version: str = ""
    options: str = "{}"


@dataclass(frozen=True)
class ProjectImage:
    """A row of `images`; schema.py says what each field holds."""

    id: int
    path: str
    member: str
    size: int
    mtime: int
    hash: str | None
    stale: int
    sidecars: str
    phash: str | None
    width: int | None
    height: int | None
    error: str | None
    message: str | None
    missing: int
    seen: int | None
    near: int | None
    reviewer: str | None
    version: int
    suggestion: int | None
    words: int | None
    verdict: Verdict | None
    caption: int | None

    @property
    def name(self) -> str:
        """The path, with the member of an archive as if the archive were a folder."""
        return f"{self.path}/{self.member}" if self.member else self.path


@dataclass(frozen=True)
class NewCaption:
    """What a model says of an image; the fields are those of the table `captions`."""

    text: str
    style: str = "caption"
    confidence: float | None = None
    tokens: Sequence[tuple[str, float]] = ()
    words: Sequence[tuple[str, float]] = ()
    alternatives: Sequence[Mapping[str, Any]] = ()
    tags: Sequence[Mapping[str, Any]] = ()
    flags: Mapping[str, str] | None = None


@dataclass(frozen=True)
class StoredCaption:
    """A caption in the project, and who made it when (seconds since 1970)."""

    id: int
    image: int
    text: str
    style: str
    writer: Writer
    made: float
    confidence: float | None
    tokens: list[tuple[str, float]]
    words: list[tuple[str, float]]
    alternatives: list[dict[str, Any]]
    tags: list[dict[str, Any]]
    flags: dict[str, str]


@dataclass(frozen=True)
class Decision:
    """What a reviewer did with an image; `verdict` and `caption` are in force after it."""

    id: int
    image: int
    version: int
    action: Literal["decide", "undo", "redo"]
    verdict: Verdict | None
    caption: int | None
    reviewer: str
    decided: float


class Conflict(CaptionerError):
    """Somebody else changed the image after the reviewer saw it. `current` is the image now; `kept`, where the reviewer
    had written a caption, is that caption: stored and flagged, but not in force."""

    def __init__(self, current: ProjectImage, kept: int | None) -> None:
        super().__init__(f"{current.name}: changed by somebody else meanwhile")
        self.current, self.kept = current, kept


def stored_caption(row: sqlite3.Row) -> StoredCaption:
    """Read a row of `captions` with its writer's columns and `flags`, a JSON object."""
    tokens, words, alternatives, tags = (
        json.loads(row[name] or "[]") for name in ("tokens", "words", "alternatives", "tags")
    )
    return StoredCaption(
        id=row["id"],
        image=row["image"],
        text=row["text"],
        style=row["style"],
        writer=Writer(row["kind"], row["name"], row["version"], row["options"]),
        made=row["made"],
        confidence=row["confidence"],
        tokens=[(text, log_prob) for text, log_prob in tokens],
        words=[(word, confidence) for word, confidence in words],
        alternatives=alternatives,
        tags=tags,
        flags=json.loads(row["flags"]),
    )
