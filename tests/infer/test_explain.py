"""Heat maps: of the torch backend, of an export, and the sheet that shows them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captioner.data.images import ImageError
from captioner.errors import CaptionerError
from captioner.infer.caption import Caption, Token
from captioner.infer.captioner import Captioner
from captioner.infer.explain import Explanation, explanation_of
from captioner.infer.torch_attention import token_maps
from captioner.infer.words import Word
from captioner.model.auto import CaptionerConfig, CaptionerForConditionalGeneration


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def cap(tiny_captioner: Path) -> Captioner:
    return Captioner.from_pretrained(tiny_captioner, device="cpu")


@pytest.mark.parametrize("method", ["attention", "gradient"])
def test_each_word_has_a_map_over_what_the_model_sees(cap: Captioner, photo: Image.Image, method: str) -> None:
    explanation = cap.explain(photo, method=method, num_beams=2)
    assert explanation.caption == cap(photo, num_beams=2)
    assert [word.text for word in explanation.words] == explanation.caption.text.split()
    assert explanation.maps.shape == (len(explanation.words), 4, 4), "32 pixels in patches of 8, no class token"
    assert np.allclose(explanation.maps.sum((1, 2)), 1) and (explanation.maps >= 0).all()
    assert explanation.window == (24, 0, 72, 48)
    heat = explanation.heat_map(0)
    assert heat.shape == (48, 96) and heat.max() <= 1 and not heat[:, :24].any() and not heat[:, 72:].any()
    x, y = explanation.peak(0)
    assert heat[y, x] == heat.max()


def test_attention_is_what_the_decoder_computes_with(cap: Captioner, photo: Image.Image) -> None:
    model = cap.backend.model
    pixels = torch.from_numpy(cap.preprocessing(photo))[None]
    seen = []
    attention = model.decoder.layers[0].cross_attn
    with torch.no_grad():
        image_tokens = model.encoder(pixel_values=pixels).last_hidden_state
        handle = attention.register_forward_hook(lambda module, inputs, output: seen.append((inputs, output)))
        model.decoder(torch.tensor([[1, 5, 6]]), image_tokens)
        handle.remove()
        (inputs, output) = seen[0]
        again, weights = attention.with_weights(*inputs[:2])
    torch.testing.assert_close(again, output)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 3))
    maps = token_maps(model, pixels, [5, 6, 7], "attention")
    assert maps.shape == (3, 4, 4)
    assert not any(layer.cross_attn._forward_hooks for layer in model.decoder.layers), "nothing is left behind"


def test_gradients_follow_what_a_word_gains(cap: Captioner, photo: Image.Image) -> None:
    pixels = torch.from_numpy(cap.preprocessing(photo))[None]
    attention, gradient = (
        token_maps(cap.backend.model, pixels, [5, 6], method) for method in ("attention", "gradient")
    )
    assert not torch.allclose(
        attention / attention.sum((1, 2), keepdim=True), gradient / gradient.sum((1, 2), keepdim=True)
    )


@pytest.mark.parametrize(
    ("name", "kwargs", "layers", "grid"),
    [
        (
            "vit_tiny_patch16_224",
            {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "reg_tokens": 2},
            0,
            (4, 4),
        ),
        (
            "swin_tiny_patch4_window7_224",
            {"embed_dim": 16, "depths": [1], "num_heads": [2], "window_size": 4},
            0,
            (8, 8),
        ),
        ("convnext_atto", {"depths": [1] * 4, "dims": [8] * 4, "patch_size": 2, "output_stride": 8}, 1, (4, 4)),
    ],
)
def test_every_family_of_encoders_has_a_grid(name: str, kwargs: dict, layers: int, grid: tuple[int, int]) -> None:
    config = CaptionerConfig(
        encoder_name=name,
        encoder_kwargs=kwargs,
        image_size=32,
        encoder_layers=layers,
        vocab_size=16,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = CaptionerForConditionalGeneration(config).eval()
    assert token_maps(model, torch.zeros(1, 3, 32, 32), [3, 4], "attention").shape == (2, *grid)


def test_an_export_has_the_same_maps(exported: Path, tagged_captioner: Path, photo: Image.Image) -> None:
    model, export = Captioner.from_pretrained(tagged_captioner, device="cpu"), Captioner.from_pretrained(exported)
    ours, theirs = export.explain(photo), model.explain(photo)
    assert ours.caption.text == theirs.caption.text
    assert ours.maps == pytest.approx(theirs.maps, abs=1e-5)
    with pytest.raises(CaptionerError, match="no gradients"):
        export.explain(photo, method="gradient")


def test_what_cannot_be_explained_is_said(cap: Captioner, photo: Image.Image) -> None:
    with pytest.raises(CaptionerError, match="choose attention, gradient"):
        cap.explain(photo, method="lime")
    with pytest.raises(ImageError):
        cap.explain(b"no image")


def explained(text: str, size: tuple[int, int] = (60, 30)) -> Explanation:
    words = tuple(Word(word, 0.5) for word in text.split())
    maps = np.full((len(words), 2, 2), 0.25)
    return Explanation(Image.new("RGB", size, "gray"), Caption(text, 0.5, ()), words, maps, (0, 0, *size), "attention")


@pytest.mark.parametrize("text", ["", "dog", "a " * 40 + "dog", "x" * 400, "写真 \x1b[31m ‮"])
def test_a_sheet_can_be_drawn_of_any_caption(text: str) -> None:
    sheet = explained(text).sheet()
    assert sheet.mode == "RGB" and sheet.width < 1500
    assert explained(text, (3, 900)).sheet().height == sheet.height


def test_the_heat_is_seen_on_the_sheet_where_the_map_has_it() -> None:
    explanation = explained("dog", (80, 80))
    explanation.maps[0] = [[1, 0], [0, 0]]
    under_heat = np.asarray(explanation._under_heat(0)).astype(int)
    assert under_heat[10, 10, 0] - under_heat[10, 10, 2] > 50, "warm"
    assert (under_heat[70, 70] < 110).all() and np.ptp(under_heat[70, 70]) <= 2, "dim and grey"


def test_a_word_without_heat_has_the_same_everywhere():
    words = (Word("a", 0.9), Word("dog", 0.5))
    caption = Caption("a dog", 0.5, (Token("▁a", -0.1), Token("▁dog", -0.7)), words=words)
    token_maps = np.stack([np.zeros((2, 3), np.float32), np.arange(6, dtype=np.float32).reshape(2, 3)])
    explanation = explanation_of(Image.new("RGB", (30, 20)), caption, token_maps, (0, 0, 30, 20), "gradient")
    np.testing.assert_allclose(explanation.maps.sum((1, 2)), 1, rtol=1e-6)
    np.testing.assert_allclose(explanation.maps[0], 1 / 6, rtol=1e-6)
    assert explanation.heat_map(0).min() == explanation.heat_map(0).max() == 1
