"""Public captioning checkpoints of another make become captioners: `captioner convert`.

What is read are transformers' `VisionEncoderDecoderModel`s of a ViT or DeiT and a GPT-2, in the layout of their
published files, by which the tensors are named here.
"""

import math
import re
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
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

from captioner.errors import CaptionerError
from captioner.files import new_folder
from captioner.hub.card import read_card, usage, write_card
from captioner.hub.find import find_model
from captioner.hub.load import quiet_transformers, save_model
from captioner.model.build import build_model
from captioner.model.configuration_captioner import CaptionerConfig
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration
from captioner.model.preprocessing import RESAMPLING, Preprocessing
from captioner.model.processing_captioner import CaptionerImageProcessor, CaptionerProcessor

LOGITS_TOLERANCE = 1e-4

MALFORMED = (ValueError, TypeError, KeyError, RuntimeError, SafetensorError, StrictDataclassError)
"""What files that hold something else than they should raise."""

BUILT_IN: dict[str, dict[str, Any]] = {
    "encoder": {"hidden_act": "gelu", "qkv_bias": True, "num_channels": 3},
    "decoder": {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
}
"""What a captioner computes whatever its configuration says."""

TRUNKS = {(192, 12, 3): "tiny", (384, 12, 6): "small", (768, 12, 12): "base", (1024, 24, 16): "large"}
"""timm's names of width, depth and heads (Touvron et al. 2021, https://arxiv.org/abs/2012.12877, table 1; Dosovitskiy
et al. 2021, https://arxiv.org/abs/2010.11929, table 1)."""

GENERATION = (
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "num_beams",
    "early_stopping",
    "length_penalty",
    "no_repeat_ngram_size",
)
"""Settings of transformers' `generate` that are kept for it."""

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
UNUSED = re.compile(r"encoder\.pooler\..*|decoder\.transformer\.h\.\d+\.(attn|crossattention)\.(masked_)?bias")
"""A head that captioning goes without, and the causal masks that old releases saved."""


def convert_model(source: str | Path, output: Path) -> float:
    """Write a checkpoint, a folder or one of the Hugging Face Hub, as the captioner `output`, whole or not at all.

    Returns:
        The largest difference between the two models' logits, in float64 on random images and tokens.

    Raises:
        CaptionerError: `output` is there already; there is no such checkpoint, it is of another kind or incomplete; or
            logits differ by more than 1e-4.
    """
    with new_folder(output) as partial:
        folder, name = find_model(source)
        card = read_card(folder, name)
        try:
            config = _read_config(folder)
            weights = _renamed(_read_weights(folder), config)
            with quiet_transformers():
                original = VisionEncoderDecoderModel.from_pretrained(
                    folder, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True
                ).eval()
            new_config = _new_config(config, original.generation_config)
            processor = CaptionerProcessor(
                _image_processor(folder, new_config), _tokenizer(folder, config.decoder, new_config)
            )
            model = build_model(new_config).eval()
            model.load_state_dict(weights)
        except CaptionerError as error:
            raise CaptionerError(f"{name}: {error}") from error
        except (OSError, *MALFORMED) as error:
            raise CaptionerError(f"{name}: cannot be converted: {textwrap.shorten(str(error), 300)}") from error
        difference = _difference(original, model)
        if not difference <= LOGITS_TOLERANCE:  # which NaN is not either
            raise CaptionerError(f"{name}: not converted, since its logits and ours would differ by {difference:.1e}")
        settings = {key: getattr(original.generation_config, key) for key in GENERATION}
        model.generation_config.update(**{key: value for key, value in settings.items() if value is not None})
        save_model(model, processor, partial)
        write_card(partial, _card(name, output.name, model, difference), card, name)
    return difference


def _read_config(folder: Path) -> VisionEncoderDecoderConfig:
    """The checkpoint's configuration, if a captioner can compute what it says."""
    _require(folder, "config.json")
    kind = PreTrainedConfig.get_config_dict(folder, local_files_only=True)[0].get("model_type")
    if kind != VisionEncoderDecoderConfig.model_type:
        raise CaptionerError(f"a {kind!r} model; converted are {VisionEncoderDecoderConfig.model_type}")
    config = VisionEncoderDecoderConfig.from_pretrained(folder, local_files_only=True)
    for part, kinds in {"encoder": ("vit", "deit"), "decoder": ("gpt2",)}.items():
        settings = getattr(config, part)
        if settings.model_type not in kinds:
            raise CaptionerError(f"its {part} is {settings.model_type!r}; converted are {' and '.join(kinds)}")
        for field, value in BUILT_IN[part].items():
            if getattr(settings, field) != value:
                raise CaptionerError(f"its {part} has {field} {getattr(settings, field)!r}; ours has {value!r} alone")
    if config.decoder.activation_function not in ACT2FN:
        raise CaptionerError(f"its decoder's activation_function {config.decoder.activation_function!r} is unknown")
    if not isinstance(config.encoder.image_size, int) or not isinstance(config.encoder.patch_size, int):
        raise CaptionerError("its images or patches are not square")
    return config


def _read_weights(folder: Path) -> dict[str, Tensor]:
    whole = folder / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(folder.glob("model-*-of-*.safetensors"))
    if not files:
        pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
        found = f"there is {pickles[0]}, but no model.safetensors" if pickles else "there is no model.safetensors"
        raise CaptionerError(
            f"{found}; a pickle can run code and is not read: if you trust it, load it with transformers and "
            "save_pretrained() it anew"
        )
    return {key: tensor for file in files for key, tensor in load_file(file).items()}


def _new_config(config: VisionEncoderDecoderConfig, generation: GenerationConfig) -> CaptionerConfig:
    encoder, decoder = config.encoder, config.decoder
    start, end, pad = generation.decoder_start_token_id, generation.eos_token_id, generation.pad_token_id
    start = generation.bos_token_id if start is None else start
    end = end[0] if isinstance(end, list) and len(end) == 1 else end
    pad = end if pad is None else pad
    for what, token in {"decoder_start_token_id": start, "eos_token_id": end, "pad_token_id": pad}.items():
        if not isinstance(token, int) or not 0 <= token < decoder.vocab_size:
            raise CaptionerError(f"its {what} is {token!r}, not one of its decoder's {decoder.vocab_size} tokens")
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
    """timm's name of an encoder and, where none fits, the arguments that make it fit."""
    family = "deit_{}_distilled_patch{}_224" if encoder.model_type == "deit" else "vit_{}_patch{}_224"
    width, depth, heads = encoder.hidden_size, encoder.num_hidden_layers, encoder.num_attention_heads
    name = family.format(TRUNKS.get((width, depth, heads)), encoder.patch_size)
    if timm.is_model(name) and encoder.intermediate_size == 4 * width:
        return name, {}
    ratio = encoder.intermediate_size / width
    shape = {"embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": ratio}
    return family.format("base", 16), {"patch_size": encoder.patch_size, **shape}


def _renamed(weights: dict[str, Tensor], config: VisionEncoderDecoderConfig) -> dict[str, Tensor]:
    """A checkpoint's tensors under our names.

    Raises:
        CaptionerError: tensors are missing, or there are more than the model has.
    """
    if config.decoder.tie_word_embeddings and HEAD in weights:
        weights.setdefault(EMBEDDING, weights[HEAD])  # one tensor, saved under either name
    origins = dict(_origins(config))
    known = {key for keys in origins.values() for key in keys}
    missing = known - weights.keys()
    unknown = {key for key in weights.keys() - known - {HEAD} if not UNUSED.fullmatch(key)}
    for what, keys in {"missing": missing, "unknown": unknown}.items():
        if keys:
            raise CaptionerError(f"weights {what}: {', '.join(sorted(keys)[:10])}{', ...' if len(keys) > 10 else ''}")
    return {name: torch.cat([_oriented(key, weights[key]) for key in keys]) for name, keys in origins.items()}


def _origins(config: VisionEncoderDecoderConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every tensor of ours, and the checkpoint's that it is made of, one after another."""
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
    """GPT-2's blocks keep their matrices as [in, out]."""
    return tensor.T if key.startswith("decoder.transformer.h.") and tensor.ndim == 2 else tensor


def _image_processor(folder: Path, config: CaptionerConfig) -> CaptionerImageProcessor:
    """The checkpoint's preprocessing: the whole picture to a square, of which a DeiT sees the centre."""
    _require(folder, "preprocessor_config.json", "processor_config.json")
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
    """The checkpoint's tokenizer, whose encodings now end with the end of sequence, as captions to learn from must, and
    hold no other special token: text that spells one is text."""
    _require(folder, "tokenizer.json", "vocab.json")
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


def _require(folder: Path, *files: str) -> None:
    """One of these; where there is no tokenizer transformers makes one up."""
    if not any((folder / file).is_file() for file in files):
        raise CaptionerError(f"there is no {' or '.join(files)} in it")


def _difference(original: VisionEncoderDecoderModel, model: CaptionerForConditionalGeneration) -> float:
    """The largest between logits, in float64: in float32 those of a trained GPT-2, about 100, round by nearly 1e-4."""
    size, longest = model.config.image_size, min(16, model.config.max_position_embeddings)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64)
    captions = torch.randint(model.config.vocab_size, (2, longest), generator=generator)
    with torch.inference_mode():
        expected = original.double()(pixel_values=images, decoder_input_ids=captions).logits
        found = model.double()(pixel_values=images, decoder_input_ids=captions).logits
    model.float()
    return float((found - expected).abs().max())


def _card(name: str, folder: str, model: CaptionerForConditionalGeneration, difference: float) -> str:
    size, longest = model.config.image_size, model.config.max_position_embeddings
    return f"""# {name}, converted

A `VisionEncoderDecoderModel` of transformers with {model.num_parameters() / 1e6:.1f} million parameters, made a
captioner by `captioner convert`: on random images and tokens its logits are those of the original within
{difference:.1e}. It sees {size} x {size} pixels and writes at most {longest} tokens. `generation_config.json` holds the
settings it came with.

{usage(folder)}"""
