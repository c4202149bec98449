"""The image encoders of the families, each as a trunk of timm's."""

from collections.abc import Iterator
from typing import Any

import timm
from transformers import PreTrainedConfig

from captioner.convert.map import Part, Weights, require_settings
from captioner.errors import CaptionerError

TRUNK = "encoder.trunk.model"
SIZES = {(192, 12, 3): "tiny", (384, 12, 6): "small", (768, 12, 12): "base", (1024, 24, 16): "large"}
"""timm's names of width, depth and heads (Touvron et al. 2021, https://arxiv.org/abs/2012.12877, table 1; Dosovitskiy
et al. 2021, https://arxiv.org/abs/2010.11929, table 1)."""

VIT_LAYER = {
    "norm1": ("layernorm_before",),
    "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "attn.proj": ("attention.output.dense",),
    "norm2": ("layernorm_after",),
    "mlp.fc1": ("intermediate.dense",),
    "mlp.fc2": ("output.dense",),
}
SWIN_LAYER = VIT_LAYER | {
    "attn.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
}
CLIP_LAYER = {
    "norm1": ("layer_norm1",),
    "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.proj": ("self_attn.out_proj",),
    "norm2": ("layer_norm2",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
BLIP_LAYER = CLIP_LAYER | {"attn.qkv": ("self_attn.qkv",), "attn.proj": ("self_attn.projection",)}


def vision_transformer(config: PreTrainedConfig, prefix: str) -> Part:
    """ViT or DeiT, as a `VisionEncoderDecoderModel` has them."""
    require_settings("encoder", config, hidden_act="gelu", num_channels=3)
    family = "deit_{}_distilled_patch{}_224" if config.model_type == "deit" else "vit_{}_patch{}_224"
    part = Part(_settings(config, *_named(config, family)), unused=(rf"{prefix}\.pooler\..*",))
    if not config.qkv_bias:
        part.settings["encoder_kwargs"]["qkv_bias"] = False
    embeddings = f"{prefix}.embeddings"
    part.origins[f"{TRUNK}.cls_token"] = (f"{embeddings}.cls_token",)
    part.origins[f"{TRUNK}.pos_embed"] = (f"{embeddings}.position_embeddings",)
    if config.model_type == "deit":
        part.origins[f"{TRUNK}.dist_token"] = (f"{embeddings}.distillation_token",)
    part.add(f"{TRUNK}.patch_embed.proj", f"{embeddings}.patch_embeddings.projection")
    part.add(f"{TRUNK}.norm", f"{prefix}.layernorm")
    for block, layer in _layers(config, f"{prefix}.encoder.layer"):
        for ours, theirs in VIT_LAYER.items():
            kinds = ("weight", "bias") if config.qkv_bias or ours != "attn.qkv" else ("weight",)
            part.add(f"{block}.{ours}", *(f"{layer}.{name}" for name in theirs), kinds=kinds)
    return part


def beit(config: PreTrainedConfig, prefix: str) -> Part:
    """BEiT: relative positions, of each layer or shared, and scaled residuals; keys have no bias."""
    require_settings("encoder", config, hidden_act="gelu", num_channels=3)
    name, shape = _shape(config, "beit_base_patch16_224")
    shape |= {
        "use_abs_pos_emb": config.use_absolute_position_embeddings,
        "use_rel_pos_bias": config.use_relative_position_bias,
        "use_shared_rel_pos_bias": config.use_shared_relative_position_bias,
        "init_values": config.layer_scale_init_value,
        "global_pool": "avg" if config.use_mean_pooling else "token",
    }
    unused = (rf"{prefix}\.pooler\..*", rf"{prefix}\..*relative_position_index", rf"{prefix}\.embeddings\.mask_token")
    part = Part(_settings(config, name, shape), unused=unused)
    embeddings, table = f"{prefix}.embeddings", "relative_position_bias_table"
    part.origins[f"{TRUNK}.cls_token"] = (f"{embeddings}.cls_token",)
    if config.use_absolute_position_embeddings:
        part.origins[f"{TRUNK}.pos_embed"] = (f"{embeddings}.position_embeddings",)
    if config.use_shared_relative_position_bias:
        shared = f"{prefix}.encoder.relative_position_bias.{table}"
        part.origins[f"{TRUNK}.rel_pos_bias.{table}"] = (shared,)
    part.add(f"{TRUNK}.patch_embed.proj", f"{embeddings}.patch_embeddings.projection")
    if not config.use_mean_pooling:
        part.add(f"{TRUNK}.norm", f"{prefix}.layernorm")
    for block, layer in _layers(config, f"{prefix}.encoder.layer"):
        for ours, theirs in VIT_LAYER.items():
            kinds = ("weight",) if ours == "attn.qkv" else ("weight", "bias")
            part.add(f"{block}.{ours}", *(f"{layer}.{name}" for name in theirs), kinds=kinds)
        part.origins[f"{block}.attn.q_bias"] = (f"{layer}.attention.attention.query.bias",)
        part.origins[f"{block}.attn.v_bias"] = (f"{layer}.attention.attention.value.bias",)
        if config.use_relative_position_bias:
            own = f"{layer}.attention.attention.relative_position_bias.{table}"
            part.origins[f"{block}.attn.{table}"] = (own,)
        if config.layer_scale_init_value:
            for number in (1, 2):
                part.origins[f"{block}.gamma_{number}"] = (f"{layer}.lambda_{number}",)
    return part


def swin(config: PreTrainedConfig, prefix: str) -> Part:
    """Swin, whose final stage gives the image tokens."""
    require_settings(
        "encoder", config, hidden_act="gelu", num_channels=3, use_absolute_embeddings=False, layer_norm_eps=1e-5
    )
    _require_square(config)
    shape = {
        "patch_size": config.patch_size,
        "embed_dim": config.embed_dim,
        "depths": list(config.depths),
        "num_heads": list(config.num_heads),
        "window_size": config.window_size,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
    }
    settings = {
        "encoder_name": "swin_base_patch4_window7_224",
        "encoder_kwargs": shape,
        "image_size": config.image_size,
    }
    unused = (rf"{prefix}\..*relative_position_index", rf"{prefix}\.embeddings\.mask_token")
    part = Part(settings, unused=unused)
    part.add(f"{TRUNK}.patch_embed.proj", f"{prefix}.embeddings.patch_embeddings.projection")
    part.add(f"{TRUNK}.patch_embed.norm", f"{prefix}.embeddings.norm")
    part.add(f"{TRUNK}.norm", f"{prefix}.layernorm")
    table = "relative_position_bias_table"
    for stage, depth in enumerate(config.depths):
        ours, theirs = f"{TRUNK}.layers.{stage}", f"{prefix}.encoder.layers.{stage}"
        if stage > 0:  # timm has it at the start of a stage
            before = f"{prefix}.encoder.layers.{stage - 1}.downsample"
            part.add(f"{ours}.downsample.norm", f"{before}.norm")
            part.add(f"{ours}.downsample.reduction", f"{before}.reduction", kinds=("weight",))
        for index in range(depth):
            block, layer = f"{ours}.blocks.{index}", f"{theirs}.blocks.{index}"
            part.origins[f"{block}.attn.{table}"] = (f"{layer}.attention.self.{table}",)
            for name, names in SWIN_LAYER.items():
                kinds = ("weight", "bias") if config.qkv_bias or name != "attn.qkv" else ("weight",)
                part.add(f"{block}.{name}", *(f"{layer}.{key}" for key in names), kinds=kinds)
    return part


def blip(config: PreTrainedConfig, prefix: str) -> Part:
    """BLIP's ViT."""
    require_settings("encoder", config, hidden_act="gelu")
    part = Part(_settings(config, *_named(config, "vit_{}_patch{}_224")))
    embeddings = f"{prefix}.embeddings"
    part.unused = (rf"{embeddings}\.position_ids",)
    part.origins[f"{TRUNK}.cls_token"] = (f"{embeddings}.class_embedding",)
    part.origins[f"{TRUNK}.pos_embed"] = (f"{embeddings}.position_embedding",)
    part.add(f"{TRUNK}.patch_embed.proj", f"{embeddings}.patch_embedding")
    _add_clip_layers(part, config, prefix, BLIP_LAYER)
    return part


def clip(config: PreTrainedConfig, prefix: str) -> Part:
    """CLIP's ViT, as GIT has it: a norm before the layers, no bias of the patches."""
    require_settings("encoder", config, num_channels=3)
    name, shape = _named(config, "vit_{}_patch{}_clip_quickgelu_224")
    if config.hidden_act != "quick_gelu" or not name.endswith("_clip_quickgelu_224"):
        name = "vit_base_patch16_clip_224"
        shape = _shape(config, name)[1] | {"act_layer": config.hidden_act}
    part = Part(_settings(config, name, shape))
    embeddings = f"{prefix}.embeddings"
    part.unused = (rf"{embeddings}\.position_ids",)
    part.origins[f"{TRUNK}.cls_token"] = (f"{embeddings}.class_embedding",)
    part.origins[f"{TRUNK}.pos_embed"] = (f"{embeddings}.position_embedding.weight",)
    part.add(f"{TRUNK}.patch_embed.proj", f"{embeddings}.patch_embedding", kinds=("weight",))
    part.add(f"{TRUNK}.norm_pre", f"{prefix}.pre_layrnorm")
    _add_clip_layers(part, config, prefix, CLIP_LAYER)

    def prepare(weights: Weights) -> None:
        for name in (*part.origins[f"{TRUNK}.cls_token"], *part.origins[f"{TRUNK}.pos_embed"]):
            if name in weights:
                weights[name] = weights[name].reshape(1, -1, config.hidden_size)

    part.prepare = prepare
    return part


def _add_clip_layers(part: Part, config: PreTrainedConfig, prefix: str, names: dict[str, tuple[str, ...]]) -> None:
    part.add(f"{TRUNK}.norm", f"{prefix}.post_layernorm")
    for block, layer in _layers(config, f"{prefix}.encoder.layers"):
        for ours, theirs in names.items():
            part.add(f"{block}.{ours}", *(f"{layer}.{name}" for name in theirs))


def _layers(config: PreTrainedConfig, theirs: str) -> Iterator[tuple[str, str]]:
    for index in range(config.num_hidden_layers):
        yield f"{TRUNK}.blocks.{index}", f"{theirs}.{index}"


def _settings(config: PreTrainedConfig, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "encoder_name": name,
        "encoder_kwargs": arguments,
        "image_size": config.image_size,
        "encoder_layer_norm_eps": config.layer_norm_eps,
    }


def _named(config: PreTrainedConfig, family: str) -> tuple[str, dict[str, Any]]:
    """Return timm's name of an encoder and, if no name fits exactly, the arguments that change the trunk to fit."""
    sizes = config.hidden_size, config.num_hidden_layers, config.num_attention_heads
    name = family.format(SIZES.get(sizes), config.patch_size)
    if timm.is_model(name) and config.intermediate_size == 4 * config.hidden_size:
        _require_square(config)
        return name, {}
    return _shape(config, family.format("base", 16))


def _shape(config: PreTrainedConfig, name: str) -> tuple[str, dict[str, Any]]:
    _require_square(config)
    return name, {
        "patch_size": config.patch_size,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
    }


def _require_square(config: PreTrainedConfig) -> None:
    if not isinstance(config.image_size, int) or not isinstance(config.patch_size, int):
        raise CaptionerError("its images or patches are not square")
