"""Every family of trunk behind one adapter: shapes, gradients, files, image sizes, batch-norm statistics."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from captioner.model.encoder import sincos_position_embedding
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}


class Family(NamedTuple):
    """A timm model made small, and the tokens [prefix + rows * columns, channels] that it should give."""

    name: str
    kwargs: dict[str, Any]
    image_size: int
    prefix: int
    patches: int
    channels: int
    layers: int = 0


FAMILIES = {
    "vit": Family("vit_tiny_patch16_224", SMALL, 48, 1, 9, 32),
    "deit distilled": Family("deit_tiny_distilled_patch16_224", SMALL, 32, 2, 4, 32),
    "dinov2 with registers": Family("vit_small_patch14_reg4_dinov2", SMALL, 28, 5, 4, 32),
    "siglip": Family("vit_base_patch16_siglip_224", SMALL, 32, 0, 4, 32),
    "swin": Family(
        "swin_tiny_patch4_window7_224", {"embed_dim": 16, "depths": [2, 2], "num_heads": [1, 2]}, 64, 0, 64, 32
    ),
    "convnext": Family("test_convnext", {}, 64, 0, 4, 64, layers=1),
    "efficientnet": Family("test_efficientnet", {}, 64, 0, 4, 256, layers=1),
    "vit with a CNN stem": Family("vit_tiny_r_s16_p8_224", SMALL, 64, 1, 4, 32),
}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_each_trunk_family_gives_tokens_learns_and_reloads(family: Family, make_model: Any, tmp_path: Path) -> None:
    model = make_model(
        encoder_name=family.name,
        encoder_kwargs=family.kwargs,
        image_size=family.image_size,
        encoder_layers=family.layers,
        num_hidden_layers=1,
    )
    pixels = torch.randn(2, 3, family.image_size, family.image_size)
    features, (rows, columns) = model.encoder.trunk(pixels)
    assert features.shape == (2, family.prefix + family.patches, family.channels)
    assert (rows, columns) == (family.patches**0.5, family.patches**0.5)

    model.train()(pixels, labels=torch.tensor([[3, 4, 2], [5, 2, -100]])).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())

    model.eval().save_pretrained(tmp_path)
    loaded = CaptionerForConditionalGeneration.from_pretrained(tmp_path)
    assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert_close(loaded.encoder(pixels)[0], model.encoder(pixels)[0])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_efficientnet"])
def test_images_that_are_not_square_are_pooled_along_their_own_grid(name: str, make_model: Any) -> None:
    transformer = name.startswith("vit")
    kwargs = {"patch_size": 32, **SMALL, "dynamic_img_size": True} if transformer else {}
    plain, pooled = (
        make_model(encoder_name=name, encoder_kwargs=kwargs, image_size=64, encoder_pooling=window).encoder.trunk.eval()
        for window in (1, 2)
    )
    pixels = torch.randn(1, 3, 96, 160)
    tokens, grid = plain(pixels)
    assert grid == (3, 5)
    prefix = plain.num_prefix_tokens
    means, pooled_grid = pooled(pixels)
    assert pooled_grid == (2, 3)
    assert_close(means[:, :prefix], tokens[:, :prefix])
    patches = tokens[0, prefix:].view(3, 5, -1)
    windows = [patches[row : row + 2, column : column + 2] for row in (0, 2) for column in (0, 2, 4)]
    assert_close(means[0, prefix:], torch.stack([window.mean((0, 1)) for window in windows]))


def test_hybrid_layers_place_the_tokens_of_an_image_that_is_not_square(make_model: Any) -> None:
    encoder = make_model(encoder_name="test_efficientnet", encoder_kwargs={}, image_size=64, encoder_layers=1).encoder
    tall, wide = torch.randn(1, 3, 96, 64), torch.randn(1, 3, 64, 96)
    assert encoder(tall)[0].shape == encoder(wide)[0].shape == (1, 6, 32)
    tokens, _ = encoder.trunk(tall)
    assert not torch.allclose(encoder.bridge(tokens, 0, (3, 2)), encoder.bridge(tokens, 0, (2, 3)), atol=1e-3)
    assert_close(encoder(tall)[0], encoder.bridge(tokens, 0, (3, 2)))
    with pytest.raises(ValueError, match="6 image tokens are not a square grid"):
        encoder(trunk_features=tokens)


def test_position_embedding_gives_half_its_width_to_each_axis() -> None:
    table = sincos_position_embedding(3, 5, 16, torch.device("cpu")).view(3, 5, 16)
    assert_close(table[..., :8], table[:, :1, :8].expand(3, 5, 8))
    assert_close(table[..., 8:], table[:1, :, 8:].expand(3, 5, 8))
    distances = torch.cdist(table.flatten(0, 1), table.flatten(0, 1)) + torch.eye(15)
    assert distances.min() > 0.1
    assert table[1, 0, 0].item() == pytest.approx(torch.tensor(1.0).sin().item())


def test_batch_norm_statistics_stay_and_a_trunk_at_rest_gets_no_gradients(make_model: Any) -> None:
    model = make_model(encoder_name="test_efficientnet", encoder_kwargs={}, image_size=64)
    pixels = 5 + 3 * torch.randn(2, 3, 64, 64)
    rested = model.encoder.trunk(pixels)[0]
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert any("running_mean" in name for name in before)
    model.train()
    model.encoder.trunk.requires_grad_(False)
    assert_close(model.encoder.trunk(pixels)[0], rested)
    model(pixels, labels=torch.tensor([[3, 2], [4, 2]])).loss.backward()
    assert_close(dict(model.named_buffers()), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.encoder.trunk.parameters())
    assert all(parameter.grad is not None for parameter in model.encoder.bridge.parameters())


def test_channels_last_maps_keep_their_tokens_in_order(make_model: Any) -> None:
    kwargs = {"embed_dim": 16, "depths": [1], "num_heads": [1]}
    trunk = make_model(encoder_name="swin_tiny_patch4_window7_224", encoder_kwargs=kwargs, image_size=56).encoder.trunk
    pixels = torch.randn(1, 3, 56, 56)
    assert_close(trunk(pixels)[0], trunk.model.forward_features(pixels).flatten(1, 2))
    pooled = F.avg_pool2d(trunk.model.forward_features(pixels).permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2)
    trunk.pooling = 2
    assert_close(trunk(pixels)[0], pooled)
