"""The two graphs of an exported model, as torch modules, and how attention is written in them.

Shapes: B images, K captions an image, T tokens so far, P image tokens, L layers, H heads, D width, V vocabulary.
"""

from typing import Any, ClassVar

import torch
from onnxscript import opset23
from timm.models.beit import Attention
from torch import Tensor, nn
from torch.onnx import ops as onnx_ops

from captioner.model.layers import merge_heads
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration


class EncoderGraph(nn.Module):
    """pixel_values [B, 3, height, width] -> the image's keys and values in every layer of the decoder, 2 L tensors
    [B, P, D], and tag logits [B, C] where the model has a tag head."""

    STATES: ClassVar[tuple[str, ...]] = ("key", "value")
    """What the encoder gives for a layer of the decoder."""

    def __init__(self, model: CaptionerForConditionalGeneration) -> None:
        super().__init__()
        self.encoder = model.encoder
        for module in model.encoder.trunk.modules():
            if isinstance(module, Attention):
                module.fused_attn = False  # torch.export mistakes the layout of what SDPA gives with a mask
        self.decoder: Any = model.decoder
        self.num_heads = model.config.num_attention_heads
        self.tags = model.heads.tags

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        hidden_states = self.encoder(pixel_values=pixel_values).last_hidden_state
        outputs: list[Tensor] = []
        for projected in self._projected(hidden_states):
            outputs += self.image_states(projected)
        return (*outputs, self.tags(hidden_states)) if self.tags is not None else tuple(outputs)

    def _projected(self, hidden_states: Tensor) -> list[Tensor]:
        """Each layer's keys and values of the image, [B, P, 2 D]."""
        if not self.decoder.image_prefix:
            return [layer.cross_attn.kv_proj(hidden_states) for layer in self.decoder.layers]
        seen = self.decoder.read_image(hidden_states)
        return [torch.cat([merge_heads(states) for states in pair], dim=-1) for pair in seen]

    def image_states(self, projected: Tensor) -> list[Tensor]:
        """What the decoder is to read of a layer's keys and values [B, P, 2 D].

        Of a prefix they are apart by heads, as `DecoderGraph.attend_after_image` multiplies them: keys
        [B, H, D / H, P], values [B, H, P, D / H].
        """
        key, value = projected.chunk(2, dim=-1)
        if not self.decoder.image_prefix:
            return [key, value]
        key, value = (states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for states in (key, value))
        return [key.transpose(2, 3), value]


