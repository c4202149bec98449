"""The searches behind `generate`: the decoder a step at a time, and what is chosen at each step.

Shapes: B images, K captions an image, T tokens so far (prompt included), S slots of the cache, H heads, D width,
V vocabulary.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.generation import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

if TYPE_CHECKING:
    from captioner.infer.options import GenerationOptions

NOT_YET = -1e9
"""Score of a beam that is not there: below that of any caption."""


class SlotLayer(DynamicLayer):
    """Self-attention keys and values [N, H, S, D / H] of a layer, written in place: none is copied as captions grow."""

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots = slots
        self.filled = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, heads, _, width = key_states.shape
        self.keys = key_states.new_empty(rows, heads, self.slots, width)
        self.values = value_states.new_empty(rows, heads, self.slots, width)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.filled = self.filled, self.filled + key_states.shape[2]
        self.keys[:, :, start : self.filled] = key_states
        self.values[:, :, start : self.filled] = value_states
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]

    def get_seq_length(self) -> int:
        return self.filled

    def batch_select_indices(self, indices: Tensor) -> None:
        """Move the rows to keep to the front, and forget the others."""
        for states in (self.keys, self.values):
            states[: len(indices), :, : self.filled] = states[indices, :, : self.filled]
        self.keys, self.values = self.keys[: len(indices)], self.values[: len(indices)]


class StepDecoder:
    """The decoder, a step at a time, over K captions of each of B images.

    What is cached is written once and stays where it is. Captions that only grow have a row of the cache each. Beams
    branch: those of an image share a row, where each step puts their K tokens side by side, and a mask shows a beam its
    own ancestors (tree attention, Miao et al. 2023, https://arxiv.org/abs/2305.09781, section 4.2). A beam that gives
    way to another thus changes the mask, and no key or value moves. The image's keys and values are there once.
    """

    def __init__(self, model: PreTrainedModel, encoder_hidden_states: Tensor, captions: int, branching: bool) -> None:
        """`encoder_hidden_states` are [B, P, D]."""
        self.model = model
        self.encoder_hidden_states = encoder_hidden_states
        self.captions = captions
        self.branching = branching

    def start(self, prompt: Tensor, steps: int) -> Tensor:
        """A prompt [T] of all captions -> logits [B, T, V] of the tokens after each of its own; `steps` may follow."""
        images = len(self.encoder_hidden_states)
        rows, step_slots = (images, self.captions) if self.branching else (images * self.captions, 1)
        layers = [SlotLayer(len(prompt) + steps * step_slots) for _ in self.model.decoder.layers]
        self.cache = EncoderDecoderCache(Cache(layers=layers), DynamicCache())
        self.length = len(prompt)
        self.visible = prompt.new_ones(images, self.captions, self.length, dtype=torch.bool)
        self.itself = torch.eye(self.captions, dtype=torch.bool, device=prompt.device)
        return self._logits(prompt.expand(rows, -1))[:: rows // images]

    def step(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Tokens [B, K], each the next of the caption `parents` [B, K] -> logits [B, K, V] of the tokens after them."""
        if not self.branching:
            return self._logits(tokens.view(-1, 1)).view(*tokens.shape, -1)
        itself = self.itself.expand(len(tokens), -1, -1)
        self.visible = torch.cat([gather_captions(self.visible, parents), itself], dim=-1)
        position = torch.full((1,), self.length, device=tokens.device)
        self.length += 1
        return self._logits(tokens, self.visible[:, None], position)

    def keep(self, images: Tensor) -> None:
        """Go on with these images alone."""
        rows = images
        if not self.branching:
            rows = (images[:, None] * self.captions + torch.arange(self.captions, device=images.device)).flatten()
        for layer in self.cache.self_attention_cache.layers:
            layer.batch_select_indices(rows)
        self.cache.cross_attention_cache.batch_select_indices(images)
        self.encoder_hidden_states = self.encoder_hidden_states[images]
        self.visible = self.visible[images]

    def _logits(self, tokens: Tensor, mask: Tensor | None = None, position: Tensor | None = None) -> Tensor:
        hidden_states = self.model.decoder(tokens, self.encoder_hidden_states, mask, self.cache, position)
        return self.model.lm_head(hidden_states).float()


class Constraints:
    """What may not be the next token, whatever the model thinks of it."""

    def __init__(self, options: "GenerationOptions", prompt: Tensor, end: int) -> None:
        self.least = len(prompt) + options.min_new_tokens
        self.ngram = options.no_repeat_ngram_size
        self.banned = [(prompt.new_tensor(ids[:-1]), ids[-1]) for ids in options.banned_ids]
        self.end = end

    def __call__(self, scores: Tensor, sequences: Tensor) -> Tensor:
        """Scores [B, K, V] of the tokens after `sequences` [B, K, T] -> the same, -inf at the forbidden."""
        scores, length = scores.clone(), sequences.shape[-1]
        if length < self.least:
            scores[..., self.end] = -torch.inf
        if 0 < self.ngram <= length:
            ngrams = sequences.unfold(-1, self.ngram, 1)
            repeats = (ngrams[..., :-1] == sequences[..., None, length + 1 - self.ngram :]).all(-1)
            limits = torch.where(repeats, -torch.inf, torch.inf).to(scores)
            scores.scatter_reduce_(-1, ngrams[..., -1], limits, "amin")
        for before, last in self.banned:
            if len(before) <= length:
                completes = (sequences[..., length - len(before) :] == before).all(-1)
                scores[..., last].masked_fill_(completes, -torch.inf)
        return scores


class Captions:
    """The captions of B images in the making, K each, every one going on from itself: greedy, or drawn.

    Attributes:
        sequences: [B, K, T], prompt included.
        log_probs: [B, K, T - 1], those of all tokens but the first, under the model itself.
        done: [B], images whose captions are complete.
    """

    def __init__(self, options: "GenerationOptions", prompt: Tensor, prompt_log_probs: Tensor, end: int) -> None:
        """`prompt_log_probs` [B, T - 1] are those of a prompt [T] on each image."""
        images, self.count = len(prompt_log_probs), options.num_captions
        self.options = options
        self.end = end
        self.forbid = Constraints(options, prompt, end)
        self.sequences = prompt.expand(images, self.count, -1)
        self.log_probs = prompt_log_probs[:, None].expand(-1, self.count, -1)
        self.parents = torch.arange(self.count, device=prompt.device).expand(images, -1)
        self.ended = torch.zeros(images, self.count, dtype=torch.bool, device=prompt.device)
        self.done = self.ended.all(1)
        if options.seed is not None:
            self.generator = torch.Generator().manual_seed(options.seed)

    def advance(self, logits: Tensor, is_last: bool) -> tuple[Tensor, Tensor]:
        """Choose the tokens [B, K] after the sequences by their logits [B, K, V].

        Returns:
            The tokens, and for each the caption [B, K] that it goes on from.
        """
        scores = self.forbid(logits, self.sequences)
        tokens = (self._draw(scores) if self.options.do_sample else scores.argmax(-1))[..., None]
        self.sequences = torch.cat([self.sequences, tokens], dim=-1)
        self.log_probs = torch.cat([self.log_probs, logits.log_softmax(-1).gather(-1, tokens)], dim=-1)
        self.ended = self.ended | (tokens[..., 0] == self.end)
        self.done = self.ended.all(1)
        return tokens[..., 0], self.parents[: len(tokens)]

    def _draw(self, scores: Tensor) -> Tensor:
        """[B, K, V] -> [B, K], by temperature, top-k and top-p.

        With a seed by the Gumbel-max trick: argmax(logits + Gumbel noise) is a draw from softmax(logits) (Maddison et
        al. 2014, https://arxiv.org/abs/1411.0030). The noise of a step, [K, V], is shared by the images, which makes an
        image's captions independent of its neighbours.
        """
        options = self.options
        warpers = LogitsProcessorList([TemperatureLogitsWarper(float(options.temperature))])
        if options.top_k > 0:
            warpers.append(TopKLogitsWarper(options.top_k))
        if options.top_p < 1:
            warpers.append(TopPLogitsWarper(float(options.top_p)))
        warped = warpers(None, scores.flatten(0, 1))
        if options.seed is None:
            return torch.multinomial(warped.softmax(-1), 1).view(scores.shape[:2])
        uniform = torch.rand(scores.shape[1:], generator=self.generator, dtype=torch.float64)
        noise = -torch.log(-torch.log(uniform.clamp(min=1e-300))).to(scores)
        return (warped.view(scores.shape) + noise).argmax(-1)

    def keep(self, images: Tensor) -> None:
        """Go on with these images alone."""
        self.sequences, self.log_probs = self.sequences[images], self.log_probs[images]
        self.ended, self.done = self.ended[images], self.done[images]

    def written(self, images: list[int]) -> tuple[Tensor, Tensor]:
        """Sequences and log-probabilities of these images' captions; what stands after an end of sequence is void."""
        return self.sequences[images], self.log_probs[images]


class Beams(Captions):
    """Beam search as transformers has it: K beams an image, and the K best captions that have ended so far.

    A caption that ends among the K best continuations of a step is scored by sum(log p) / length ** length_penalty. An
    image is done once its K captions all score above what its best beam has now.
    """

    def __init__(self, options: "GenerationOptions", prompt: Tensor, prompt_log_probs: Tensor, end: int) -> None:
        super().__init__(options, prompt, prompt_log_probs, end)
        self.prompt_length = len(prompt)
        # All beams of an image are the same at first: one of them goes on.
        self.scores = prompt_log_probs.new_full(self.ended.shape, NOT_YET)
        self.scores[:, 0] = 0
        self.best_scores = torch.full_like(self.scores, NOT_YET)
        self.best_sequences, self.best_log_probs = self.sequences, self.log_probs

    def advance(self, logits: Tensor, is_last: bool) -> tuple[Tensor, Tensor]:
        log_probs = logits.log_softmax(-1)
        totals = self.forbid(log_probs, self.sequences) + self.scores[..., None]
        # At most K of the 2 K best can end.
        totals, chosen = totals.flatten(1).topk(2 * self.count)
        parents, tokens = chosen // logits.shape[-1], chosen % logits.shape[-1]
        sequences = torch.cat([gather_captions(self.sequences, parents), tokens[..., None]], dim=-1)
        token_log_probs = log_probs.flatten(1).gather(1, chosen)[..., None]
        log_probs = torch.cat([gather_captions(self.log_probs, parents), token_log_probs], dim=-1)
        ends = torch.ones_like(tokens, dtype=torch.bool) if is_last else tokens == self.end
        length = (sequences.shape[-1] - self.prompt_length) ** self.options.length_penalty
        self._collect(sequences, log_probs, totals / length, ends)

        self.scores, going_on = (totals + ends * NOT_YET).topk(self.count)
        self.sequences = gather_captions(sequences, going_on)
        self.log_probs = gather_captions(log_probs, going_on)
        self.done = self.done | (self.scores[:, 0] / length <= self.best_scores.amin(1))
        return tokens.gather(1, going_on), parents.gather(1, going_on)

    def _collect(self, sequences: Tensor, log_probs: Tensor, scores: Tensor, ends: Tensor) -> None:
        """Let those of the K best continuations that end compete with the captions that ended before."""
        first = slice(None), slice(self.count)
        scores = scores.masked_fill(~ends | self.done[:, None], NOT_YET)
        self.best_scores, best = torch.cat([self.best_scores, scores[first]], dim=1).topk(self.count)
        before = F.pad(self.best_sequences, (0, 1)), F.pad(self.best_log_probs, (0, 1))
        self.best_sequences = gather_captions(torch.cat([before[0], sequences[first]], dim=1), best)
        self.best_log_probs = gather_captions(torch.cat([before[1], log_probs[first]], dim=1), best)

    def keep(self, images: Tensor) -> None:
        super().keep(images)
        self.scores, self.best_scores = self.scores[images], self.best_scores[images]
        self.best_sequences, self.best_log_probs = self.best_sequences[images], self.best_log_probs[images]

    def written(self, images: list[int]) -> tuple[Tensor, Tensor]:
        count = self.options.num_return_sequences
        return self.best_sequences[images, :count], self.best_log_probs[images, :count]


def gather_captions(tensor: Tensor, captions: Tensor) -> Tensor:
    """[B, K, T] at `captions` [B, J] -> [B, J, T]."""
    return tensor.gather(1, captions[..., None].expand(-1, -1, tensor.shape[-1]))
