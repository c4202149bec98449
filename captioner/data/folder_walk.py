"""Walks folders of files: every folder once, links followed, whatever cannot be read named."""

import os
from collections.abc import Iterator
from typing import NamedTuple

FolderId = tuple[int, int]
"""Device and inode: the same folder, whichever path or link led to it."""


class Entry(NamedTuple):
    """What a folder holds under a name."""

    name: str
    is_folder: bool


class Found(NamedTuple):
    """A file, or with `error` a folder that cannot be read. `folder` is the one it lies in, None for the first."""

    path: str
    folder: FolderId | None
    error: OSError | None = None


def walk(folder: str, walked: set[FolderId]) -> Iterator[Found]:
    """Give the files below a folder, a folder's names in order, without the hidden ones (`.name`).

    Args:
        folder: where to start; paths begin with it.
        walked: the folders not to enter, because an earlier walk did; this walk adds those that it enters, which also
            ends loops of links.
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
    """What a folder ("" for the current one) holds, by name.

    Raises:
        OSError: it cannot be read.
    """
    with os.scandir(folder or os.curdir) as entries:
        return sorted(Entry(entry.name, _is_folder(entry)) for entry in entries)


def folder_id(folder: str) -> FolderId:
    """Raises OSError where the folder ("" for the current one) cannot be reached."""
    status = os.stat(folder or os.curdir)
    return status.st_dev, status.st_ino


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except PermissionError:
        return True  # it may be one: entering it fails, which names it
    except OSError:
        return False  # a link that leads to itself
