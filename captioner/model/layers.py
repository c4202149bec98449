"""The Transformer layer that both towers are made of.

Shapes: B images, K captions an image, N = B * K sequences, T query positions, S key positions, P image tokens,
H heads, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_captioner import CaptionerConfig


class SelfAttention(nn.Module):
    def __init__(self, config: CaptionerConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        is_causal: bool = False,
        cache: EncoderDecoderCache | None = None,
        image: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """[N, T, D] -> [N, T, D]; `attention_mask` is boolean, True where a key may be seen.

        `image` holds the keys and values [B, H, P, D / H] of image tokens, which every query may see.
        """
        query, key, value = self.project(hidden_states)
        if cache is not None:
            key, value = cache.self_attention_cache.update(key, value, self.layer_idx)
        if image is None:
            context = attention(query, key, value, attention_mask, is_causal)
        else:
            context = attention_after_image(query, key, value, *image, attention_mask, is_causal)
        return self.out_proj(merge_heads(context))

    def project(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        """[N, T, D] -> query, key and value, each [N, H, T, D / H]."""
        return _split_heads(self.qkv_proj(hidden_states), 3, self.num_heads)


class CrossAttention(nn.Module):
    """Attention from captions to image tokens. The K captions of an image share its keys and values without copies."""

    def __init__(self, config: CaptionerConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.kv_proj = nn.Linear(config.image_token_size, 2 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, cache: EncoderDecoderCache | None = None
    ) -> Tensor:
        """[B * K, T, D] over [B, P, D] -> [B * K, T, D]."""
        key, value = self._keys_and_values(encoder_hidden_states, cache)
        shape = hidden_states.shape
        # Each query attends to the image independently, so the queries of its K captions form one long sequence.
        query = self.q_proj(hidden_states).view(key.shape[0], -1, shape[-1])
        (query,) = _split_heads(query, 1, self.num_heads)
        context = attention(query, key, value)
        return self.out_proj(merge_heads(context).view(shape))

    def with_weights(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, and the attention weights [B, H, K * T, P], which the fused kernels do not give."""
        key, value = self._keys_and_values(encoder_hidden_states, None)
        shape = hidden_states.shape
        query = self.q_proj(hidden_states).view(key.shape[0], -1, shape[-1])
        (query,) = _split_heads(query, 1, self.num_heads)
        weights = (query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)).softmax(-1)
        return self.out_proj(merge_heads(weights @ value).view(shape)), weights

    def _keys_and_values(
        self, encoder_hidden_states: Tensor, cache: EncoderDecoderCache | None
    ) -> tuple[Tensor, Tensor]:
        """[B, P, D] -> keys and values [B, H, P, D / H], projected once per generation."""
        if cache is not None and cache.is_updated.get(self.layer_idx):
            layer = cache.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        key, value = _split_heads(self.kv_proj(encoder_hidden_states), 2, self.num_heads)
        if cache is not None:
            key, value = cache.cross_attention_cache.update(key, value, self.layer_idx)
            cache.is_updated[self.layer_idx] = True
        return key, value


