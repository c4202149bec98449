"""Compares a command line's images with a project: what is new, what has changed, what is no longer there.

Only names, sizes and times are looked at here; no image is opened. What they leave open is settled when the image is
read: see runs.py.
"""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple, TypeVar

from captioner.annotate.given_words import merge_words, read_sidecars, sidecar_state
from captioner.annotate.project import Project
from captioner.data.archives import ArchiveMember

Item = TypeVar("Item")

CHUNK = 500
"""Images that are held in memory at a time."""


class Stat(NamedTuple):
    """An image as its file system shows it; of a file that cannot be looked at, size and time are 0."""

    path: bytes
    member: bytes
    size: int
    mtime: int


def scan(project: Project, images: Iterable[str | ArchiveMember], run: int) -> int:
    """Enter images into the project with the words beside them, mark those that have changed as stale, and those that
    are gone as missing.

    Returns:
        How many images there are. The images of this run have its number in `seen` from now on.
    """
    count = 0
    for chunk in chunks(images, CHUNK):
        with project.transaction():
            for image in chunk:
                _enter(project, image, run)
        count += len(chunk)
    _mark_missing(project, run)
    return count


def _enter(project: Project, image: str | ArchiveMember, run: int) -> None:
    row = project.connection.execute(
        """INSERT INTO images (path, member, size, mtime, seen)
        VALUES (CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?)
        ON CONFLICT (path, member) DO UPDATE SET seen = excluded.seen, missing = 0,
            stale = stale OR size <> excluded.size OR mtime <> excluded.mtime,
            size = excluded.size, mtime = excluded.mtime
        RETURNING id, sidecars""",
        (*_stat(project, image), run),
    ).fetchone()
    state = sidecar_state(image) if isinstance(image, str) else ""
    if state != row["sidecars"]:
        merge_words(project, row["id"], "sidecar", read_sidecars(str(image)))
        project.connection.execute(
            "UPDATE images SET sidecars = CAST(? AS TEXT) WHERE id = ?", (encoded(state), row["id"])
        )


def _stat(project: Project, image: str | ArchiveMember) -> Stat:
    path, member = (image.archive, image.member) if isinstance(image, ArchiveMember) else (image, "")
    try:
        status = os.stat(path)
        size, mtime = status.st_size, status.st_mtime_ns
    except (OSError, ValueError):
        size = mtime = 0
    if isinstance(image, ArchiveMember):
        size = image.size
    return Stat(encoded(project.relative(path)), encoded(member), size, mtime)


def encoded(name: str) -> bytes:
    """A name as SQLite stores text; bytes that are not UTF-8 stay as they are."""
    return name.encode("utf-8", "surrogateescape")


def _mark_missing(project: Project, run: int) -> None:
    """An image that this run was not given is missing if its file is gone, or its archive was given without it."""
    last = 0
    while rows := project.rows(
        """SELECT id, path, member, EXISTS (SELECT 1 FROM images AS other
            WHERE other.path = images.path AND other.seen = ?1) AS given
        FROM images WHERE id > ?2 AND seen IS NOT ?1 AND NOT missing ORDER BY id LIMIT ?3""",
        run, last, CHUNK,
    ):  # fmt: skip
        gone = [
            (row["id"],)
            for row in rows
            if (row["member"] and row["given"]) or not os.path.lexists(project.absolute(row["path"]))
        ]
        with project.transaction() as connection:
            connection.executemany("UPDATE images SET missing = 1 WHERE id = ?", gone)
        last = rows[-1]["id"]


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    return iter(lambda: list(islice(iterator, size)), [])
