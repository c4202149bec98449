"""Which images a command line means: files, folders (recursively) and globs."""

import glob
import os
from collections.abc import Iterable, Iterator

from captioner.data.images import IMAGE_EXTENSIONS
from captioner.errors import CaptionerError

FolderId = tuple[int, int]  # device and inode: a folder is the same however it is reached


def find_images(paths: Iterable[str]) -> Iterator[str]:
    """Give the images of each path: paths in the order given, what a folder or glob holds sorted by name.

    In folders and globs hidden names and names without an image's extension are passed over; a file named outright is
    taken as it is, and a folder that may not be read is given itself, to be reported like an image that may not. No
    image comes twice: each folder is walked once, which also ends loops of symbolic links. Memory grows with the number
    of folders and of files named outright or by a glob, not with that of images.

    Raises:
        CaptionerError: a path that does not exist, or a glob that matches nothing.
    """
    walked: set[FolderId] = set()
    named: set[tuple[FolderId, str]] = set()
    for path in paths:
        if os.path.exists(path):
            yield from _expand(path, walked, named)
            continue
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            raise CaptionerError(
                f"{path}: " + ("matches nothing" if glob.has_magic(path) else "no such file or folder")
            )
        for match in matches:
            if os.path.isdir(match) or _is_image(match):
                yield from _expand(match, walked, named)


def _expand(path: str, walked: set[FolderId], named: set[tuple[FolderId, str]]) -> Iterator[str]:
    if os.path.isdir(path):
        yield from _walk(path, walked, named)
        return
    folder, name = os.path.split(path)
    key = (_folder_id(folder or os.curdir), name)
    if key not in named and not (key[0] in walked and _is_image(name)):
        named.add(key)
        yield path


def _walk(folder: str, walked: set[FolderId], named: set[tuple[FolderId, str]]) -> Iterator[str]:
    identity = _folder_id(folder)
    if identity in walked:
        return
    walked.add(identity)
    try:
        with os.scandir(folder) as entries:
            children = sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError:
        yield folder
        return
    for name, is_folder in children:
        path = os.path.join(folder, name)
        if is_folder and not name.startswith("."):
            yield from _walk(path, walked, named)
        elif not is_folder and _is_image(name) and (identity, name) not in named:
            yield path


def _folder_id(folder: str) -> FolderId:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_image(path: str) -> bool:
    name = os.path.basename(path)
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS
