"""Photos as the page shows them: upright JPEGs, small ones made once and kept in a file beside the project."""

import io
import os
import sqlite3
import threading

from PIL import Image

from captioner.annotate.project import Project
from captioner.annotate.project_records import ProjectImage
from captioner.data.archives import ArchiveMember
from captioner.data.images import ImageError, ImageInput, load_image

THUMBNAIL, PHOTO = 320, 1600
"""The longer side in pixels."""
QUALITY = 80
MANY_PIXELS = 25_000_000
"""Larger images are decoded one at a time, since each takes 75 MB and more."""


class Thumbnails:
    """Encodes photos. May be used from several threads.

    The kept ones are in an SQLite file, since a folder of a hundred thousand small files is slow to copy and delete. It
    is a cache: it may be deleted, and where it cannot be written, thumbnails are made each time.
    """

    def __init__(self, project: Project) -> None:
        self.project = project
        self.path = f"{project.path}.thumbnails"
        self._lock, self._large = threading.Lock(), threading.Lock()
        self._cache = _open_cache(self.path)

    def close(self) -> None:
        with self._lock:
            self._cache.close()

    def thumbnail(self, image: ProjectImage) -> bytes:
        """A small JPEG. Raises ImageError."""
        key = (image.id, stamp(image.size, image.mtime))
        with self._lock:
            found = self._cache.execute("SELECT jpeg FROM thumbnails WHERE image = ? AND stamp = ?", key).fetchone()
        if found:
            return bytes(found[0])
        jpeg = self._encoded(image, THUMBNAIL)
        with self._lock:
            try:
                self._cache.execute("INSERT OR REPLACE INTO thumbnails VALUES (?, ?, ?)", (*key, jpeg))
            except sqlite3.Error:  # a full disk, a file that another program holds
                return jpeg
        return jpeg

    def photo(self, image: ProjectImage) -> bytes:
        """A JPEG that fills a screen. Raises ImageError."""
        return self._encoded(image, PHOTO)

    def _encoded(self, image: ProjectImage, side: int) -> bytes:
        source = source_of(self.project, image)
        if (image.width or 0) * (image.height or 0) <= MANY_PIXELS:
            return _jpeg(source, side)
        with self._large:
            return _jpeg(source, side)


def _open_cache(path: str) -> sqlite3.Connection:
    for place in (path, ":memory:"):
        try:
            cache = sqlite3.connect(place, isolation_level=None, check_same_thread=False)
            cache.executescript(
                """PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;
                CREATE TABLE IF NOT EXISTS thumbnails (image INTEGER PRIMARY KEY, stamp TEXT, jpeg BLOB);"""
            )
            return cache
        except sqlite3.Error:  # damaged, read-only
            continue
    raise AssertionError("SQLite has memory")


def _jpeg(source: ImageInput, side: int) -> bytes:
    image = load_image(source, min_size=side)
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=QUALITY)
    return encoded.getvalue()


def stamp(size: int, mtime: int) -> str:
    """Changes when the file does; part of a picture's URL, so that browsers may keep pictures forever."""
    return f"{size:x}-{mtime:x}"


def source_of(project: Project, image: ProjectImage) -> ImageInput:
    """The image's file, for `load_image`.

    Links may lead about within the project's folder, or, for photos that the project names outside it, within the
    photo's folder. The page shows nothing beyond: a link that leads there was not what was annotated.

    Raises:
        ImageError: it leads out of there.
    """
    named = project.absolute(image.path)
    is_inside = named.startswith(os.path.join(project.folder, ""))
    root = os.path.realpath(project.folder if is_inside else os.path.dirname(named))
    real = os.path.realpath(named)
    if not real.startswith(os.path.join(root, "")):
        raise ImageError(image.name, "no_permission", f"is a link that leads out of {root}")
    return ArchiveMember(real, image.member, image.size) if image.member else real