class DecoderGraph(nn.Module):
    """One step of a search.

    From the newest tokens [B, K], the rows [B, K] of the caches that they follow, the self-attention caches, 2 L
    tensors [N, T, D], and the encoder's 2 L -> logits [B, K, V], the `num_candidates` most probable next tokens
    with their log-probabilities, both [B, K, num_candidates], the mean of the cross-attention's weights over heads and
    layers [B, K, P] (not with an image prefix), and the caches [B * K, T + 1, D].

    The layers are written out over [B, K, D], which leaves a step few operations beside its products. An image's K
    captions read its keys and values uncopied. The position is T.
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
        hidden_states = self.decoder.embed(input_ids, position)
        new_states = [state.index_select(0, rows.flatten()) for state in self_states]
        weights: list[Tensor] = []
        num_states = len(cross_states) // len(self.decoder.layers)
        for index, layer in enumerate(self.decoder.layers):
            own = slice(2 * index, 2 * index + 2)
            seen = cross_states[index * num_states : (index + 1) * num_states]
            inputs = layer.before(layer.self_attn_norm, hidden_states)
            query, *newest = layer.self_attn.qkv_proj(inputs).view(batch * captions, 1, -1).chunk(3, dim=-1)
            new_states[own] = [torch.cat(pair, dim=1) for pair in zip(new_states[own], newest, strict=True)]
            if self.decoder.image_prefix:
                context = self.attend_after_image(query.view(hidden_states.shape), new_states[own], seen)
            else:
                context = self._attend(query, *new_states[own]).view(hidden_states.shape)
            hidden_states = layer.add(layer.self_attn_norm, hidden_states, layer.self_attn.out_proj(context))
            if not self.decoder.image_prefix:
                query = layer.cross_attn.q_proj(layer.before(layer.cross_attn_norm, hidden_states))
                weights.append(self.weights(query, seen))
                context = layer.cross_attn.out_proj(self.attend_to_image(query, seen))
                hidden_states = layer.add(layer.cross_attn_norm, hidden_states, context)
            hidden_states = layer.feed_forward(hidden_states)
        logits = self.lm_head(self.decoder.finish(hidden_states))
        count = num_candidates.item()
        torch._check(count >= 1)
        torch._check(count <= logits.shape[-1])
        log_probs, token_ids = logits.log_softmax(-1).topk(count)
        attention = [torch.stack(weights).mean(0)] if weights else []
        return (logits, token_ids, log_probs, *attention, *new_states)

    def attend_to_image(self, query: Tensor, states: list[Tensor]) -> Tensor:
        """[B, K, D] over what the encoder gave for a layer -> [B, K, D]."""
        return self._attend(query, *states)

    def attend_after_image(self, query: Tensor, own: list[Tensor], states: list[Tensor]) -> Tensor:
        """[B, K, D] over an image that is a prefix and the caption's own keys and values [B * K, T, D] -> [B, K, D].

        As `model.layers.attention_after_image`: scores are joined, not keys.
        """
        batch, captions, _ = query.shape
        query = (query * (query.shape[-1] // self.num_heads) ** -0.5).unflatten(-1, (self.num_heads, -1))
        key, value = (states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for states in own)
        own_scores = query.flatten(0, 1).unsqueeze(2) @ key.transpose(2, 3)  # [B * K, H, 1, T]
        own_scores = own_scores.squeeze(2).unflatten(0, (batch, captions)).transpose(1, 2)
        image_scores = self.image_scores(query.transpose(1, 2), states)
        probs = torch.cat([image_scores, own_scores], dim=-1).softmax(dim=-1)
        image_probs, own_probs = probs.split([image_scores.shape[-1], own_scores.shape[-1]], dim=-1)
        own_context = own_probs.transpose(1, 2).flatten(0, 1).unsqueeze(2) @ value
        context = self.image_context(image_probs, states).transpose(1, 2)
        return (context + own_context.squeeze(2).unflatten(0, (batch, captions))).flatten(2)

    def image_scores(self, query: Tensor, states: list[Tensor]) -> Tensor:
        """Scaled queries [B, H, K, D / H] by what the encoder gave for a layer -> [B, H, K, P]."""
        return query @ states[0]

    def image_context(self, probs: Tensor, states: list[Tensor]) -> Tensor:
        """Probabilities [B, H, K, P] -> [B, H, K, D / H]."""
        return probs @ states[1]

    def weights(self, query: Tensor, states: list[Tensor]) -> Tensor:
        """The weights of `attend_to_image`, mean over heads: [B, K, P]."""
        query, key = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (query, states[0]))
        return (query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)).softmax(-1).mean(1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[N, T, D] over [N, S, D] -> [N, T, D]."""
        context, *_ = onnx_ops.attention(query, key, value, q_num_heads=self.num_heads, kv_num_heads=self.num_heads)
        return context


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """SDPA over [N, H, T, D / H] as ONNX's Attention over [N, T, D]: ONNX Runtime finds that these transposes undo the
    model's own, and drops both."""
    heads, key_heads = query.shape[1], key.shape[1]
    op: Any = opset23  # lists become constants, which its types do not say
    query, key, value = [op.Reshape(op.Transpose(x, perm=[0, 2, 1, 3]), [0, 0, -1]) for x in (query, key, value)]
    options = {"scale": scale, "is_causal": is_causal, "q_num_heads": heads, "kv_num_heads": key_heads}
    context, *_ = op.Attention(query, key, value, attn_mask, **options)
    return op.Transpose(op.Reshape(context, [0, 0, heads, -1]), perm=[0, 2, 1, 3])
