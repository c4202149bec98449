"""Distillation: the encoder learns to classify photos as a trained classifier does. Photos need no captions.

Source: G. Hinton et al., "Distilling the Knowledge in a Neural Network", https://arxiv.org/abs/1503.02531.
"""

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from captioner.config import TeacherConfig
from captioner.errors import CaptionerError
from captioner.model.preprocessing import Preprocessing


def load_classifier(config: TeacherConfig) -> Any:
    """Return the pretrained timm classifier that a recipe names (`Any`: it has more methods than `nn.Module`).

    Raises:
        CaptionerError: timm has no such model or weights, or the file does not fit the model.
    """
    try:
        if config.weights is None:
            return timm.create_model(config.name, pretrained=True)
        if Path(config.weights).suffix != ".safetensors":
            raise ValueError("not a .safetensors file")
        classifier = timm.create_model(config.name)
        classifier.load_state_dict(load_file(config.weights))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        where = config.weights or config.name
        raise CaptionerError(f"teacher: {where}: {' '.join(str(error).split())[:300]}") from error
    return classifier


class Teacher:
    """A frozen timm classifier that sees the student's pixels, with its own normalisation."""

    def __init__(self, classifier: nn.Module, temperature: float, student: Preprocessing, device: torch.device) -> None:
        self.classifier = classifier.to(device).eval().requires_grad_(False)
        self.temperature = temperature
        own = timm.data.resolve_model_data_config(self.classifier)
        self.size: tuple[int, int] = own["input_size"][1:]
        student_mean, student_std, mean, std = (
            torch.tensor(values, device=device)[:, None, None]
            for values in (student.mean, student.std, own["mean"], own["std"])
        )
        self.scale, self.shift = student_std / std, (student_mean - mean) / std

    def loss(self, logits: Tensor, pixel_values: Tensor) -> Tensor:
        """Sum KL(teacher || student) at temperature T over images, times T squared (section 2.1 of the paper).

        `logits` [B, C] are the student's, for `pixel_values` [B, 3, H, W].
        """
        with torch.no_grad():
            pixels = pixel_values * self.scale + self.shift
            if pixels.shape[2:] != self.size:
                pixels = F.interpolate(pixels, self.size, mode="bilinear", antialias=True)
            target = F.log_softmax(self.classifier(pixels).float() / self.temperature, dim=-1)
        log_probs = F.log_softmax(logits.float() / self.temperature, dim=-1)
        return F.kl_div(log_probs, target, reduction="sum", log_target=True) * self.temperature**2
