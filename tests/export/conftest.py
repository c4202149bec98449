"""An exported tiny captioner, made once, and photos for it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnxruntime", reason="export needs onnxruntime: pip install 'captioner[export]'")
pytest.importorskip("onnxscript", reason="export needs onnxscript: pip install 'captioner[export]'")


@pytest.fixture(scope="session")
def exported(tiny_captioner: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny captioner as fp32 export. Not to be written to."""
    from captioner.export.onnx import export_model

    folder = tmp_path_factory.mktemp("exported") / "fp32"
    export_model(tiny_captioner, folder)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        Image.fromarray(generator.integers(0, 256, (40 + number, 60, 3), dtype=np.uint8)).save(path)
    return paths
