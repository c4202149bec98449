"""Any image-text model with a chat template is an annotator: batched, with the words of `generate` and their
probabilities. The model is a LLaVA with random weights."""

import json
import math
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from public_checkpoints import bert_tokenizer
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from captioner import Captioner, cli
from captioner.config import RunConfig
from captioner.errors import CaptionerError
from captioner.training.trainer import train

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vlm")
    tokenizer = bert_tokenizer()  # every sequence of its tokens is text
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, image_size=32, patch_size=16, initializer_range=0.3)
    ids = {"bos_token_id": 2, "pad_token_id": 0, "eos_token_id": 3}
    text = LlamaConfig(**sizes, **ids, vocab_size=len(tokenizer), max_position_embeddings=256, initializer_range=0.3)
    torch.manual_seed(0)
    token = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=token, vision_feature_layer=-1)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.model.multi_modal_projector.parameters():
            parameter *= 20  # the picture matters
        model.lm_head.weight[3] *= 2  # captions of many lengths
    model.generation_config.update(**ids)
    model.save_pretrained(folder)
    image_processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


def expected(folder: Path, photo: Path, prompt: str, **options: Any) -> tuple[str, float]:
    """By transformers alone: the caption, and its confidence from another forward pass."""
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = LlavaProcessor.from_pretrained(folder)
    text = f"user: <image> {prompt} assistant:"
    inputs = processor(text=[text], images=[Image.open(photo)], return_tensors="pt")
    start = inputs["input_ids"].shape[1]
    found = model.generate(**inputs, do_sample=False, **options)
    with torch.inference_mode():
        ones = torch.ones_like(found)
        logits = model(input_ids=found, attention_mask=ones, pixel_values=inputs["pixel_values"]).logits
    log_probs = logits.log_softmax(-1)[0, start - 1 : -1].gather(1, found[0, start:, None])[:, 0]
    words = processor.tokenizer.decode(found[0, start:], skip_special_tokens=True)
    return " ".join(words.split()), math.exp(log_probs.mean())


@pytest.mark.parametrize("num_beams", [1, 3])
def test_captions_are_those_of_generate_in_batches_with_their_probabilities(
    vlm: Path, photos: list[Path], num_beams: int
) -> None:
    captioner = Captioner.from_pretrained(vlm, device="cpu", prompt="what is it?")
    found = captioner(photos, num_beams=num_beams, max_new_tokens=8, batch_size=2)
    assert len({caption.text for caption in found}) > 1
    for caption, photo in zip(found, photos, strict=True):
        text, confidence = expected(vlm, photo, "what is it?", num_beams=num_beams, max_new_tokens=8)
        assert caption.text == text and caption.confidence == pytest.approx(confidence, rel=1e-3)
        assert len(caption.tokens) <= 8


def test_the_prompt_is_asked_and_named(vlm: Path, photos: list[Path]) -> None:
    default, other = (Captioner.from_pretrained(vlm, device="cpu", prompt=prompt) for prompt in (None, "a bus?"))
    assert (default.name, other.name) == (str(vlm), f"{vlm} asked 'a bus?'")
    assert [c.text for c in default(photos, max_new_tokens=8)] != [c.text for c in other(photos, max_new_tokens=8)]


def test_alternatives_and_options(vlm: Path, photos: list[Path]) -> None:
    captioner = Captioner.from_pretrained(vlm, device="cpu")
    several = captioner(photos[:3], num_beams=3, num_return_sequences=2, max_new_tokens=6)
    assert all(len(caption.alternatives) == 1 for caption in several)
    assert len(captioner(photos[0], min_new_tokens=5, max_new_tokens=5).tokens) == 5
    for options in ({"prefix": "a"}, {"forced_words": "dog", "num_beams": 2}, {"do_sample": True, "seed": 1}):
        with pytest.raises(CaptionerError, match="asked by a prompt takes no"):
            captioner(photos[0], **options)


def test_infer_annotates_with_it(
    vlm: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.jsonl"
    arguments = [
        *map(str, photos),
        "--model",
        str(vlm),
        "--prompt",
        "what?",
        "--max-new-tokens",
        "8",
        "-o",
        str(output),
    ]
    monkeypatch.setattr(sys, "argv", ["captioner", "annotate", *arguments, "--device", "cpu"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    records = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [record["model"] for record in records] == [f"{vlm} asked 'what?'"] * len(photos)
    assert all(0 < record["confidence"] <= 1 for record in records)


def test_what_does_not_go_with_it_is_one_line(vlm: Path, tiny_captioner: Path, tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match="takes no prompt; a prefix starts"):
        Captioner.from_pretrained(tiny_captioner, prompt="what?")
    with pytest.raises(CaptionerError, match="an adapter goes with a captioner"):
        Captioner.from_pretrained(vlm, adapter=tmp_path)
    for file in vlm.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(CaptionerError, match="has no chat template; say with a prompt"):
        Captioner.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CaptionerError, match=r"cannot be read as an image-text model: [^\n]+$"):
        Captioner.from_pretrained(tmp_path)


def test_code_of_a_models_own_runs_only_if_trusted(vlm: Path, tmp_path: Path) -> None:
    for file in vlm.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoModelForImageTextToText": "mine.Model", "AutoConfig": "mine.C"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise ValueError('it ran')\n")
    with pytest.raises(CaptionerError, match="a 'mine' model with code of its own, which is not run"):
        Captioner.from_pretrained(tmp_path)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(CaptionerError, match="cannot be read as an image-text model"):
        Captioner.from_pretrained(tmp_path, trust_remote_code=True)
    assert (tmp_path / "ran").exists()


def test_distillation_as_the_example_has_it(
    vlm: Path, tiny_captioner: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher captions by the page's own command; the student trains on the project."""
    page = (Path(__file__).parents[2] / "examples" / "distil.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"python infer.py (photos/ -o .*?)\n\n", page.replace("\\\n", ""), re.DOTALL)
    words = shlex.split(command)
    words[words.index("--model") + 1] = str(vlm)
    words[words.index("--max-new-tokens") + 1] = "8"
    (tmp_path / "photos").mkdir()
    for photo in photos:
        (tmp_path / "photos" / photo.name).write_bytes(photo.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["captioner", "annotate", *words, "--device", "cpu"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    data = {"path": "album.captions"}
    phase = {"name": "joint", "steps": 2, "learning_rates": {"decoder": 1e-3}}
    recipe = {
        "output_dir": "runs/distilled",
        "pretrained": {"captioner": str(tiny_captioner)},
        "data": {"train": data, "validation": data, "max_caption_tokens": 16},
        "optimization": {"batch_size": 4},
        "phases": [phase],
    }
    train(RunConfig.model_validate(recipe))
    assert Captioner.from_pretrained("runs/distilled", device="cpu")(photos[0]).text
