"""Training and validation read images as captioning does, or in enough detail for the smallest random crop."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captioner import Captioner
from captioner.config import AugmentationConfig, DataConfig
from captioner.data import dataset
from captioner.data.dataset import CaptionDataset
from captioner.data.images import load_image
from captioner.data.sources import Sample
from captioner.hub.load import load_model

SIZES = [(1600, 1200), (300, 900), (40, 30)]


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """JPEGs of noise: their pixels depend on the scale at which they are decoded."""
    noise, paths = np.random.default_rng(0), []
    for width, height in SIZES:
        paths.append(str(tmp_path / f"{width}.jpg"))
        Image.fromarray(noise.integers(0, 256, (height, width, 3), np.uint8)).save(paths[-1])
    return paths


def data_set(folder: Path, photos: list[str], **options: Any) -> CaptionDataset:
    config = DataConfig.model_validate({"train": {"path": "-"}, "validation": {"path": "-"}})
    samples = [Sample(path, path, ("a red square",)) for path in photos]
    return CaptionDataset(samples, load_model(folder, "tiny")[1], config, **options)


@pytest.mark.parametrize("augmentation", [None, AugmentationConfig()], ids=["validation", "training"])
def test_pixels_are_those_that_a_captioner_sees(
    tiny_captioner: Path, photos: list[str], augmentation: AugmentationConfig | None
) -> None:
    captioner = Captioner.from_pretrained(tiny_captioner)
    seen: list[torch.Tensor] = []
    captioner.backend.model.encoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append([*args, *kwargs.values()][0]), with_kwargs=True
    )
    captioner(photos, batch_size=1)
    items = data_set(tiny_captioner, photos, augmentation=augmentation)
    assert len(seen) == len(SIZES)
    for number, pixels in enumerate(seen):
        assert torch.equal(pixels[0], items[number]["pixel_values"])


@pytest.mark.parametrize(
    ("low", "decoded"), [(1.0, (200, 150)), (0.25, (200, 150)), (0.08, (400, 300)), (0.01, (1600, 1200))]
)
def test_the_smallest_crop_is_not_enlarged(
    tiny_captioner: Path, photos: list[str], low: float, decoded: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, int]] = []

    def load(source: Any, min_size: int | None = None) -> Image.Image:
        image = load_image(source, min_size)
        sizes.append(image.size)
        return image

    monkeypatch.setattr(dataset, "load_image", load)
    items = data_set(tiny_captioner, photos, augmentation=AugmentationConfig(crop_scale=(low, 1), color_jitter=0.1))
    assert items[0]["pixel_values"].shape == (3, 32, 32)
    assert sizes == [decoded]
    if decoded != SIZES[0]:
        assert (0.75 * low) ** 0.5 * decoded[1] >= 2 * 32  # the shorter side of the smallest crop
