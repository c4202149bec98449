"""A small album, and a server for it: one for each test that changes it, and one for those that only knock."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from albums import Running, add_photo, run_server

from captioner.annotate.project import Project

CAPTIONS = ("a dog runs", "a red bicycle", "two dogs play", "a child on a swing", "a boat at sea", "a dog sleeps")
CONFIDENCES = (0.9, 0.1, 0.4, 0.8, 0.7)


@contextmanager
def make_album(folder: Path) -> Iterator[Project]:
    """Six photos in two folders, captions of confidence 0.1 to 0.6; the first is flagged, the second and third look
    alike."""
    with Project(folder / "album.captions", create=True) as project, project.transaction() as connection:
        for number, text in enumerate(CAPTIONS, 1):
            add_photo(
                project,
                f"photos/{'a' if number < 4 else 'b'}/{number}.png",
                text,
                confidence=number / 10,
                words=list(zip(text.split(), CONFIDENCES, strict=False)),
                alternatives=[{"caption": f"{text} again", "confidence": 0.05}],
                tags=[{"tag": "outdoors", "score": 0.9}],
                flags={"low_confidence": "0.10"} if number == 1 else {},
            )
        connection.execute("UPDATE images SET near = 1 WHERE id IN (2, 3)")
    with Project(folder / "album.captions") as project:
        yield project


@pytest.fixture
def album(tmp_path: Path) -> Iterator[Project]:
    with make_album(tmp_path) as project:
        yield project


@pytest.fixture
def running(album: Project) -> Iterator[Running]:
    with run_server(album) as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """For tests that leave the six photos as they are."""
    with make_album(tmp_path_factory.mktemp("album")) as project, run_server(project) as running:
        yield running
