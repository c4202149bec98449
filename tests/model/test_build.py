"""Pretrained trunk weights from a file: the right ones arrive, the wrong ones are refused by name."""

import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from torch.testing import assert_close

from captioner.model.build import build_image_processor, build_model, change_image_size, load_trunk
from captioner.model.configuration_captioner import CaptionerConfig
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration

VIT = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}


def config(name: str = "vit_tiny_patch16_224", image_size: int = 32, **kwargs: object) -> CaptionerConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
    return CaptionerConfig(encoder_name=name, encoder_kwargs=kwargs, image_size=image_size, **sizes)


@pytest.fixture
def vit_file(tmp_path: Path) -> Path:
    """A classifier as timm saves it, at 32 pixels."""
    torch.manual_seed(5)
    path = tmp_path / "vit.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224", img_size=32, **VIT).state_dict(), path)
    return path


def pretrained(config: CaptionerConfig, weights: str) -> CaptionerForConditionalGeneration:
    model = build_model(config)
    load_trunk(model, weights)
    return model


def trunk_weights(model: CaptionerForConditionalGeneration) -> dict[str, torch.Tensor]:
    return model.encoder.trunk.model.state_dict()


def test_weights_of_a_classifier_become_the_trunk(vit_file: Path) -> None:
    torch.manual_seed(5)
    saved = timm.create_model("vit_tiny_patch16_224", img_size=32, **VIT).state_dict()
    loaded = trunk_weights(pretrained(config(**VIT), str(vit_file)))
    assert {"head.weight", "head.bias"} == saved.keys() - loaded.keys()
    assert_close(loaded, {name: saved[name] for name in loaded}, rtol=0, atol=0)


@pytest.mark.skipif("CAPTIONER_WEIGHTS" not in os.environ, reason="CAPTIONER_WEIGHTS names no folder of real trunks")
@pytest.mark.parametrize(
    ("name", "kwargs"), [("tf_efficientnet_lite0", {}), ("vit_small_patch14_dinov2", {"dynamic_img_size": True})]
)
def test_published_weights_load(name: str, kwargs: dict[str, object]) -> None:
    file = Path(os.environ["CAPTIONER_WEIGHTS"]) / f"{name}.safetensors"
    loaded = trunk_weights(pretrained(config(name, image_size=224, **kwargs), str(file)))
    saved = load_file(file)
    same = [key for key, tensor in loaded.items() if torch.equal(tensor, saved[key].to(tensor.dtype))]
    assert loaded.keys() - set(same) <= {"pos_embed"}


def test_a_trunk_without_weights_is_as_timm_draws_it() -> None:
    torch.manual_seed(5)
    drawn = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, **VIT).state_dict()
    torch.manual_seed(5)
    assert_close(trunk_weights(build_model(config(**VIT))), drawn, rtol=0, atol=0)


def test_an_unknown_argument_of_the_trunk_is_refused() -> None:
    with pytest.raises(ValueError, match=r"encoder_kwargs of vit_tiny_patch16_224: .*'dept'"):
        build_model(config(dept=2))


def test_position_embeddings_of_another_image_size_are_resampled(vit_file: Path) -> None:
    small = trunk_weights(pretrained(config(**VIT), str(vit_file)))
    large = trunk_weights(pretrained(config(image_size=48, **VIT), str(vit_file)))
    expected = resample_abs_pos_embed(small["pos_embed"], (6, 6), (4, 4))
    assert large["pos_embed"].shape == (1, 1 + 36, 32)
    assert_close(large.pop("pos_embed"), expected)
    small.pop("pos_embed")
    assert_close(large, small, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("test_efficientnet", {}),
        ("vit_tiny_patch16_224", VIT),
        ("vit_base_patch16_siglip_224", VIT),  # pools with attention
        ("vit_small_patch14_dinov2", {**VIT, "dynamic_img_size": True}),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}),
    ],
)
def test_a_captioner_for_images_of_another_size_keeps_all_else(name: str, kwargs: dict[str, object]) -> None:
    model = build_model(config(name, **kwargs)).eval()
    before = trunk_weights(model)
    change_image_size(model, 64)
    after = trunk_weights(model)
    assert model.config.image_size == 64
    assert after.keys() == before.keys()
    resampled = {key for key in before if before[key].shape != after[key].shape}
    assert resampled <= {"pos_embed"}
    assert all(torch.equal(before[key], after[key]) for key in before.keys() - resampled)
    assert model.encoder(torch.zeros(1, 3, 64, 64)).last_hidden_state.isfinite().all()


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("test_efficientnet", {}),
        ("vit_tiny_patch16_224", {**VIT, "embed_dim": 48}),
        ("vit_tiny_patch16_224", {**VIT, "depth": 2}),
    ],
)
def test_weights_of_another_trunk_are_refused(vit_file: Path, name: str, kwargs: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=rf"vit\.safetensors do not fit {name}: ") as caught:
        pretrained(config(name, **kwargs), str(vit_file))
    assert len(str(caught.value)) < 500


def test_files_that_hold_no_weights_are_refused(vit_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.safetensors: not an existing \.safetensors file"):
        pretrained(config(**VIT), str(tmp_path / "absent.safetensors"))
    pickled = tmp_path / "weights.bin"
    pickled.write_bytes(vit_file.read_bytes())
    with pytest.raises(ValueError, match=r"weights\.bin: not an existing \.safetensors file"):
        pretrained(config(**VIT), str(pickled))
    vit_file.write_bytes(vit_file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"vit\.safetensors cannot be read"):
        pretrained(config(**VIT), str(vit_file))


def test_the_image_processor_follows_the_trunk() -> None:
    model = build_model(config("vit_tiny_patch16_224", image_size=40, **VIT))
    processor = build_image_processor(model, "pad", 0.9)
    found = processor.preprocessing
    assert (found.image_size, found.resize_mode, found.crop_pct) == (40, "pad", 0.9)
    assert (found.mean, found.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    imagenet = build_image_processor(build_model(config("deit_tiny_distilled_patch16_224", **VIT)))
    assert imagenet.preprocessing.mean == (0.485, 0.456, 0.406)


def test_an_unknown_trunk_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="timm has no 'vit_smal_patch16_224'; did you mean 'vit_small_patch16_224'"):
        build_model(CaptionerConfig(encoder_name="vit_smal_patch16_224"))
