"""Heads for objectives besides captioning: tags, contrastive embeddings, distillation from a teacher.

Shapes: B images, P image tokens, N captions, C classes, D width, E width of the shared space.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_captioner import CaptionerConfig


class CaptionerHeads(nn.Module):
    """The heads in the configuration; the others are None."""

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        width = config.image_token_size
        self.tags = ImageHead(width, len(config.tags)) if config.tags else None
        self.teacher = ImageHead(width, config.teacher_classes) if config.teacher_classes else None
        self.contrastive = ContrastiveHead(config) if config.contrastive_size else None


class ImageHead(nn.Linear):
    """Logits of classes, linear in the mean of an image's tokens: [B, P, D] -> [B, C]."""

    def forward(self, encoder_hidden_states: Tensor) -> Tensor:
        return super().forward(encoder_hidden_states.mean(1))


class ContrastiveHead(nn.Module):
    """Projects images and captions to unit vectors in one space, with CLIP's learnt inverse temperature (Radford et al.
    2021, https://arxiv.org/abs/2103.00020, section 2.4)."""

    INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
    MAX_SCALE = 100.0

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        self.image_projection = nn.Linear(config.image_token_size, config.contrastive_size, bias=False)
        self.text_projection = nn.Linear(config.hidden_size, config.contrastive_size, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor([self.INITIAL_LOGIT_SCALE]))  # FSDP does not accept scalars

    def forward(self, encoder_hidden_states: Tensor, text_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image tokens [B, P, D] and captions [N, D] -> unit vectors [B, E] and [N, E], and the inverse temperature."""
        images = F.normalize(self.image_projection(encoder_hidden_states.mean(1)).float(), dim=-1)
        texts = F.normalize(self.text_projection(text_states).float(), dim=-1)
        return images, texts, self.logit_scale.exp().clamp(max=self.MAX_SCALE)
