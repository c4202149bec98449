"""Reads and writes a model's folder."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.errors import CaptionerError

if TYPE_CHECKING:
    from torch import Tensor

    from captioner.model.modeling_captioner import CaptionerForConditionalGeneration
    from captioner.model.processing_captioner import CaptionerProcessor

HEADS = {"tags": "heads.tags.", "teacher_classes": "heads.teacher.", "contrastive_size": "heads.contrastive."}
"""Fields of the configuration that add a head, and the prefix of the head's weights."""


def load_model(
    folder: Path, name: str, **config_changes: Any
) -> "tuple[CaptionerForConditionalGeneration, CaptionerProcessor]":
    """Read a model's folder, in float32.

    Args:
        name: the model's name in error messages.
        config_changes: fields of the configuration to change, such as `dropout`. A head that they add and the folder
            lacks gets random weights.

    Raises:
        CaptionerError: the folder holds no captioner, a file cannot be read, or weights are missing or do not fit.
    """
    import torch
    from safetensors import SafetensorError

    from captioner.model.auto import CaptionerConfig, CaptionerForConditionalGeneration, CaptionerProcessor

    if not (folder / "config.json").is_file():
        raise CaptionerError(f"{name}: not a model: the folder has no config.json")
    try:
        config, _ = CaptionerConfig.get_config_dict(folder, local_files_only=True)
        if not isinstance(config, dict):
            raise ValueError("config.json does not hold a JSON object")
        if config.get("model_type") != CaptionerConfig.model_type:
            raise CaptionerError(f"{name}: a {config.get('model_type')!r} model, not a {CaptionerConfig.model_type!r}")
        with quiet_transformers():
            model, report = CaptionerForConditionalGeneration.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **config_changes,
            )
        processor = CaptionerProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # RuntimeError: timm, torch, sentencepiece
        raise CaptionerError(f"{name}: cannot be read as a model: {str(error).splitlines()[0]}") from error
    absent = sorted([*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])])
    new_heads = tuple(HEADS[field] for field in HEADS.keys() & config_changes.keys())
    if absent := [weight for weight in absent if not weight.startswith(new_heads)]:  # transformers leaves them random
        raise CaptionerError(f"{name}: weights missing or of another shape: {', '.join(absent[:5])}")
    return model, processor


def save_model(
    model: "CaptionerForConditionalGeneration",
    processor: "CaptionerProcessor",
    folder: Path,
    weights: "Mapping[str, Tensor] | None" = None,
) -> None:
    """Write a model's folder: configuration, weights (default: the model's own), processor and tokenizer.

    Raises:
        OSError: a file cannot be written, for example because the disk is full.
    """
    from safetensors import SafetensorError

    with quiet_transformers():
        try:
            model.save_pretrained(folder, state_dict=weights)
            processor.save_pretrained(folder)
        except SafetensorError as error:
            raise OSError(str(error)) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars off stderr, which belongs to the caller."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
