"""The caption decoder: causal self-attention over the previous tokens, and attention to the image tokens.

Shapes: B images, K captions an image, T tokens, P image tokens, H heads, D width.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.cache_utils import EncoderDecoderCache

from .configuration_captioner import CaptionerConfig
from .layers import TransformerLayer, attention, causal_mask, merge_heads


class CaptionerDecoder(nn.Module):
    """Embeddings, layers, and a norm after them; with `config.post_norm` the norm follows the embeddings.

    Layers attend to image tokens by cross-attention. With `config.image_prefix` image tokens are a prefix of the
    sequence (GIT, Wang et al. 2022, https://arxiv.org/abs/2205.14100): they pass through the same layers and attend to
    each other, but not to captions.
    """

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(config, index, cross_attention=not config.image_prefix)
            for index in range(config.num_hidden_layers)
        )
        has_norm = config.embedding_norm or not config.post_norm
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps) if has_norm else nn.Identity()
        self.output = OutputTransform(config) if config.output_transform else nn.Identity()
        self.post_norm = config.post_norm
        self.image_prefix = config.image_prefix

    def forward(
        self,
        input_ids: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Token ids [B * K, T] and image tokens [B, P, D] -> hidden states [B * K, T, D].

        Without image tokens the decoder is a language model, without cross-attention.

        Args:
            attention_mask: [B * K, past + T], 0 at padding; needed only for sequences padded on the left. With
                `position_ids`, a mask [B * K, 1, T, past + T], True where a token may see another.
            position_ids: [B * K, T] or a shape that broadcasts to it, for tokens that do not follow one another, such
                as the beams of an image in one row.

        Raises:
            ValueError: there are more tokens than positions, or the number of captions is not a multiple of the number
                of images.
        """
        if encoder_hidden_states is not None and input_ids.shape[0] % encoder_hidden_states.shape[0]:
            raise ValueError(
                f"{input_ids.shape[0]} captions do not divide among {encoder_hidden_states.shape[0]} images"
            )
        mask, is_causal = attention_mask, False
        if position_ids is None:
            past_length = 0 if cache is None else cache.get_seq_length()
            length, device = input_ids.shape[1], input_ids.device
            mask, is_causal = self._mask(attention_mask, length, past_length, device)
            position_ids = self._positions(attention_mask, length, past_length, device)
        hidden_states = self.dropout(self.embed(input_ids, position_ids))
        image: list[tuple[Tensor, Tensor]] | list[None] = [None] * len(self.layers)
        if self.image_prefix and encoder_hidden_states is not None:
            image, encoder_hidden_states = self.read_image(encoder_hidden_states, cache), None
        for layer, seen in zip(self.layers, image, strict=True):
            hidden_states = layer(hidden_states, encoder_hidden_states, mask, is_causal, cache, seen)
        return self.finish(hidden_states)

    def embed(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Return the input of the first layer."""
        hidden_states = self.embed_tokens(input_ids) + self.embed_positions(position_ids)
        return self.norm(hidden_states) if self.post_norm else hidden_states

    def finish(self, hidden_states: Tensor) -> Tensor:
        """Turn the last layer's output into the head's input."""
        return self.output(hidden_states if self.post_norm else self.norm(hidden_states))

    def read_image(self, image_tokens: Tensor, cache: EncoderDecoderCache | None = None) -> list[tuple[Tensor, Tensor]]:
        """Return each layer's keys and values [B, H, P, D / H] of a prefix of image tokens [B, P, D].

        They are computed once per generation, and kept in the cache of cross-attention.
        """
        if cache is not None and cache.is_updated.get(0):
            return [(kept.keys, kept.values) for kept in cache.cross_attention_cache.layers]
        seen = []
        for index, layer in enumerate(cast("list[TransformerLayer]", self.layers)):
            query, key, value = layer.self_attn.project(layer.before(layer.self_attn_norm, image_tokens))
            seen.append((key, value))
            if cache is not None:
                cache.cross_attention_cache.update(key, value, index)
                cache.is_updated[index] = True
            if index + 1 < len(self.layers):  # the last layer's output is not used
                attended = layer.self_attn.out_proj(merge_heads(attention(query, key, value)))
                image_tokens = layer.feed_forward(layer.add(layer.self_attn_norm, image_tokens, attended))
        return seen

    def _positions(self, attention_mask: Tensor | None, length: int, past_length: int, device: torch.device) -> Tensor:
        """[T] or [B * K, T], counted from the first token that is not padding."""
        if past_length + length > self.embed_positions.num_embeddings:
            raise ValueError(
                f"{past_length + length} tokens exceed max_position_embeddings {self.embed_positions.num_embeddings}"
            )
        if attention_mask is None:
            return torch.arange(past_length, past_length + length, device=device)
        return (attention_mask.cumsum(1)[:, -length:] - 1).clamp(min=0)

    @staticmethod
    def _mask(
        attention_mask: Tensor | None, length: int, past_length: int, device: torch.device
    ) -> tuple[Tensor | None, bool]:
        """The boolean mask for SDPA, or where equivalent its causal flag, which selects a faster kernel."""
        if attention_mask is None:
            if length == 1:
                return None, False
            if past_length == 0:
                return None, True
            return causal_mask(length, past_length + length, device), False
        visible = causal_mask(length, past_length + length, device) & attention_mask[:, None, None, :].bool()
        # A query that sees nothing gives NaN, so a padded query sees itself.
        itself = torch.eye(length, dtype=torch.bool, device=device)
        return visible | F.pad(itself, (past_length, 0)), False


class OutputTransform(nn.Module):
    """BERT's transform between its last layer and its head (Devlin et al. 2018, https://arxiv.org/abs/1810.04805)."""

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.norm(self.act(self.dense(hidden_states)))
