"""Which images a command line means: files, folders (recursively), globs, archives and lists of files."""

import fnmatch
import glob
import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from captioner.data.archives import ArchiveMember, archive_images, is_archive
from captioner.data.folder_walk import FolderId, folder_id, list_folder, walk
from captioner.data.images import IMAGE_EXTENSIONS, is_url
from captioner.errors import CaptionerError

SEPARATORS = f"[{re.escape(os.sep + (os.altsep or ''))}]+"


def given_images(paths: Iterable[str], listed: Iterable[str] = ()) -> Iterator[str | ArchiveMember]:
    """Give the images of `paths`, as `find_images` finds them, then those of `listed`, which are literal names: there a
    folder means the images in it, and a name that does not exist is given too, to be reported like an unreadable image.

    Of an archive that is named, or matches a glob, its images are given; archives in folders are left alone.

    Raises:
        CaptionerError: as `find_images`; an archive that cannot be read.
    """
    literal = (path for name in listed for path in (find_images([name]) if os.path.isdir(name) else [name]))
    for path in itertools.chain(find_images(paths), literal):
        if is_archive(path):
            yield from archive_images(path)
        else:
            yield path


def read_list(file: BinaryIO) -> list[str]:
    """Read the names in a list of files: one a line, or each ended by a NUL, as `find -print0` writes them."""
    data = file.read()
    lines = data.split(b"\0") if b"\0" in data else data.splitlines()
    return [os.fsdecode(line) for line in lines if line.strip()]


def find_images(paths: Iterable[str]) -> Iterator[str]:
    """Give the images of each path: paths in the order given, what a folder or glob holds sorted by name.

    In folders and globs, hidden names and names without an image's extension are left out. A file that is named itself
    is taken whatever its name. A folder that cannot be read is given itself, to be reported like an image that cannot.
    No image comes twice, and each folder is walked once. Memory grows with the number of folders and of files that are
    named or match a glob, and with the names in the folders that are being walked.

    A path that does not exist as it is written is looked for with its letters composed another way (Unicode's NFC and
    NFD), and where `/` separates folders, with `/` for every backslash.

    Raises:
        CaptionerError: a path that does not exist, or a glob that matches nothing.
    """
    walked: set[FolderId] = set()
    named: set[tuple[FolderId, str]] = set()
    for path in paths:
        is_pattern = glob.has_magic(path) and not os.path.lexists(path)
        for match in _matches(path):
            if os.path.isdir(match):
                yield from _images_below(match, walked, named)
            elif not is_pattern or _is_image(match) or is_archive(match):
                yield from _once(match, walked, named)


def _images_below(folder: str, walked: set[FolderId], named: set[tuple[FolderId, str]]) -> Iterator[str]:
    for found in walk(folder, walked):
        is_new = found.folder is None or (found.folder, os.path.basename(found.path)) not in named
        if is_new and (found.error or _is_image(found.path)):
            yield found.path


def _once(path: str, walked: set[FolderId], named: set[tuple[FolderId, str]]) -> Iterator[str]:
    folder, name = os.path.split(path)
    try:
        key = (folder_id(folder), name)
    except OSError as error:
        raise CaptionerError(f"{path}: {error.strerror}") from error
    if key not in named and not (key[0] in walked and _is_image(name)):
        named.add(key)
        yield path


def _is_image(path: str) -> bool:
    name = os.path.basename(path)
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def _matches(path: str) -> list[str]:
    """What a path of the command line names.

    Raises:
        CaptionerError: nothing.
    """
    if os.path.lexists(path):
        return [path]
    matches = _expand(path)
    if not matches and os.sep == "/" and "\\" in path:
        matches = _expand(path.replace("\\", "/"))
    if matches:
        return sorted(matches)
    try:
        os.lstat(path)
        reason = "no such file or folder"
    except (FileNotFoundError, NotADirectoryError):
        reason = "matches nothing" if glob.has_magic(path) else "no such file or folder"
        if is_url(path):
            reason = "is a URL, and URLs are not fetched: download the image first"
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
    raise CaptionerError(f"{path}: {reason}")


def _expand(pattern: str) -> list[str]:
    """What matches, one component of the path after the other: `*`, `?`, `[...]`, and `**` for any depth of folders.

    A component that exists as it is written is that file or folder, whatever brackets it has. A folder that would have
    to be read and cannot be is itself among the results.
    """
    drive, rest = os.path.splitdrive(pattern)
    root = re.match(f"({SEPARATORS})?", rest)[0]  # type: ignore[index]  # matches always, if only ""
    parts = [part for part in re.split(SEPARATORS, rest) if part]
    if not parts:
        return []
    places = [drive + root]
    unreadable: list[str] = []
    for part in parts[:-1]:
        places = [inner for place in places for inner in _folders(place, part, unreadable)]
    last = "*" if parts[-1] == "**" else parts[-1]  # the folders among the matches are walked anyway
    places = [match for place in places for match in _names(place, last, unreadable)]
    if re.search(f"{SEPARATORS}$", rest):
        places = [place for place in places if os.path.isdir(place)]
    return list(dict.fromkeys(places + unreadable))


def _folders(place: str, part: str, unreadable: list[str]) -> list[str]:
    if part != "**" or os.path.lexists(os.path.join(place, part)):
        return _names(place, part, unreadable)
    found, pending, entered = [], [place], set()
    while pending:
        folder = pending.pop()
        try:
            identity = folder_id(folder)
            if identity in entered:
                continue
            entered.add(identity)
            entries = list_folder(folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            unreadable.append(folder or os.curdir)
            continue
        found.append(folder)
        pending += [
            os.path.join(folder, name)
            for name, is_folder in reversed(entries)
            if is_folder and not name.startswith(".")
        ]
    return found


def _names(place: str, part: str, unreadable: list[str]) -> list[str]:
    """Paths in the folder `place` that `part` names or matches."""
    as_written = os.path.join(place, part)
    if os.path.lexists(as_written):
        return [as_written]
    try:
        names = [entry.name for entry in list_folder(place)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError:
        unreadable.extend([place or os.curdir] if glob.has_magic(part) else [])
        return []
    pattern = unicodedata.normalize("NFC", part if glob.has_magic(part) else glob.escape(part))
    return [
        os.path.join(place, name)
        for name in names
        if fnmatch.fnmatch(unicodedata.normalize("NFC", name), pattern)
        and (part.startswith(".") or not name.startswith("."))
    ]
