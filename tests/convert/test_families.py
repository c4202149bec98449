"""Every family that is converted computes what its checkpoint did: logits, captions, pixels and words."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from public_checkpoints import KINDS, generated, load_original, logits, save_checkpoint
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
)

from captioner.config import RunConfig
from captioner.convert import convert_model
from captioner.data.captions import encode_texts
from captioner.decoding.stream import GenerationOptions, generate
from captioner.hub.load import load_model
from captioner.infer.captioner import Captioner
from captioner.infer.tokenizer import load_tokenizer
from captioner.training.trainer import train

ENDING = {"vit, gpt2", "vit, bert", "beit, roberta", "blip", "git"}
"""Kinds whose random weights end some captions before they are cut."""

EXPORTED = {"git"}
"""Besides "deit, gpt2", in test_vision_encoder_decoder.py."""

pytestmark = pytest.mark.parametrize("kind", KINDS, scope="module")


@pytest.fixture(scope="module")
def checkpoint(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(kind, folder)
    return folder


@pytest.fixture(scope="module")
def converted(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "model"
    assert convert_model(checkpoint, folder) < 2e-5
    return folder


@pytest.fixture(scope="module")
def original(checkpoint: Path) -> PreTrainedModel:
    return load_original(checkpoint)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    coarse = [generator.integers(0, 256, (5 + number, 9, 3), dtype=np.uint8) for number in range(8)]
    sizes = [(70, 50), (50, 70), (61, 33), (33, 61), (32, 32), (97, 40), (41, 41), (64, 48)]
    return [
        Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
        for pixels, size in zip(coarse, sizes, strict=True)
    ]


def test_logits_are_those_of_the_checkpoint(original, converted, kind):
    model, _ = load_model(converted, kind)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    captions = torch.randint(2, model.config.vocab_size, (4, 24), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = logits(original, images, captions)
        found = model.eval()(pixel_values=images, decoder_input_ids=captions).logits
        of_others = model(pixel_values=images.flip(0), decoder_input_ids=captions).logits
        together = model(pixel_values=images[:2], decoder_input_ids=captions).logits  # two captions an image
        apart = model(pixel_values=images[[0, 0, 1, 1]], decoder_input_ids=captions).logits
    assert expected.std() > 0.5 and (of_others - expected).abs().mean() > 0.01, "words and images must matter"
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)  # in float32; conversion compares in float64
    torch.testing.assert_close(together, apart, atol=1e-3, rtol=0)


def test_captions_are_those_of_generate(original, converted, pictures, kind):
    model, processor = load_model(converted, kind)
    pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
    captions = []
    for num_beams in (1, 3):
        expected = generated(original, pixels, num_beams=num_beams, max_length=None, max_new_tokens=20)
        options = GenerationOptions(num_beams=num_beams, max_new_tokens=20)
        found = [list(best.token_ids) for best, *_ in generate(model.eval(), {"pixel_values": pixels}, options)]
        assert found == expected
        captions += map(tuple, expected)
    assert len(set(captions)) > 3, "captions must differ"
    assert len(set(map(len, captions))) > 1 or kind not in ENDING


def test_transformers_generates_the_same_with_either(original, converted, kind):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    model = AutoModelForImageTextToText.from_pretrained(converted).eval()
    assert (model.generation_config.num_beams, model.generation_config.max_length) == (4, 12)
    assert generated(model, images) == generated(original, images, num_beams=4, max_length=12)


def test_pixels_are_those_of_its_image_processor(checkpoint, converted, pictures, kind):
    ours = AutoProcessor.from_pretrained(converted)(images=pictures, return_tensors="pt")["pixel_values"]
    theirs = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    expected = theirs(pictures, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_its_words_are_the_checkpoints(checkpoint, converted, kind):
    theirs, ours = (AutoTokenizer.from_pretrained(folder) for folder in (checkpoint, converted))
    exported = load_tokenizer(converted)
    for text in ("two dogs, in the snow", "a dog's bowl isn't here", "a sign that says </s> or [SEP]"):
        ids = theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert ours(text).input_ids == [*ids, ours.eos_token_id]
        assert exported.encode(text) == encode_texts(ours, [text])[0] == ids
        expected = theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special_tokens=True) == exported.decode(ids) == expected


def test_it_is_exported(converted, pictures, tmp_path, kind):
    if kind not in EXPORTED:
        pytest.skip("each export takes seconds: one kind for each form of attention")
    for library in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(library, reason=f"an export is made for this test: {library}, of 'captioner[export]'")
    from captioner.export.onnx import export_model

    export_model(converted, tmp_path / "exported")
    expected = Captioner.from_pretrained(converted, device="cpu")(pictures)
    found = Captioner.from_pretrained(tmp_path / "exported")(pictures)
    assert [caption.text for caption in found] == [caption.text for caption in expected]


def test_every_search_decodes_it(converted, pictures, kind):
    if kind not in ("vit, bert", "git"):
        pytest.skip("one kind for each form of attention")
    captioner = Captioner.from_pretrained(converted, device="cpu")
    short = {"max_new_tokens": 6}
    forced = captioner(pictures[:2], forced_words="dogs", num_beams=4, **short)
    assert all("dogs" in caption.text for caption in forced)
    begun = captioner(pictures[:2], prefix="a picture of", **short)
    assert all(caption.text.startswith("a picture of") for caption in begun)
    diverse = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 5.0, "num_return_sequences": 2}
    assert all(len(caption.alternatives) == 1 for caption in captioner(pictures[:2], **diverse, **short))
    drawn, again = (captioner(pictures[:3], do_sample=True, seed=1, batch_size=size, **short) for size in (3, 2))
    assert [caption.text for caption in drawn] == [caption.text for caption in again]


def test_a_prefix_is_what_transformers_calls_a_prompt(original, converted, pictures, kind):
    if kind not in ("blip", "git"):
        pytest.skip("the families whose generate takes a prompt")
    captioner = Captioner.from_pretrained(converted, device="cpu")
    prompt = captioner.backend.tokenizer.encode("a picture of")
    pixels = torch.from_numpy(captioner.preprocessing(pictures[0]))[None]
    start, end = captioner.backend.start, captioner.backend.model.config.eos_token_id
    ids = torch.tensor([[start, *prompt, *([end] if kind == "blip" else [])]])  # BLIP's generate drops the last
    found = original.generate(pixel_values=pixels, input_ids=ids, num_beams=3, max_length=None, max_new_tokens=6)
    text = captioner.backend.tokenizer.decode([token for token in found[0, 1:].tolist() if token != end])
    caption = captioner(pictures[0], prefix="a picture of", num_beams=3, max_new_tokens=6)
    assert caption.text == " ".join(text.split())


def test_it_fine_tunes(converted, pictures, tmp_path, kind):
    if kind not in ("blip, wider images", "git"):
        pytest.skip("training takes seconds")
    lines = []
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
        captions = ["a bus in the street", "two dogs play in the snow"]
        lines += [{"image": f"{number}.png", "caption": caption} for caption in captions[: 1 + number % 2]]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    data = {"path": str(tmp_path / "captions.jsonl")}
    rates = {"trunk": 1e-5, "bridge": 1e-3, "decoder": 1e-2}
    recipe = {
        "output_dir": str(tmp_path / "run"),
        "pretrained": {"captioner": str(converted)},
        "model": {"gradient_checkpointing": True},
        "data": {"train": data, "validation": data, "max_caption_tokens": 20},
        "optimization": {"batch_size": 8},
        "phases": [{"name": "joint", "steps": 30, "learning_rates": rates}],
    }
    train(RunConfig.model_validate(recipe))
    learnt = Captioner.from_pretrained(tmp_path / "run", device="cpu")(pictures[0]).text
    assert learnt and set(learnt.split()) <= {"a", "bus", "in", "the", "street", "two", "dogs", "play", "snow"}
