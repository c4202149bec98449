"""Images inside .zip and .tar files, read in place: nothing is unpacked."""

import functools
import os
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from captioner.data.images import IMAGE_EXTENSIONS, MAX_BYTES, ImageError
from captioner.errors import CaptionerError

ARCHIVE_EXTENSIONS = frozenset({".zip", ".tar"})

_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OverflowError, ValueError, NotImplementedError)
"""What the libraries raise for archives that are damaged, or packed in a way they do not know."""


@dataclass(frozen=True)
class ArchiveMember:
    """An image file in an archive; an input for `load_image`."""

    archive: str
    member: str
    size: int

    def read(self) -> bytes:
        """Raises ImageError if the archive or this file in it is damaged, encrypted, gone or too large."""
        if self.size > MAX_BYTES:
            raise ImageError(str(self), "too_large", f"the file is over the limit of {MAX_BYTES:,} bytes")
        try:
            return _open(self.archive).read(self.member)
        except KeyError as error:
            raise ImageError(str(self), "missing", "no such file in the archive") from error
        except RuntimeError as error:  # what zipfile raises for a password
            raise ImageError(str(self), "unsupported", f"cannot be read: {error}") from error
        except _DAMAGE as error:
            raise ImageError(str(self), "damaged", f"cannot be unpacked: {error}") from error

    def __str__(self) -> str:
        return f"{self.archive}/{self.member}"


def is_archive(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in ARCHIVE_EXTENSIONS and os.path.isfile(path)


def archive_images(path: str) -> Iterator[ArchiveMember]:
    """Yield the images in an archive, sorted by name, without hidden files and folders.

    Raises:
        CaptionerError: it cannot be read.
    """
    try:
        sizes = _open(path).sizes
    except OSError as error:
        raise CaptionerError(f"{path}: cannot be read: {error.strerror or error}") from error
    except _DAMAGE as error:
        raise CaptionerError(f"{path}: not a zip file or an uncompressed tar file, or damaged: {error}") from error
    for name in sorted(sizes):
        is_image = os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS
        if is_image and not any(part.startswith((".", "__MACOSX")) for part in name.split("/")):
            yield ArchiveMember(path, name, sizes[name])


class _Archive(Protocol):
    sizes: dict[str, int]

    def read(self, member: str) -> bytes: ...


class _Zip:
    def __init__(self, path: str) -> None:
        self.file = zipfile.ZipFile(path)  # its reads may be used from several threads
        self.sizes = {info.filename: info.file_size for info in self.file.infolist() if not info.is_dir()}

    def read(self, member: str) -> bytes:
        return self.file.read(member)


class _Tar:
    def __init__(self, path: str) -> None:
        self.file = open(path, "rb")  # noqa: SIM115  # closed with the object
        self.lock = threading.Lock()
        with tarfile.open(fileobj=self.file, mode="r:") as tar:
            files = [info for info in tar if info.isreg() and not info.issparse()]
        self.places = {info.name.removeprefix("./"): (info.offset_data, info.size) for info in files}
        self.sizes = {name: size for name, (_, size) in self.places.items()}

    def read(self, member: str) -> bytes:
        offset, size = self.places[member]
        with self.lock:
            self.file.seek(offset)
            data = self.file.read(size)
        if len(data) < size:
            raise EOFError("the archive ends within this file")
        return data


def _open(path: str) -> _Archive:
    status = os.stat(path)
    return _opened(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _opened(path: str, size: int, mtime: int) -> _Archive:
    """Open and index an archive; `size` and `mtime` tell a replaced file from the one before."""
    return _Zip(path) if path.lower().endswith(".zip") else _Tar(path)
