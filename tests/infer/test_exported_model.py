"""An exported folder captions without torch, and says what is wrong with itself."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captioner.errors import CaptionerError
from captioner.infer.captioner import Captioner

for library in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(library, reason=f"an export is made for these tests: {library}, of 'captioner[export]'")

from loading import load_exported  # noqa: E402

WITHOUT_TORCH = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        library = name.partition(".")[0]
        if library in {"torch", "torchvision", "transformers", "timm"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=library)

sys.meta_path.insert(0, Absent())
from captioner import Captioner
from captioner.errors import CaptionerError

folder, asked, *photos = sys.argv[1:]
cap = Captioner.from_pretrained(folder)
for options in json.loads(asked):
    try:
        print(json.dumps([caption.text for caption in cap(photos, **options)]))
    except CaptionerError as error:
        print(json.dumps(str(error)))
"""

ASKED = [
    {},
    {"num_beams": 1, "prefix": "a red", "no_repeat_ngram_size": 3},
    {"num_beams": 4, "banned_words": ["e", "on"], "min_new_tokens": 4, "num_return_sequences": 2},
    {"do_sample": True, "seed": 7, "temperature": 1.5, "top_k": 20, "top_p": 0.9, "num_return_sequences": 2},
    {"beams": 2},
    {"num_beams": 0},
    {"num_beams": "3"},
    {"top_p": 0.5},
    {"do_sample": True, "top_p": 1.5},
    {"min_new_tokens": 30},
    {"prefix": "a red square on a table"},
    {"banned_words": [""]},
    {"bad_words_ids": [[99]]},
    {"batch_size": 0},
]


def test_where_torch_and_transformers_are_absent_captions_and_errors_are_those_of_the_model(
    tagged_captioner, exported, photos
):
    command = [sys.executable, "-c", WITHOUT_TORCH, str(exported), json.dumps(ASKED), *map(str, photos)]
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    found = [json.loads(line) for line in finished.stdout.splitlines()]
    reference = Captioner.from_pretrained(tagged_captioner, device="cpu")
    for options, answer in zip(ASKED, found, strict=True):
        if isinstance(answer, str):
            with pytest.raises(CaptionerError) as expected:
                reference(photos, **options)
            assert answer == str(expected.value)
        else:
            assert answer == [caption.text for caption in reference(photos, **options)]
    assert sum(isinstance(answer, list) for answer in found) == 4


INFER = Path(__file__).parents[2] / "infer.py"


@pytest.mark.skipif(not INFER.is_file(), reason="installed without the repository")
def test_infer_py_captions_with_an_export_and_does_not_load_torch_where_it_is_installed(exported, photos):
    command = [sys.executable, "-X", "importtime", str(INFER), str(photos[0]), "--model", str(exported)]
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == f"{photos[0]}\t{Captioner.from_pretrained(exported)([photos[0]], num_beams=3)[0].text}\n"
    imported = {line.rpartition("|")[2].strip() for line in finished.stderr.splitlines()}
    assert "onnxruntime" in imported
    assert not {"torch", "torchvision", "transformers", "timm"} & imported


def change(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text())
    place = content.get("image_processor", content)
    file.write_text(json.dumps(content | values if place is content else {"image_processor": place | values}))


