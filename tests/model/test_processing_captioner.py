"""The processor carries the whole preprocessing spec under transformers' names, and adds nothing of its own."""

import json
from pathlib import Path
from typing import Any

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


def test_the_end_of_sequence_is_in_the_mask_of_special_tokens(processor: CaptionerProcessor) -> None:
    tokenizer = processor.tokenizer
    ids = tokenizer("a red circle", return_special_tokens_mask=True)
    assert ids["special_tokens_mask"] == [0] * (len(ids["input_ids"]) - 1) + [1]
    assert tokenizer.get_special_tokens_mask(ids["input_ids"], already_has_special_tokens=True)[-1] == 1


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


def test_saved_fields_have_transformers_names(processor: CaptionerProcessor, tmp_path: Path) -> None:
    processor.image_processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (saved["size"], saved["resample"]) == ({"height": 24, "width": 24}, Image.Resampling.BILINEAR)
    assert (saved["image_mean"], saved["image_std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert saved["do_resize"] and saved["do_rescale"] and saved["do_normalize"] and saved["do_convert_rgb"]


def test_files_of_captioner_0_1_give_the_same_preprocessing(tmp_path: Path) -> None:
    former = {
        "image_processor_type": "CaptionerImageProcessor", "image_size": 24, "resize_mode": "pad", "crop_pct": 0.9,
        "interpolation": "bilinear", "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(former))
    assert CaptionerImageProcessor.from_pretrained(tmp_path).preprocessing == SPEC


NOISE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "image",
    [NOISE, NOISE.transpose(2, 0, 1), torch.from_numpy(NOISE), torch.from_numpy(NOISE).permute(2, 0, 1), NOISE[None]],
    ids=["array", "channels first", "tensor", "tensor, channels first", "batch"],
)
def test_arrays_and_tensors_give_what_images_give(processor: CaptionerProcessor, image: Any) -> None:
    found = processor.image_processor(image, return_tensors="np")["pixel_values"]
    assert np.array_equal(found, SPEC(Image.fromarray(NOISE))[None])


def test_floats_are_resized_as_floats() -> None:
    """Pixels from 0 to 1 with rescaling off. Bicubic resizing would overshoot, which only 8-bit pixels clip."""
    processor = CaptionerImageProcessor(size=24, resample="bilinear", image_mean=0.5, image_std=0.5)
    found = processor(NOISE / np.float32(255), do_rescale=False, return_tensors="np")["pixel_values"]
    assert np.abs(found - processor(NOISE, return_tensors="np")["pixel_values"]).max() < 0.01


def test_each_step_can_be_left_out_or_changed_in_a_call(processor: CaptionerProcessor) -> None:
    image, image_processor = Image.fromarray(NOISE), processor.image_processor

    def pixels(**changes: Any) -> np.ndarray:
        return image_processor(image, return_tensors="np", **changes)["pixel_values"][0]

    raw = pixels(do_resize=False, do_rescale=False, do_normalize=False)
    assert np.array_equal(raw, NOISE.transpose(2, 0, 1))
    assert pixels(size={"height": 12, "width": 12}).shape == (3, 12, 12)
    plain = pixels(resize_mode="crop", image_mean=0.0, image_std=1.0)
    assert np.allclose(plain, pixels(resize_mode="crop", do_normalize=False))
    assert not np.array_equal(pixels(resample=Image.Resampling.NEAREST), pixels())
    assert not np.array_equal(pixels(resize_mode="crop"), pixels())
    assert image_processor.preprocessing == SPEC
    with pytest.raises(ValueError, match="captioner's images are squares"):
        pixels(size={"height": 12, "width": 24})
    with pytest.raises(ValueError, match="do_normalize off, which captioner does not support"):
        CaptionerImageProcessor(do_normalize=False).preprocessing  # noqa: B018
