"""What tests of several rooms share: `pythonpath` in pyproject.toml puts this folder where they can import it from."""

from pathlib import Path
from typing import Any

import pytest

from captioner.config import SourceConfig
from captioner.data.sources import Sample, Skip, load_samples
from captioner.errors import CaptionerError
from captioner.infer.export_format import find_graphs
from captioner.infer.exported_model import ExportedModel
from captioner.infer.model_settings import read_settings


def load(path: Path | str, **options: Any) -> list[Sample]:
    samples, skips = load_samples(SourceConfig(path=str(path), **options))
    assert skips == []
    return samples


def skipped(path: Path | str, **options: Any) -> tuple[list[Sample], list[Skip]]:
    return load_samples(SourceConfig(path=str(path), on_error="skip", **options))


def refusal(path: Path | str, **options: Any) -> str:
    with pytest.raises(CaptionerError) as caught:
        load_samples(SourceConfig(path=str(path), **options))
    return str(caught.value)


def load_exported(folder: Path, num_threads: int = 2) -> ExportedModel:
    """A folder's graphs, loaded."""
    graphs = find_graphs(folder)
    assert graphs is not None
    return ExportedModel(graphs, read_settings(folder), num_threads)