class TransformerLayer(GradientCheckpointingLayer):
    """Self-attention, in the decoder cross-attention, and a feed-forward part, each with a residual connection.

    Pre-norm (Xiong et al. 2020, https://arxiv.org/abs/2002.04745): each part normalizes its input. With
    `config.post_norm` (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762) each sum is normalized instead.
    Dropout applies only to the residual branches: on attention weights it would prevent the use of fused kernels.
    """

    def __init__(self, config: CaptionerConfig, layer_idx: int, cross_attention: bool) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        assert config.intermediate_size is not None  # the configuration fills it in
        self.post_norm = config.post_norm
        self.self_attn_norm = nn.LayerNorm(width, eps)
        self.self_attn = SelfAttention(config, layer_idx)
        self.cross_attn_norm = nn.LayerNorm(width, eps) if cross_attention else None
        self.cross_attn = CrossAttention(config, layer_idx) if cross_attention else None
        self.mlp_norm = nn.LayerNorm(width, eps)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.intermediate_size),
            ACT2FN[config.hidden_act],
            nn.Linear(config.intermediate_size, width),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        is_causal: bool = False,
        cache: EncoderDecoderCache | None = None,
        image: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Without `encoder_hidden_states`, cross-attention is skipped; for `image` see SelfAttention."""
        inputs = self.before(self.self_attn_norm, hidden_states)
        attended = self.self_attn(inputs, attention_mask, is_causal, cache, image)
        hidden_states = self.add(self.self_attn_norm, hidden_states, attended)
        if encoder_hidden_states is not None and self.cross_attn is not None and self.cross_attn_norm is not None:
            inputs = self.before(self.cross_attn_norm, hidden_states)
            attended = self.cross_attn(inputs, encoder_hidden_states, cache)
            hidden_states = self.add(self.cross_attn_norm, hidden_states, attended)
        return self.feed_forward(hidden_states)

    def before(self, norm: nn.LayerNorm, hidden_states: Tensor) -> Tensor:
        """Return the input of a part of the layer."""
        return hidden_states if self.post_norm else norm(hidden_states)

    def add(self, norm: nn.LayerNorm, hidden_states: Tensor, branch: Tensor) -> Tensor:
        """Add the output of a part of the layer."""
        hidden_states = hidden_states + self.dropout(branch)
        return norm(hidden_states) if self.post_norm else hidden_states

    def feed_forward(self, hidden_states: Tensor) -> Tensor:
        return self.add(self.mlp_norm, hidden_states, self.mlp(self.before(self.mlp_norm, hidden_states)))


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """Attention of queries [N, H, T, D / H] over [N, H, S, D / H]; `mask` is True where a key may be seen."""
    return F.scaled_dot_product_attention(query, key, value, mask, is_causal=is_causal)


def attention_after_image(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    image_key: Tensor,
    image_value: Tensor,
    mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """Attention of [N, H, T, D / H] over the image's keys [B, H, P, D / H] and the sequence's own [N, H, S, D / H].

    One softmax goes over both; the mask is for the sequence's own.

    Scores are joined, not keys: the K captions of an image share its keys and values uncopied, their queries lined up
    as one long sequence.
    """
    images, length = len(image_key), query.shape[2]
    query = query * query.shape[-1] ** -0.5
    own = query @ key.transpose(-1, -2)
    if is_causal:
        mask = causal_mask(length, key.shape[2], query.device)
    if mask is not None:
        own = own.masked_fill(~mask, -torch.inf)
    to_image = _apart(_lined_up(query, images) @ image_key.transpose(-1, -2), length)
    to_image, own = torch.cat([to_image, own], dim=-1).softmax(-1).split([to_image.shape[-1], own.shape[-1]], dim=-1)
    return own @ value + _apart(_lined_up(to_image, images) @ image_value, length)


def _lined_up(states: Tensor, images: int) -> Tensor:
    """[B * K, H, T, X] -> [B, H, K * T, X]."""
    return states.unflatten(0, (images, -1)).transpose(1, 2).flatten(2, 3)


def _apart(states: Tensor, length: int) -> Tensor:
    """[B, H, K * T, X] -> [B * K, H, T, X]."""
    return states.unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 1)


def _split_heads(projected: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """[N, T, parts * D] -> `parts` tensors [N, H, T, D / H]."""
    batch, length, width = projected.shape
    heads = projected.view(batch, length, parts, num_heads, width // (parts * num_heads))
    return tuple(heads.permute(2, 0, 3, 1, 4).unbind(0))


def merge_heads(context: Tensor) -> Tensor:
    """[N, H, T, D / H] -> [N, T, D]."""
    return context.transpose(1, 2).flatten(2)


def causal_mask(query_length: int, key_length: int, device: torch.device) -> Tensor:
    """[T, S], True where a query may see a key; the last query sees every key."""
    return torch.ones(query_length, key_length, dtype=torch.bool, device=device).tril(key_length - query_length)
