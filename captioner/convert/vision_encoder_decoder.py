"""The family of transformers' `VisionEncoderDecoderModel`: a ViT or DeiT encoder with a GPT-2 decoder.

Tensors go by the names that they have in the published files.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
)
from transformers.activations import ACT2FN

from captioner.convert.map import map_weights
from captioner.convert.read import Checkpoint, read_weights, require
from captioner.errors import CaptionerError
from captioner.hub.load import quiet_transformers
from captioner.model.configuration_captioner import CaptionerConfig
from captioner.model.preprocessing import RESAMPLING, Preprocessing
from captioner.model.processing_captioner import CaptionerImageProcessor, CaptionerProcessor

MODEL_TYPE = VisionEncoderDecoderConfig.model_type

BUILT_IN: dict[str, dict[str, Any]] = {
    "encoder": {"hidden_act": "gelu", "qkv_bias": True, "num_channels": 3},
    "decoder": {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
}
"""Settings that a captioner cannot change."""

TRUNKS = {(192, 12, 3): "tiny", (384, 12, 6): "small", (768, 12, 12): "base", (1024, 24, 16): "large"}
"""timm's names of width, depth and heads (Touvron et al. 2021, https://arxiv.org/abs/2012.12877, table 1; Dosovitskiy
et al. 2021, https://arxiv.org/abs/2010.11929, table 1)."""

TRUNK_LAYER = {
    "norm1": ("layernorm_before",),
    "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "attn.proj": ("attention.output.dense",),
    "norm2": ("layernorm_after",),
    "mlp.fc1": ("intermediate.dense",),
    "mlp.fc2": ("output.dense",),
}
DECODER_LAYER = {
    "self_attn_norm": "ln_1",
    "self_attn.qkv_proj": "attn.c_attn",
    "self_attn.out_proj": "attn.c_proj",
    "cross_attn_norm": "ln_cross_attn",
    "cross_attn.q_proj": "crossattention.q_attn",
    "cross_attn.kv_proj": "crossattention.c_attn",
    "cross_attn.out_proj": "crossattention.c_proj",
    "mlp_norm": "ln_2",
    "mlp.0": "mlp.c_fc",
    "mlp.2": "mlp.c_proj",
}
EMBEDDING, HEAD = "decoder.transformer.wte.weight", "decoder.lm_head.weight"
UNUSED = re.compile(
    r"encoder\.pooler\..*|decoder\.transformer\.h\.\d+\.(attn|crossattention)\.(masked_)?bias|" + re.escape(HEAD)
)
"""The encoder's pooler, the causal masks that old releases saved, and a head that is tied to the embedding."""


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint of this family.

    Raises:
        CaptionerError: it is incomplete, or a captioner cannot compute what its configuration says.
    """
    config = _read_config(folder)
    weights = read_weights(folder)
    if config.decoder.tie_word_embeddings and HEAD in weights:
        weights.setdefault(EMBEDDING, weights[HEAD])  # one tensor, saved under either name
    mapped = map_weights(weights, dict(_origins(config)), UNUSED, _oriented)
    with quiet_transformers():
        model = VisionEncoderDecoderModel.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True
        ).eval()
    new_config = _new_config(config, model.generation_config)
    processor = CaptionerProcessor(_image_processor(folder, new_config), _tokenizer(folder, config.decoder, new_config))
    return Checkpoint(model, new_config, mapped, processor)


def _read_config(folder: Path) -> VisionEncoderDecoderConfig:
    """Read the checkpoint's configuration; raise CaptionerError if a captioner cannot compute what it says."""
    config = VisionEncoderDecoderConfig.from_pretrained(folder, local_files_only=True)
    for part, kinds in {"encoder": ("vit", "deit"), "decoder": ("gpt2",)}.items():
        settings = getattr(config, part)
        if settings.model_type not in kinds:
            raise CaptionerError(f"its {part} is {settings.model_type!r}; convert reads {' and '.join(kinds)}")
        for field, value in BUILT_IN[part].items():
            if getattr(settings, field) != value:
                raise CaptionerError(f"its {part} has {field} {getattr(settings, field)!r}; a captioner has {value!r}")
    if config.decoder.activation_function not in ACT2FN:
        raise CaptionerError(f"its decoder's activation_function {config.decoder.activation_function!r} is unknown")
    if not isinstance(config.encoder.image_size, int) or not isinstance(config.encoder.patch_size, int):
        raise CaptionerError("its images or patches are not square")
    return config


