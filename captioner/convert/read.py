"""Reads the files of a checkpoint: what a family's `read` returns, and what families share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from captioner.convert.map import Part, Weights, map_weights
from captioner.convert.pickles import load_pickle
from captioner.convert.processors import image_processor, tokenizer
from captioner.errors import CaptionerError
from captioner.hub.load import quiet_transformers
from captioner.model.configuration_captioner import CaptionerConfig
from captioner.model.processing_captioner import CaptionerProcessor

MALFORMED = (ValueError, TypeError, KeyError, RuntimeError, SafetensorError, StrictDataclassError)
"""What transformers and safetensors raise for files with unexpected content."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, ready to become a captioner.

    Attributes:
        model: the original, in float32.
        config: the captioner's configuration.
        weights: the captioner's state dict.
        processor: the captioner's processor.
    """

    model: PreTrainedModel
    config: CaptionerConfig
    weights: Weights
    processor: CaptionerProcessor


class SpecialTokens(NamedTuple):
    start: int | None
    end: int | list[int] | None
    pad: int | None


def read_checkpoint(
    folder: Path,
    architecture: type[PreTrainedModel],
    config: PreTrainedConfig,
    text_config: Any,
    encoder: Part,
    decoder: Part,
    tokens_of: Callable[[Any, GenerationConfig], SpecialTokens],
) -> Checkpoint:
    """Read what a family has described.

    Args:
        architecture: the class that transformers has for it.
        config: its configuration; `text_config` is the decoder's.
        tokens_of: the tokens that captions start with, end with, and are padded with.

    Raises:
        CaptionerError: files are missing, or do not go with each other.
    """
    weights = read_weights(folder)
    mapped = map_weights(weights, encoder, decoder)
    generation = _generation_config(folder, config)
    with quiet_transformers():
        model = architecture.from_pretrained(
            None, config=config, state_dict=weights, generation_config=generation, dtype=torch.float32
        ).eval()
    tokens = _checked(tokens_of(config, generation), text_config.vocab_size)
    ours = CaptionerConfig(**encoder.settings, **decoder.settings, **tokens)
    processor = CaptionerProcessor(image_processor(folder, ours.image_size), tokenizer(folder, text_config, ours))
    return Checkpoint(model, ours, mapped, processor)


def special_tokens(config: Any, generation: GenerationConfig) -> SpecialTokens:
    """The special tokens that the generation settings name, as most families have them."""
    start = generation.decoder_start_token_id
    start = generation.bos_token_id if start is None else start
    end = generation.eos_token_id
    pad = end if generation.pad_token_id is None else generation.pad_token_id
    return SpecialTokens(start, end, pad)


def _checked(tokens: SpecialTokens, vocab_size: int) -> dict[str, int]:
    start, end, pad = (token[0] if isinstance(token, list) and len(token) == 1 else token for token in tokens)
    names = {"decoder_start_token_id": start, "bos_token_id": start, "eos_token_id": end, "pad_token_id": pad}
    found: dict[str, int] = {}
    for name, token in names.items():
        if not isinstance(token, int) or not 0 <= token < vocab_size:
            raise CaptionerError(f"its {name} is {token!r}, not one of its decoder's {vocab_size} tokens")
        found[name] = token
    return found


def _generation_config(folder: Path, config: PreTrainedConfig) -> GenerationConfig:
    """generation_config.json, or what older files have of it in config.json."""
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    return GenerationConfig.from_pretrained(
        folder, config_file_name="config.json", _from_model_config=True, local_files_only=True
    )


def read_weights(folder: Path) -> Weights:
    """Read all weights of a checkpoint, from one file or from shards, safetensors rather than pickles.

    Raises:
        CaptionerError: there are none, or a pickle holds more than tensors.
    """
    for whole, shards, load in (
        ("model.safetensors", "model-*-of-*.safetensors", load_file),
        ("pytorch_model.bin", "pytorch_model-*-of-*.bin", load_pickle),
    ):
        files = [folder / whole] if (folder / whole).is_file() else sorted(folder.glob(shards))
        if files:
            return {key: tensor for file in files for key, tensor in load(file).items()}
    others = [name for name in ("tf_model.h5", "flax_model.msgpack") if (folder / name).is_file()]
    found = f", only {others[0]}" if others else ""
    raise CaptionerError(f"there is no model.safetensors or pytorch_model.bin in it{found}")
