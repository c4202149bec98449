"""What several rooms' tests share: a tiny captioner with random weights and its export, built once, and photos."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores; torch reads this when it is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image

from captioner.config import TokenizerConfig
from captioner.data.tokenizer_training import train_tokenizer
from captioner.hub.load import load_model
from captioner.model.auto import (
    CaptionerConfig,
    CaptionerForConditionalGeneration,
    CaptionerImageProcessor,
    CaptionerProcessor,
    CaptionerTokenizer,
)

TRUNK = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32}


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@contextmanager
def _small_files() -> Iterator[None]:
    resource = pytest.importorskip("resource", reason="limits of a process are POSIX's")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """Inside `with full_disk():` files beyond 20 kB cannot be written: large ones fail in the middle.

    Not for a whole test: pytest reports its outcome before fixtures end, and its own output may be a larger file.
    """
    return _small_files


@pytest.fixture(scope="session")
def tiny_captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model folder: random weights that answer differently to different images. Not to be written to."""
    folder = tmp_path_factory.mktemp("tiny_captioner")
    captions = [f"a {colour} {shape} on a table" for colour in ("red", "green") for shape in ("square", "circle")]
    train_tokenizer(captions, TokenizerConfig(vocab_size=64, model_type="char"), folder / "tokenizer.model")
    tokenizer = CaptionerTokenizer(str(folder / "tokenizer.model"))
    config = CaptionerConfig(
        encoder_name="vit_tiny_patch16_224",
        encoder_kwargs={name: value for name, value in TRUNK.items() if name != "img_size"},
        image_size=TRUNK["img_size"],
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        dropout=0.0,
        initializer_range=0.4,  # far from uniform, so that a wrong token or log-probability shows
    )
    torch.manual_seed(0)
    model = CaptionerForConditionalGeneration(config)
    with torch.no_grad():
        model.get_input_embeddings().weight[config.eos_token_id] *= 1.5  # captions of many lengths, some cut short
    model.save_pretrained(folder)
    CaptionerProcessor(CaptionerImageProcessor(image_size=32), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tagged_captioner(tiny_captioner: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny captioner with a tag head."""
    folder = tmp_path_factory.mktemp("tagged_captioner")
    torch.manual_seed(0)
    network, processor = load_model(tiny_captioner, "tiny", tags=["red", "green", "blue", "round", "square"])
    network.heads.tags.reset_parameters()
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def exported(tagged_captioner: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tagged_captioner` as fp32 export. Not to be written to."""
    from captioner.export.onnx import export_model

    folder = tmp_path_factory.mktemp("exported") / "fp32"
    export_model(tagged_captioner, folder)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        Image.fromarray(generator.integers(0, 256, (40 + number, 60, 3), dtype=np.uint8)).save(path)
    return paths
