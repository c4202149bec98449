"""Walks folders: follows links, enters every folder once, and reports what cannot be read."""

import os
from collections.abc import Iterator
from typing import NamedTuple

FolderId = tuple[int, int]
"""Device and inode: identifies a folder, whichever path or link leads to it."""


class Entry(NamedTuple):
    """A file or folder in a folder."""

    name: str
    is_folder: bool


class Found(NamedTuple):
    """A file, or with `error` an unreadable folder. `folder` is its parent, None for the start."""

    path: str
    folder: FolderId | None
    error: OSError | None = None


def walk(folder: str, walked: set[FolderId]) -> Iterator[Found]:
    """Yield the files below a folder, sorted by name within each folder, without hidden ones (`.name`).

    Args:
        folder: where to start; paths begin with it.
        walked: folders to skip, since an earlier walk entered them. This walk adds those it enters, which also breaks
            loops of links.
    """
    pending: list[tuple[FolderId | None, str, Entry]] = [(None, folder, Entry("", True))]  # a stack: trees can be deep
    while pending:
        parent, path, entry = pending.pop()
        path = os.path.join(path, entry.name) if entry.name else path
        if not entry.is_folder:
            yield Found(path, parent)
            continue
        try:
            identity = folder_id(path)
            if identity in walked:
                continue
            walked.add(identity)
            entries = list_folder(path)
        except OSError as error:
            yield Found(path, parent, error)
            continue
        pending += [(identity, path, child) for child in reversed(entries) if not child.name.startswith(".")]


def list_folder(folder: str) -> list[Entry]:
    """List a folder ("" for the current one), sorted by name.

    Raises:
        OSError: it cannot be read.
    """
    with os.scandir(folder or os.curdir) as entries:
        return sorted(Entry(entry.name, _is_folder(entry)) for entry in entries)


def folder_id(folder: str) -> FolderId:
    """Raises OSError if the folder ("" for the current one) cannot be reached."""
    status = os.stat(folder or os.curdir)
    return status.st_dev, status.st_ino


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except PermissionError:
        return True  # perhaps a folder: entering it will fail and report it
    except OSError:
        return False  # a link to itself
