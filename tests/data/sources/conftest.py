"""Drawn photos, and a cache of `datasets` of its own."""

from pathlib import Path

import pytest
from layouts import CAPTIONS, photo


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds images/a.jpg, b.jpg, c.jpg."""
    (tmp_path / "images").mkdir()
    for name in CAPTIONS:
        (tmp_path / "images" / name).write_bytes(photo(name))
    return tmp_path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
