import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

from captioner.decoding.defaults import generation_defaults, options_with
from captioner.decoding.options import GenerationOptions
from captioner.errors import CaptionerError
from captioner.hub.find import BUNDLED
from captioner.infer.captioner import Captioner


def test_a_model_that_says_nothing_leaves_our_defaults() -> None:
    for config in (GenerationConfig(), GenerationConfig.from_pretrained(BUNDLED)):
        assert options_with(generation_defaults(config.to_dict()), {}) == GenerationOptions()


@pytest.mark.parametrize(
    ("model", "given", "expected"),
    [
        ({"num_beams": 4, "max_length": 16}, {}, {"num_beams": 4, "max_new_tokens": 15}),
        ({"max_length": 16, "max_new_tokens": 9, "min_length": 3}, {}, {"max_new_tokens": 9, "min_new_tokens": 2}),
        ({"num_beams": 4, "length_penalty": 2.0}, {"num_beams": 2}, {"num_beams": 2, "length_penalty": 2.0}),
        ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 0}, {}),
        ({"num_beams": 4}, {"num_return_sequences": 6}, {"num_beams": 6, "num_return_sequences": 6}),
        ({"num_beams": 4}, {"do_sample": True, "top_k": 5}, {"do_sample": True, "top_k": 5}),
        ({"do_sample": True, "top_p": 0.9}, {"seed": 1}, {"do_sample": True, "top_p": 0.9, "seed": 1}),
        ({"do_sample": True, "top_p": 0.9}, {"num_beams": 2}, {"num_beams": 2}),
        ({"temperature": 0.7, "top_k": 50}, {}, {}),
    ],
)
def test_what_is_given_goes_before_what_the_model_says(
    model: dict[str, Any], given: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = options_with(generation_defaults(GenerationConfig(**model).to_dict()), given)
    assert found == GenerationOptions(**expected)


def test_captions_are_as_the_folder_says_and_nonsense_in_it_is_named(tiny_captioner: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_captioner, folder)
    config = json.loads((folder / "generation_config.json").read_text())
    pixels = torch.randint(0, 256, (40, 40, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    photo = Image.fromarray(pixels.numpy())
    (folder / "generation_config.json").write_text(json.dumps(config | {"max_length": 5, "num_beams": 2}))
    plain, changed = (Captioner.from_pretrained(path, device="cpu") for path in (tiny_captioner, folder))
    assert changed(photo) == plain(photo, max_new_tokens=4, num_beams=2) != plain(photo)
    assert changed(photo, max_new_tokens=6, num_beams=3) == plain(photo, max_new_tokens=6)
    for nonsense in ({"num_beams": "four"}, {"num_beams": 0}):
        (folder / "generation_config.json").write_text(json.dumps(config | nonsense))
        with pytest.raises(CaptionerError, match=r"generation_config\.json: "):
            Captioner.from_pretrained(folder)
