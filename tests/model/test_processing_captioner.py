"""The processor carries the whole preprocessing spec, and adds nothing of its own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captioner.model.preprocessing import Preprocessing
from captioner.model.processing_captioner import CaptionerImageProcessor, CaptionerProcessor

SPEC = Preprocessing(24, "pad", 0.9, "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.fixture
def processor(tiny_captioner: Path) -> CaptionerProcessor:
    tokenizer = CaptionerProcessor.from_pretrained(tiny_captioner).tokenizer
    image_processor = CaptionerImageProcessor(
        SPEC.image_size, SPEC.resize_mode, SPEC.crop_pct, SPEC.interpolation, SPEC.mean, SPEC.std
    )
    return CaptionerProcessor(image_processor, tokenizer)


def test_the_processor_gives_what_the_spec_gives(processor: CaptionerProcessor) -> None:
    noise = np.random.default_rng(0)
    images = [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((40, 30), (20, 90))]
    expected = np.stack([SPEC(image) for image in images])
    batch = processor(images=images, text=["a red circle", "a"], return_tensors="pt", padding=True)
    assert torch.equal(batch["pixel_values"], torch.from_numpy(expected))
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    one = processor(images=images[1], return_tensors="np")["pixel_values"]
    assert np.array_equal(one, expected[1:])


def test_the_spec_survives_files(processor: CaptionerProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    loaded = CaptionerProcessor.from_pretrained(tmp_path)
    assert loaded.image_processor.preprocessing == SPEC
    assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
