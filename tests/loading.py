"""What tests of sources share: `pythonpath` in pyproject.toml puts this folder where they can import it from."""

from pathlib import Path
from typing import Any

import pytest

from captioner.config import SourceConfig
from captioner.data.sources import Sample, Skip, load_samples
from captioner.errors import CaptionerError


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