def _new_config(config: VisionEncoderDecoderConfig, generation: GenerationConfig) -> CaptionerConfig:
    encoder, decoder = config.encoder, config.decoder
    start, end, pad = generation.decoder_start_token_id, generation.eos_token_id, generation.pad_token_id
    start = generation.bos_token_id if start is None else start
    end = end[0] if isinstance(end, list) and len(end) == 1 else end
    pad = end if pad is None else pad
    for field, token in {"decoder_start_token_id": start, "eos_token_id": end, "pad_token_id": pad}.items():
        if not isinstance(token, int) or not 0 <= token < decoder.vocab_size:
            raise CaptionerError(f"its {field} is {token!r}, not one of its decoder's {decoder.vocab_size} tokens")
    encoder_name, encoder_kwargs = _trunk(encoder)
    act = decoder.activation_function
    return CaptionerConfig(
        encoder_name=encoder_name,
        encoder_kwargs=encoder_kwargs,
        image_size=encoder.image_size,
        encoder_layer_norm_eps=encoder.layer_norm_eps,
        encoder_norm=False,
        vocab_size=decoder.vocab_size,
        hidden_size=decoder.n_embd,
        num_hidden_layers=decoder.n_layer,
        num_attention_heads=decoder.n_head,
        intermediate_size=decoder.n_inner,
        hidden_act="gelu_pytorch_tanh" if act == "gelu_new" else act,  # the same formula in one kernel
        dropout=float(decoder.resid_pdrop),
        layer_norm_eps=decoder.layer_norm_epsilon,
        initializer_range=decoder.initializer_range,
        max_position_embeddings=decoder.n_positions,
        pad_token_id=pad,
        bos_token_id=start,
        eos_token_id=end,
        decoder_start_token_id=start,
        tie_word_embeddings=decoder.tie_word_embeddings,
    )


def _trunk(encoder: PreTrainedConfig) -> tuple[str, dict[str, Any]]:
    """Return timm's name of an encoder and, if no name fits exactly, the arguments that change the trunk to fit."""
    family = "deit_{}_distilled_patch{}_224" if encoder.model_type == "deit" else "vit_{}_patch{}_224"
    width, depth, heads = encoder.hidden_size, encoder.num_hidden_layers, encoder.num_attention_heads
    name = family.format(TRUNKS.get((width, depth, heads)), encoder.patch_size)
    if timm.is_model(name) and encoder.intermediate_size == 4 * width:
        return name, {}
    ratio = encoder.intermediate_size / width
    shape = {"embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": ratio}
    return family.format("base", 16), {"patch_size": encoder.patch_size, **shape}