def damage(folder: Path, what: str) -> None:
    config, generation = folder / "config.json", folder / "generation_config.json"
    processor, encoder, decoder = (folder / name for name in ("processor_config.json", "encoder.onnx", "decoder.onnx"))
    match what:
        case "no config":
            config.unlink()
        case "cut config":
            config.write_text(config.read_text()[:-9])
        case "another format":
            change(folder / "graphs.json", format_version=99)
        case "no positions":
            change(config, max_position_embeddings=0)
        case "fewer tags":
            change(config, tags=["red"])
        case "no decoder":
            decoder.unlink()
        case "cut encoder":
            encoder.write_bytes(encoder.read_bytes()[:-100])
        case "two decoders":
            shutil.copy(decoder, encoder)
        case "no preprocessing":
            processor.write_text("{}")
        case "other pixels":
            change(processor, size={"height": 64, "width": 64})
        case "no deviation":
            change(processor, image_std=[0, 0, 0])
        case "no end":
            change(config, eos_token_id=None)
        case "an unknown start":
            change(config, decoder_start_token_id=10**6)
        case "no beams":
            change(generation, num_beams=0)
        case "defaults too long":
            change(generation, min_new_tokens=30)
        case "other tokens":
            change(config, vocab_size=9)
        case "no tokenizer":
            (folder / "tokenizer.model").unlink()
        case "cut tokenizer":
            (folder / "tokenizer.model").write_bytes(b"")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no config", r"/config\.json: No such file"),
        ("cut config", r"/config\.json: .*line \d+ column"),
        ("another format", r"/graphs\.json: exported in format 99, and this captioner reads"),
        ("no positions", r"/config\.json: max_position_embeddings 0 leave no room"),
        ("fewer tags", r"/config\.json: 1 tags, and encoder\.onnx has 5"),
        ("no decoder", r"/decoder\.onnx: .*doesn't exist"),
        ("cut encoder", r"/encoder\.onnx: .*parsing failed"),
        ("two decoders", r"encoder\.onnx and decoder\.onnx are not of one model"),
        ("no preprocessing", r"/processor_config\.json: without 'image_processor'"),
        ("other pixels", r"/processor_config\.json: image_size 64, and encoder\.onnx takes 32"),
        ("no deviation", r"/processor_config\.json: mean .* std above 0"),
        ("no end", r"/config\.json: int\(\) argument must be"),
        ("an unknown start", r"/config\.json: token 1000000; the model has those from 0 to"),
        ("no beams", r"/generation_config\.json: num_beams must be at least 1"),
        ("defaults too long", r"/generation_config\.json: min_new_tokens is 30; this model writes at most 16"),
        ("other tokens", r"/config\.json: vocab_size 9, and decoder\.onnx has \d+ tokens"),
        ("no tokenizer", r"neither tokenizer\.json nor tokenizer\.model"),
        ("cut tokenizer", r"/tokenizer\.model: "),
    ],
)
def test_a_folder_that_is_no_export_is_explained_in_one_line(exported, tmp_path, what, message):
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    damage(folder, what)
    with pytest.raises(CaptionerError, match=message) as caught:
        load_exported(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_more_positions_than_the_graph_has_cost_one_line(exported, tmp_path, photos, capfd):
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    change(folder / "config.json", max_position_embeddings=99)
    with pytest.raises(CaptionerError, match=r"/decoder\.onnx: ") as caught:
        Captioner.from_pretrained(folder)(photos[0], min_new_tokens=40)
    assert "\n" not in str(caught.value) and capfd.readouterr().err == ""


def test_pictures_of_any_shape_are_captioned_as_by_the_model(tagged_captioner, exported):
    generator = np.random.default_rng(2)
    sizes = [(1, 1), (1, 300), (700, 3), (33, 31), (32, 32), (640, 480)]
    pictures = [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    expected = [caption.text for caption in Captioner.from_pretrained(tagged_captioner, device="cpu")(pictures)]
    captioner = Captioner.from_pretrained(exported)
    assert [caption.text for caption in captioner(pictures, batch_size=10**6)] == expected
    assert [captioner(picture).text for picture in pictures] == expected
    assert captioner([]) == []


def test_images_come_in_every_form_that_the_model_takes(exported, photos):
    captioner = Captioner.from_pretrained(exported)
    expected = [caption.text for caption in captioner(photos)]
    pixels = [np.asarray(Image.open(photo).convert("RGB")) for photo in photos]
    for images in (iter(photos), tuple(pixels), (photo.read_bytes() for photo in photos)):
        assert [caption.text for caption in captioner(images, batch_size=2)] == expected
    assert captioner(pixels[0]).text == expected[0]
    with open(photos[0], "rb") as file:
        assert captioner(file).text == expected[0]
    for wrong, message in ((None, "NoneType is not an image"), ("https://example.org/a.jpg", "URLs are not fetched")):
        with pytest.raises(CaptionerError, match=message):
            captioner(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forced_words": ["dog"]}, "an exported model has no forced words"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}, "an exported model has no diverse beams"),
    ],
)
def test_what_an_export_cannot_do_is_refused_by_name(exported, photos, options, message):
    with pytest.raises(CaptionerError, match=message):
        Captioner.from_pretrained(exported)(photos[0], **options)
