"""Builds a model and an image processor from a configuration, and loads pretrained trunk weights into it."""

import difflib
import textwrap
from pathlib import Path

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .configuration_captioner import CaptionerConfig
from .encoder import create_timm_model, create_trunk
from .modeling_captioner import CaptionerForConditionalGeneration
from .processing_captioner import CaptionerImageProcessor


def build_model(config: CaptionerConfig) -> CaptionerForConditionalGeneration:
    """Build a captioner with random weights.

    Raises:
        ValueError: timm has no such model.
    """
    if ":" not in config.encoder_name and not timm.is_model(
        config.encoder_name
    ):  # timm looks up hf-hub:owner/name itself
        near = difflib.get_close_matches(config.encoder_name, timm.list_models(), 1)
        raise ValueError(f"timm has no {config.encoder_name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return CaptionerForConditionalGeneration(config)


def load_trunk(model: CaptionerForConditionalGeneration, weights: str) -> list[str]:
    """Load pretrained weights into the trunk; position embeddings are resampled to its image size.

    Args:
        weights: a timm name, possibly with a tag, or a safetensors file with timm's names.

    Returns:
        The names of tensors that were not used: those of a classifier.

    Raises:
        ValueError: the file is missing, is not safetensors, or does not fit the trunk; timm has no such weights.
    """
    trunk = model.encoder.trunk.model
    if names_timm_model(weights):
        trunk.load_state_dict(create_trunk(model.config, weights, pretrained=True).state_dict())
        return []
    loaded, left = _trunk_from_file(model.config, Path(weights), _classifier_of(trunk))
    trunk.load_state_dict(loaded.state_dict())
    return left


def change_image_size(model: CaptionerForConditionalGeneration, image_size: int) -> None:
    """Change a captioner's image size; the trunk's position embeddings are resampled.

    Raises:
        ValueError, RuntimeError: the trunk does not support that size, or its weights do not fit.
    """
    trunk = model.encoder.trunk
    model.config.image_size = image_size
    drawn = create_timm_model(
        model.config
    ).state_dict()  # includes the pooling that we removed, which timm's loader expects
    trunk.model = _trunk_with(model.config, drawn | trunk.model.state_dict())


def names_timm_model(name: str) -> bool:
    """Does timm have this model? The name may have a tag for its weights (`resnet50.a1_in1k`)."""
    return bool(timm.is_model(name.partition(".")[0]))


def _classifier_of(trunk: nn.Module) -> tuple[str, ...]:
    names = trunk.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr, operator]
    return (names,) if isinstance(names, str) else tuple(names)


def _trunk_from_file(config: CaptionerConfig, path: Path, heads: tuple[str, ...]) -> tuple[nn.Module, list[str]]:
    if path.suffix != ".safetensors" or not path.is_file():
        raise ValueError(f"encoder weights {path}: not an existing .safetensors file")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"encoder weights {path} cannot be read: {error}") from error
    left = sorted(name for name in weights if name.rpartition(".")[0] in heads)
    body = {name: tensor for name, tensor in weights.items() if name not in left}
    try:
        return _trunk_with(config, body), left
    except (RuntimeError, KeyError) as error:
        reason = textwrap.shorten(str(error), 300)
        raise ValueError(f"encoder weights {path} do not fit {config.encoder_name}: {reason}") from error


def _trunk_with(config: CaptionerConfig, weights: dict[str, Tensor]) -> nn.Module:
    """Load weights with timm's loader, which resamples position embeddings."""
    # As the trunk has no classes either, timm loads the weights strictly. Otherwise it would accept those of another
    # model as one with a new head, and leave the trunk random.
    overlay = {"state_dict": weights, "num_classes": 0, "label_offset": 0}
    return create_trunk(config, pretrained=True, pretrained_cfg_overlay=overlay)


def build_image_processor(
    model: CaptionerForConditionalGeneration, resize_mode: str = "crop", crop_pct: float = 1.0
) -> CaptionerImageProcessor:
    """Build an image processor with the trunk's pretraining mean, std and interpolation, and the model's image size."""
    data_config = timm.data.resolve_model_data_config(model.encoder.trunk.model)
    return CaptionerImageProcessor(
        size=model.config.image_size,
        resample=data_config["interpolation"],
        image_mean=data_config["mean"],
        image_std=data_config["std"],
        resize_mode=resize_mode,
        crop_pct=crop_pct,
    )
