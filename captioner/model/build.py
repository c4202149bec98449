"""From a configuration to a model and a processor, pretrained trunk weights loaded after construction."""

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
    """A captioner with random weights.

    Raises:
        ValueError: timm has no such model.
    """
    if ":" not in config.encoder_name and not timm.is_model(config.encoder_name):  # hf-hub:owner/name is timm's to find
        near = difflib.get_close_matches(config.encoder_name, timm.list_models(), 1)
        raise ValueError(f"timm has no {config.encoder_name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return CaptionerForConditionalGeneration(config)


def load_trunk(model: CaptionerForConditionalGeneration, weights: str) -> list[str]:
    """Give the trunk pretrained weights, position embeddings resampled to its image size: timm's own, by a timm name
    with its tag, or those of a safetensors file in timm's naming.

    Returns:
        The names of the tensors that the trunk has no place for: a classifier's.

    Raises:
        ValueError: the file is absent, not safetensors, or not of this trunk; timm has no such weights.
    """
    trunk = model.encoder.trunk.model
    if names_timm_model(weights):
        trunk.load_state_dict(create_trunk(model.config, weights, pretrained=True).state_dict())
        return []
    loaded, left = _trunk_from_file(model.config, Path(weights), _classifier_of(trunk))
    trunk.load_state_dict(loaded.state_dict())
    return left


def change_image_size(model: CaptionerForConditionalGeneration, image_size: int) -> None:
    """Make a captioner one for images of another size, its trunk's position embeddings resampled.

    Raises:
        ValueError, RuntimeError: timm's trunk does not take images of that size, or its weights do not fit them.
    """
    trunk = model.encoder.trunk
    model.config.image_size = image_size
    drawn = create_timm_model(model.config).state_dict()  # has a place in timm's loader for a pooling that was cut off
    trunk.model = _trunk_with(model.config, drawn | trunk.model.state_dict())


def names_timm_model(name: str) -> bool:
    """Whether timm has this model, be it with a tag for its weights (`resnet50.a1_in1k`) or without."""
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
    """timm's own loader does the work: position embeddings of another image size fit themselves."""
    # Weights of no classes, as the trunk has none, are loaded strictly. Else timm lets those of another model pass for
    # one with a new head, and leaves the trunk random.
    overlay = {"state_dict": weights, "num_classes": 0, "label_offset": 0}
    return create_trunk(config, pretrained=True, pretrained_cfg_overlay=overlay)


def build_image_processor(
    model: CaptionerForConditionalGeneration, resize_mode: str = "crop", crop_pct: float = 1.0
) -> CaptionerImageProcessor:
    """Mean, std and interpolation as the trunk was pretrained with, at the model's image size."""
    data_config = timm.data.resolve_model_data_config(model.encoder.trunk.model)
    return CaptionerImageProcessor(
        image_size=model.config.image_size,
        resize_mode=resize_mode,
        crop_pct=crop_pct,
        interpolation=data_config["interpolation"],
        mean=data_config["mean"],
        std=data_config["std"],
    )
