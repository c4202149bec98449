"""From a configuration to a model and a processor, pretrained trunk weights loaded after construction."""

from pathlib import Path

import timm
from torch import nn

from .configuration_captioner import CaptionerConfig
from .encoder import create_trunk
from .modeling_captioner import CaptionerForConditionalGeneration
from .processing_captioner import CaptionerImageProcessor


def build_model(config: CaptionerConfig, encoder_weights: str | bool = False) -> CaptionerForConditionalGeneration:
    """A captioner with a fresh decoder; its trunk random (False), timm's pretrained (True) or read from a safetensors file.

    Raises:
        ValueError: the weights file is absent, not safetensors, or not of this trunk.
    """
    model = CaptionerForConditionalGeneration(config)
    if encoder_weights:
        model.encoder.trunk.model.load_state_dict(_pretrained_trunk(config, encoder_weights).state_dict())
    return model


def _pretrained_trunk(config: CaptionerConfig, encoder_weights: str | bool) -> nn.Module:
    """timm's own loader does the work: key names, input channels and position embeddings fit themselves."""
    if encoder_weights is True:
        return create_trunk(config, pretrained=True)
    path = Path(str(encoder_weights))
    if path.suffix != ".safetensors" or not path.is_file():
        raise ValueError(f"encoder weights {path}: not an existing .safetensors file")
    try:
        return create_trunk(config, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    except (RuntimeError, KeyError, OSError) as error:
        raise ValueError(f"encoder weights {path} do not fit {config.encoder_name}: {error}") from error


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
