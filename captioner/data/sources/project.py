"""Reads project files (album.captions, see `captioner annotate`): each image with the caption that counts."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from captioner.config import SourceConfig
from captioner.data.archives import ArchiveMember
from captioner.data.sources.sample import Report, Sample, usable_captions
from captioner.errors import CaptionerError


def read_project(path: str, config: SourceConfig, report: Report) -> Iterator[Sample]:
    """Read a project. Images without a caption, rejected ones among them, are left out if captions are wanted."""
    if config.split is not None:
        raise CaptionerError(f"{path}: a project has no splits; choose none")
    wanted = "WHERE caption IS NOT NULL" if config.captioned else ""
    folder = os.path.dirname(os.path.abspath(path))
    try:
        with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as connection:
            connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
            query = f"SELECT path, member, size, caption FROM annotations {wanted} ORDER BY id"
            for name, member, size, caption in connection.execute(query):
                file = os.path.normpath(os.path.join(folder, name))
                identifier = f"{name}/{member}" if member else name
                if not os.path.isfile(file):
                    report(identifier, f"the image is missing: {file} is not there")
                    continue
                captions = usable_captions(caption, f"{path}: {identifier}", report) if config.captioned else ()
                if captions or not config.captioned:
                    yield Sample(identifier, ArchiveMember(file, member, size) if member else file, captions)
    except sqlite3.Error as error:
        raise CaptionerError(f"{path}: not a caption project: {error}") from error
