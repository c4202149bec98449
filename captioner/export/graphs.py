"""The two graphs of an exported model, as torch modules.

Shapes: B images, K captions an image, T tokens so far, P image tokens, L layers, H heads, D width, V vocabulary.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from captioner.model.decoder import CaptionerDecoder
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration


class EncoderGraph(nn.Module):
    """pixel_values [B, 3, height, width] -> keys and values of every decoder layer's cross-attention,
    2 L tensors [B, H, P, D / H], and tag logits [B, C] where the model has a tag head."""

    def __init__(self, model: CaptionerForConditionalGeneration) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.projections: Any = nn.ModuleList(layer.get_submodule("cross_attn") for layer in model.decoder.layers)
        self.tags = model.heads.tags

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        hidden_states = self.encoder(pixel_values=pixel_values).last_hidden_state
        outputs: list[Tensor] = []
        for projection in self.projections:
            outputs += projection._keys_and_values(hidden_states, None)
        return (*outputs, self.tags(hidden_states)) if self.tags is not None else tuple(outputs)


class DecoderGraph(nn.Module):
    """One step of a search.

    From the newest tokens [B, K], the row `beams` [B, K] that each goes on from, the self-attention caches, 2 L tensors
    [B, K, H, T, D / H], and the encoder's 2 L tensors -> logits [B, K, V], the `num_candidates` most probable next
    tokens with their log-probabilities, both [B, K, num_candidates], and the caches, each row with one position more.

    B and K stay apart in every shape, so that an image's K captions read its cross-attention keys and values uncopied.
    The position is T.
    """

    def __init__(self, model: CaptionerForConditionalGeneration) -> None:
        super().__init__()
        self.decoder: CaptionerDecoder = model.decoder
        self.lm_head = model.lm_head

    def forward(
        self,
        input_ids: Tensor,
        beams: Tensor,
        num_candidates: Tensor,
        self_states: list[Tensor],
        cross_states: list[Tensor],
    ) -> tuple[Tensor, ...]:
        batch, captions = input_ids.shape
        rows = (torch.arange(batch)[:, None] * captions + beams).flatten()
        caches = _Caches([state.flatten(0, 1).index_select(0, rows) for state in self_states], cross_states)
        hidden_states = self.decoder(input_ids.view(batch * captions, 1), cross_states[0], past_key_values=caches)
        logits = self.lm_head(hidden_states).view(batch, captions, -1)
        count = num_candidates.item()
        torch._check(count >= 1)
        torch._check(count <= logits.shape[-1])
        values, token_ids = logits.topk(count)
        log_probs = values - logits.logsumexp(-1, keepdim=True)
        states = (state.unflatten(0, (batch, captions)) for state in caches.self_states)
        return (logits, token_ids, log_probs, *states)


class _Caches:
    """What the decoder asks of transformers' `EncoderDecoderCache`, over tensors that come from outside."""

    def __init__(self, self_states: list[Tensor], cross_states: list[Tensor]) -> None:
        self.self_states = self_states
        pairs = zip(cross_states[::2], cross_states[1::2], strict=True)
        self.cross_attention_cache = SimpleNamespace(layers=[SimpleNamespace(keys=k, values=v) for k, v in pairs])
        self.self_attention_cache = self
        self.is_updated = dict.fromkeys(range(len(cross_states) // 2), True)
        self.past_length = self_states[0].shape[2]

    def get_seq_length(self) -> int:
        return self.past_length

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        for index, new in ((2 * layer_idx, key), (2 * layer_idx + 1, value)):
            self.self_states[index] = torch.cat([self.self_states[index], new], dim=2)
        return self.self_states[2 * layer_idx], self.self_states[2 * layer_idx + 1]
