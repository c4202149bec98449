"""The processor carries the whole preprocessing spec, and adds nothing of its own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captioner.data.captions import encode_captions
from captioner.model.preprocessing import Preprocessing
from captioner.model.processing_captioner import CaptionerImageProcessor, CaptionerProcessor

SPEC = Preprocessing(24, "pad", 0.9, "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.fixture
def processor(tiny_captioner: Path) -> CaptionerProcessor:
    tokenizer = CaptionerProcessor.from_pretrained(tiny_captioner).tokenizer
    image_processor = CaptionerImageProcessor(
        size=SPEC.image_size,
        resample=SPEC.interpolation,
        image_mean=SPEC.mean,
        image_std=SPEC.std,
        resize_mode=SPEC.resize_mode,
        crop_pct=SPEC.crop_pct,
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


CAPTIONS = [" a  red\tcircle .\n", "a green square。", "a red square", "no. 5", "...", "", "a sign says </s>."]


def test_captions_get_the_ids_that_training_gives_them(processor: CaptionerProcessor) -> None:
    expected = [ids for (ids,) in encode_captions([[caption] for caption in CAPTIONS], processor.tokenizer, 40)]
    assert processor(text=CAPTIONS)["input_ids"] == expected
    assert processor(text=tuple(CAPTIONS))["input_ids"] == expected
    assert processor(None, CAPTIONS)["input_ids"] == expected
    image = Image.new("RGB", (8, 8))
    assert processor(images=[image] * len(CAPTIONS), text=CAPTIONS)["input_ids"] == expected
    assert processor(text=CAPTIONS[0])["input_ids"] == expected[0]


def test_captions_that_are_cut_keep_the_end_of_sequence_as_in_training(processor: CaptionerProcessor) -> None:
    ((expected,),) = encode_captions([["a red square."]], processor.tokenizer, 5)
    assert processor(text="a red square.", truncation=True, max_length=5)["input_ids"] == expected


def test_captions_that_are_not_text_raise_the_error_of_transformers(processor: CaptionerProcessor) -> None:
    with pytest.raises(ValueError, match="must be a string or list of strings"):
        processor(text=["a red circle", None])


def test_captions_stay_as_the_caller_gave_them(processor: CaptionerProcessor) -> None:
    captions = ["a red circle ."]
    processor(text=captions)
    assert captions == ["a red circle ."]


def test_the_spec_survives_files(processor: CaptionerProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    loaded = CaptionerProcessor.from_pretrained(tmp_path)
    assert loaded.image_processor.preprocessing == SPEC
    assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
