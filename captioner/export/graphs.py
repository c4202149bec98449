"""The two graphs of an exported model, as torch modules.

Shapes: B images, K captions an image, T tokens so far, P image tokens, L layers, H heads, D width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.onnx import ops as onnx_ops

from captioner.model.modeling_captioner import CaptionerForConditionalGeneration


class EncoderGraph(nn.Module):
    """pixel_values [B, 3, height, width] -> keys and values of every decoder layer's cross-attention,
    2 L tensors [B, P, D], and tag logits [B, C] where the model has a tag head."""

    def __init__(self, model: CaptionerForConditionalGeneration) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.projections: Any = nn.ModuleList(layer.get_submodule("cross_attn") for layer in model.decoder.layers)
        self.tags = model.heads.tags

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        hidden_states = self.encoder(pixel_values=pixel_values).last_hidden_state
        outputs: list[Tensor] = []
        for projection in self.projections:
            outputs += projection.kv_proj(hidden_states).chunk(2, dim=-1)
        return (*outputs, self.tags(hidden_states)) if self.tags is not None else tuple(outputs)


class DecoderGraph(nn.Module):
    """One step of a search.

    From the newest tokens [B, K], the rows [B, K] of the caches that they follow, the self-attention caches, 2 L
    tensors [N, T, D], and the encoder's 2 L -> logits [B, K, V], the `num_candidates` most probable next tokens
    with their log-probabilities, both [B, K, num_candidates], and the caches [B * K, T + 1, D].

    The layers are written out over [B, K, D], which leaves a step few operations beside its products. An image's K
    captions read its cross-attention keys and values uncopied. The position is T.
    """

    def __init__(self, model: CaptionerForConditionalGeneration) -> None:
        super().__init__()
        self.decoder: Any = model.decoder
        self.lm_head = model.lm_head
        self.num_heads = model.config.num_attention_heads

    def forward(
        self,
        input_ids: Tensor,
        rows: Tensor,
        num_candidates: Tensor,
        self_states: list[Tensor],
        cross_states: list[Tensor],
    ) -> tuple[Tensor, ...]:
        batch, captions = input_ids.shape
        past_length = self_states[0].shape[1]
        position = torch.arange(past_length, past_length + 1)
        hidden_states = self.decoder.embed_tokens(input_ids) + self.decoder.embed_positions(position)
        new_states = [state.index_select(0, rows.flatten()) for state in self_states]
        for index, layer in enumerate(self.decoder.layers):
            own = slice(2 * index, 2 * index + 2)
            projected = layer.self_attn.qkv_proj(layer.self_attn_norm(hidden_states)).view(batch * captions, 1, -1)
            query, *newest = projected.chunk(3, dim=-1)
            new_states[own] = [torch.cat(pair, dim=1) for pair in zip(new_states[own], newest, strict=True)]
            context = self._attend(query, *new_states[own]).view(hidden_states.shape)
            hidden_states = hidden_states + layer.self_attn.out_proj(context)
            query = layer.cross_attn.q_proj(layer.cross_attn_norm(hidden_states))
            hidden_states = hidden_states + layer.cross_attn.out_proj(self._attend(query, *cross_states[own]))
            hidden_states = hidden_states + layer.mlp(layer.mlp_norm(hidden_states))
        logits = self.lm_head(self.decoder.norm(hidden_states))
        count = num_candidates.item()
        torch._check(count >= 1)
        torch._check(count <= logits.shape[-1])
        log_probs, token_ids = logits.log_softmax(-1).topk(count)
        return (logits, token_ids, log_probs, *new_states)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[N, T, D] over [N, S, D] -> [N, T, D]."""
        context, *_ = onnx_ops.attention(query, key, value, q_num_heads=self.num_heads, kv_num_heads=self.num_heads)
        return context
