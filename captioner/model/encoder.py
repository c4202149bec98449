"""The image encoder: any timm trunk behind one adapter, a projection, and optionally Transformer layers on top.

Shapes: B images, P image tokens, C trunk width, D model width.
"""

from contextlib import nullcontext
from functools import partial
from itertools import chain
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput

from .configuration_captioner import CaptionerConfig
from .layers import TransformerLayer
from .recording import Recording


class TimmTrunk(nn.Module):
    """A timm model without its head; returns tokens [B, P, C] for every family of models.

    Batch norms keep their pretrained statistics: caption batches are small and correlated, and this way the trunk
    computes the same in training and in inference.
    """

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        self.pooling = config.encoder_pooling
        self.model = create_trunk(config)
        self.num_features: int = self.model.num_features
        self.num_prefix_tokens: int = getattr(self.model, "num_prefix_tokens", 0)
        self._is_channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"

    def train(self, mode: bool = True) -> "TimmTrunk":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[B, 3, height, width] -> tokens [B, prefix + rows * columns, C] and (rows, columns)."""
        features = self.model.forward_features(pixel_values.contiguous(memory_format=torch.channels_last))
        if features.ndim == 3:
            prefix, patches = features.split(
                [self.num_prefix_tokens, features.shape[1] - self.num_prefix_tokens], dim=1
            )
            rows, columns = self._token_grid(pixel_values, patches.shape[1])
            feature_map = patches.transpose(1, 2).unflatten(2, (rows, columns))
        else:
            prefix = None
            feature_map = features.permute(0, 3, 1, 2) if self._is_channels_last else features
        if self.pooling > 1:
            feature_map = F.avg_pool2d(feature_map, self.pooling, ceil_mode=True)
        grid = (feature_map.shape[2], feature_map.shape[3])
        tokens = feature_map.flatten(2).transpose(1, 2)
        return (tokens if prefix is None else torch.cat([prefix, tokens], dim=1)), grid

    def _token_grid(self, pixel_values: Tensor, num_patches: int) -> tuple[int, int]:
        height, width = pixel_values.shape[2:]
        rows = round((num_patches * height / width) ** 0.5)
        return rows, num_patches // rows


def create_trunk(config: CaptionerConfig, name: str | None = None, **kwargs: Any) -> Any:
    """Create the timm model without its head (`Any`: it has more methods than `nn.Module`).

    Args:
        name: the timm name, possibly with a tag for its weights; default: `config.encoder_name`.
        kwargs: passed to `timm.create_model`; without `pretrained=True`, weights are random.

    Raises:
        ValueError: `encoder_kwargs` has a key that the model does not know.
    """
    trunk = create_timm_model(config, name, **kwargs)
    # Parameters of an unused head would get no gradients, which data-parallel training does not accept.
    trunk.reset_classifier(0, "")
    for head in ("fc_norm", "head"):
        if hasattr(trunk, head):
            setattr(trunk, head, nn.Identity())
    return trunk


def create_timm_model(config: CaptionerConfig, name: str | None = None, **kwargs: Any) -> Any:
    """Create the timm model without classes, but still with its pooling."""
    name = name or config.encoder_name
    arguments = {"num_classes": 0, **config.encoder_kwargs, **kwargs}
    if config.encoder_layer_norm_eps is not None:
        arguments["norm_layer"] = partial(nn.LayerNorm, eps=config.encoder_layer_norm_eps)
    try:
        # With the final size: if the model were resized later, position embeddings would be resampled twice and blur.
        return timm.create_model(name, **{"img_size": config.image_size, **arguments})
    except TypeError:  # a CNN, which accepts images of any size
        try:
            return timm.create_model(name, **arguments)
        except TypeError as error:
            raise ValueError(f"encoder_kwargs of {name}: {error}") from error


class CaptionerEncoder(nn.Module):
    """Trunk -> projection (-> Transformer layers) -> tokens [B, P, D] for the decoder's cross-attention."""

    main_input_name = "pixel_values"

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        self.trunk = TimmTrunk(config)
        self.bridge = Bridge(config, self.trunk.num_features)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        trunk_features: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Tensor, ...]:
        """Images [B, 3, height, width], or cached trunk tokens [B, P, C], -> last_hidden_state [B, P, D].

        Hidden states and attention weights are those of the layers over the trunk (`encoder_layers`), not the trunk's.

        Raises:
            ValueError: both kinds of input are given, or neither.
        """
        if (pixel_values is None) == (trunk_features is None):
            raise ValueError("the encoder needs either pixel_values or trunk_features")
        grid = None
        if pixel_values is not None:
            is_trained = any(parameter.requires_grad for parameter in self.trunk.parameters())
            with torch.set_grad_enabled(torch.is_grad_enabled() and is_trained):
                # Processors return float32; the weights may be in half precision.
                trunk_features, grid = self.trunk(pixel_values.to(next(self.trunk.parameters()).dtype))
        elif trunk_features is not None:
            # The bridge's type if it has weights, because a frozen trunk may have another precision.
            trunk_features = trunk_features.to(next(chain(self.bridge.parameters(), self.trunk.parameters())).dtype)
        recorded = None
        if output_attentions or output_hidden_states:
            recorded = Recording(self.bridge.layers, output_attentions, output_hidden_states)
        with recorded or nullcontext():
            last_hidden_state = self.bridge(trunk_features, self.trunk.num_prefix_tokens, grid)
        output = BaseModelOutput(last_hidden_state, **(recorded.of_encoder(last_hidden_state) if recorded else {}))
        return output if return_dict is not False else output.to_tuple()


