"""The caption decoder: causal self-attention over the words so far, cross-attention to the image tokens."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import EncoderDecoderCache

from .configuration_captioner import CaptionerConfig
from .layers import TransformerLayer, causal_mask


class CaptionerDecoder(nn.Module):
    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(config, index, cross_attention=True) for index in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(
        self,
        input_ids: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Token ids [B * K, T] and image tokens [B, P, D] -> hidden states [B * K, T, D].

        Without image tokens it is a language model: its layers go without their cross-attention.
        `attention_mask` [B * K, past + T], 0 at padding, is needed only where sequences are padded on the left.
        Tokens that do not follow one another, as the beams of an image in one row, come with their `position_ids`,
        [B * K, T] or a shape that broadcasts to it, and a mask [B * K, 1, T, past + T], True where a token may see.

        Raises:
            ValueError: more tokens than positions, or captions that do not divide among the images.
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
        hidden_states = self.dropout(self.embed_tokens(input_ids) + self.embed_positions(position_ids))
        for layer in self.layers:
            hidden_states = layer(hidden_states, encoder_hidden_states, mask, is_causal, cache)
        return self.norm(hidden_states)

    def _positions(self, attention_mask: Tensor | None, length: int, past_length: int, device: torch.device) -> Tensor:
        """[T] or [B * K, T], counted from a sequence's first token that is not padding."""
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
        """The boolean mask for SDPA, or its causal flag where that says the same and takes the fast kernel."""
        if attention_mask is None:
            if length == 1:
                return None, False
            if past_length == 0:
                return None, True
            return causal_mask(length, past_length + length, device), False
        visible = causal_mask(length, past_length + length, device) & attention_mask[:, None, None, :].bool()
        # A row that sees nothing would be NaN: a padded query sees itself.
        itself = torch.eye(length, dtype=torch.bool, device=device)
        return visible | F.pad(itself, (past_length, 0)), False