def _origins(config: VisionEncoderDecoderConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each tensor of the captioner and those of the checkpoint to concatenate for it."""
    trunk, source = "encoder.trunk.model", "encoder.embeddings"
    yield f"{trunk}.cls_token", (f"{source}.cls_token",)
    if config.encoder.model_type == "deit":
        yield f"{trunk}.dist_token", (f"{source}.distillation_token",)
    yield f"{trunk}.pos_embed", (f"{source}.position_embeddings",)
    yield "decoder.embed_tokens.weight", (EMBEDDING,)
    yield "decoder.embed_positions.weight", ("decoder.transformer.wpe.weight",)
    yield "lm_head.weight", (EMBEDDING if config.decoder.tie_word_embeddings else HEAD,)

    modules: dict[str, tuple[str, ...]] = {
        f"{trunk}.patch_embed.proj": (f"{source}.patch_embeddings.projection",),
        f"{trunk}.norm": ("encoder.layernorm",),
        "decoder.norm": ("decoder.transformer.ln_f",),
    }
    if config.encoder.hidden_size != config.decoder.n_embd:
        modules["encoder.bridge.projection"] = ("enc_to_dec_proj",)
    for index in range(config.encoder.num_hidden_layers):
        for name, sources in TRUNK_LAYER.items():
            modules[f"{trunk}.blocks.{index}.{name}"] = tuple(f"encoder.encoder.layer.{index}.{key}" for key in sources)
    for index in range(config.decoder.n_layer):
        for name, key in DECODER_LAYER.items():
            modules[f"decoder.layers.{index}.{name}"] = (f"decoder.transformer.h.{index}.{key}",)
    for name, sources in modules.items():
        for kind in ("weight", "bias"):
            yield f"{name}.{kind}", tuple(f"{key}.{kind}" for key in sources)


def _oriented(key: str, tensor: Tensor) -> Tensor:
    """Transpose the matrices of GPT-2's blocks, which are [in, out]."""
    return tensor.T if key.startswith("decoder.transformer.h.") and tensor.ndim == 2 else tensor


def _image_processor(folder: Path, config: CaptionerConfig) -> CaptionerImageProcessor:
    """The checkpoint's preprocessing: the whole picture squashed to a square, from which DeiT takes the centre."""
    require(folder, "preprocessor_config.json", "processor_config.json")
    settings = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False).to_dict()
    square = {"height": config.image_size, "width": config.image_size}
    whole = settings["size"]
    seen = settings["crop_size"] if settings.get("do_center_crop") else whole
    steps = all(settings.get(step) for step in ("do_resize", "do_rescale", "do_normalize"))
    if not steps or not math.isclose(settings["rescale_factor"], 1 / 255, rel_tol=1e-6):
        raise CaptionerError("its image processor does not resize, rescale by 1/255 and normalize")
    if seen != square or whole != {"height": whole.get("height"), "width": whole.get("height")}:
        raise CaptionerError(f"its image processor makes {seen} of {whole}, where the encoder takes {square}")
    preprocessing = Preprocessing(
        image_size=config.image_size,
        resize_mode="squash",
        crop_pct=config.image_size / whole["height"],
        interpolation={int(value): name for name, value in RESAMPLING.items()}[settings["resample"]],
        mean=settings["image_mean"],
        std=settings["image_std"],
    )
    return CaptionerImageProcessor(**asdict(preprocessing))


def _tokenizer(folder: Path, decoder: PreTrainedConfig, config: CaptionerConfig) -> PreTrainedTokenizerFast:
    """The checkpoint's tokenizer, changed to append the end of sequence, as training needs, and to encode text that
    looks like a special token as text."""
    require(folder, "tokenizer.json", "vocab.json")
    original = AutoTokenizer.from_pretrained(folder, config=decoder, local_files_only=True, trust_remote_code=False)
    if not isinstance(original, PreTrainedTokenizerFast):
        raise CaptionerError(f"its tokenizer, {type(original).__name__}, is not one of the tokenizers library")
    if len(original) > config.vocab_size:
        raise CaptionerError(f"its tokenizer has {len(original)} tokens, its decoder {config.vocab_size}")
    ids = (config.pad_token_id, config.bos_token_id, config.eos_token_id)
    pad, start, end = original.convert_ids_to_tokens(ids)
    if None in (pad, start, end):
        raise CaptionerError(f"its tokenizer does not have all of the tokens {ids}: padding, start and end")
    backend = original.backend_tokenizer
    backend.add_special_tokens([pad, start, end])  # some files have them as ordinary words
    backend.post_processor = TemplateProcessing(single=["$A", end], special_tokens=[(end, config.eos_token_id)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, bos_token=start, eos_token=end, split_special_tokens=True
    )
