"""An exported tiny captioner, made once, and photos for it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captioner.hub.load import load_model


@pytest.fixture(scope="session")
def model(tiny_captioner: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny captioner with a tag head."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    network, processor = load_model(tiny_captioner, "tiny", tags=["red", "green", "blue", "round", "square"])
    network.heads.tags.reset_parameters()
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as fp32 export. Not to be written to."""
    from captioner.export.onnx import export_model

    folder = tmp_path_factory.mktemp("exported") / "fp32"
    export_model(model, folder)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        Image.fromarray(generator.integers(0, 256, (40 + number, 60, 3), dtype=np.uint8)).save(path)
    return paths
