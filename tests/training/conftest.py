"""Drawn shapes for training tests, and the shipped tiny recipe pointed at them."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from captioner.config import RunConfig, load_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def draw_shapes() -> Callable[..., None]:
    spec = importlib.util.spec_from_file_location("draw_shapes", ROOT / "examples" / "draw_shapes.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.draw_shapes


@pytest.fixture(scope="session")
def shapes(draw_shapes: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    draw_shapes(folder, images=200)
    return folder / "captions.csv"


@pytest.fixture
def recipe(shapes: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """The tiny recipe on 160 training images: two epochs of five steps unless overridden."""

    def load(*overrides: str, data: Path = shapes) -> RunConfig:
        return load_config(ROOT / "configs" / "tiny.yaml", tiny_overrides(data, tmp_path / "run") + list(overrides))

    return load


def tiny_overrides(data: Path, output_dir: Path) -> list[str]:
    paths = [f"data.train.path={data}", f"data.validation.path={data}", f"output_dir={output_dir}"]
    return [*paths, "phases.0.epochs=2", "validation.max_images=8", "checkpoint_every_steps=2"]