class Bridge(nn.Module):
    """Maps trunk tokens to the decoder's width: norm, projection, and in a hybrid, positions and Transformer layers."""

    def __init__(self, config: CaptionerConfig, trunk_width: int) -> None:
        super().__init__()
        width, is_prefix = config.image_token_size, config.image_prefix
        reads_norm = config.encoder_norm and not is_prefix
        self.input_norm = nn.LayerNorm(trunk_width, config.layer_norm_eps) if reads_norm else nn.Identity()
        self.projection = nn.Linear(trunk_width, width) if is_prefix or trunk_width != width else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(config, index, cross_attention=False) for index in range(config.encoder_layers)
        )
        eps = config.encoder_layer_norm_eps if is_prefix else None
        self.norm = nn.LayerNorm(width, eps or config.layer_norm_eps) if config.encoder_norm else nn.Identity()

    def forward(self, tokens: Tensor, num_prefix_tokens: int, grid: tuple[int, int] | None) -> Tensor:
        """[B, P, C] -> [B, P, D]; without a grid, the image is square."""
        hidden_states = self.dropout(self.projection(self.input_norm(tokens)))
        if len(self.layers) > 0:
            rows, columns = grid or _square_grid(tokens.shape[1] - num_prefix_tokens)
            positions = sincos_position_embedding(rows, columns, hidden_states.shape[-1], hidden_states.device)
            positions = F.pad(positions, (0, 0, num_prefix_tokens, 0)).to(hidden_states.dtype)
            hidden_states = hidden_states + positions
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return self.norm(hidden_states)


def _square_grid(num_tokens: int) -> tuple[int, int]:
    side = round(num_tokens**0.5)
    if side * side != num_tokens:
        raise ValueError(f"{num_tokens} image tokens are not a square grid")
    return side, side


def sincos_position_embedding(rows: int, columns: int, width: int, device: torch.device) -> Tensor:
    """Fixed 2-D embedding [rows * columns, width], half for each axis (Vaswani et al. 2017, section 3.5).

    It is computed from the grid, so it works for any image size and needs no buffer.
    """
    frequencies = 10_000 ** -(torch.arange(width // 4, device=device) / (width // 4))
    row, column = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    angles = [axis.flatten()[:, None] * frequencies for axis in (row, column)]
    return torch.cat([function(angle) for angle in angles for function in (torch.sin, torch.cos)], dim=1)
