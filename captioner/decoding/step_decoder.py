"""The decoder a step at a time, over caches whose rows images enter and leave at any step.

Shapes: B images, each a row of the caches, K captions an image, T tokens of the prompt, S slots of a row, H heads, D
width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache


@dataclass
class Slots:
    """Where all layers write the keys and values of the next tokens, `next` [B, K]; from `window` on none is in use."""

    next: Tensor
    window: int


class SlotLayer(DynamicLayer):
    """Self-attention keys and values [B, S, H, D / H] of a layer, written in place: none is copied as captions grow."""

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self.slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, heads, count, width = key_states.shape
        self.keys = key_states.new_zeros(rows, count, heads, width)  # what a mask hides has to be a number all the same
        self.values = torch.zeros_like(self.keys)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Take [B, H, K, D / H] of the next tokens; give [B, H, window, D / H]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        window, slots = self.slots.window, self.keys.shape[1]
        if window > slots:
            more = (0, 0, 0, 0, 0, max(window, 2 * slots) - slots)
            self.keys, self.values = F.pad(self.keys, more), F.pad(self.values, more)
        rows = torch.arange(len(self.keys), device=self.keys.device)[:, None]
        self.keys[rows, self.slots.next] = key_states.transpose(1, 2)
        self.values[rows, self.slots.next] = value_states.transpose(1, 2)
        return self.keys[:, :window].transpose(1, 2), self.values[:, :window].transpose(1, 2)

    def get_seq_length(self) -> int:
        return 0  # asked for before the prompt alone: later tokens bring their positions


class StepDecoder:
    """The decoder, a step at a time, over K captions of each of B images, every image at a step of its own.

    What is cached is written once and stays where it is, in slots of a row. The captions of an image share a row, where
    each step puts their K tokens side by side, and a mask shows a caption its own ancestors (tree attention, Miao et
    al. 2023, https://arxiv.org/abs/2305.09781, section 4.2). A beam that gives way to another thus changes the mask,
    and no key or value moves. The prompt's and the image's keys and values are there once.
    """

    def __init__(self, model: PreTrainedModel, encoder_hidden_states: Tensor, captions: int, longest: int) -> None:
        """`encoder_hidden_states` are [B, P, D]; `longest` is the most new tokens of a caption."""
        self.model = model
        self.encoder_hidden_states = encoder_hidden_states
        self.longest = longest
        self.captions = captions

    def start(self, prompt: Tensor) -> Tensor:
        """A prompt [T] of all captions -> logits [B, T, V] of the tokens after each of its own."""
        rows, (self.prompt_length,) = len(self.encoder_hidden_states), prompt.shape
        positions = torch.arange(len(prompt), device=prompt.device)
        self.slots = Slots(positions.expand(rows, -1), self.prompt_length)
        layers = [SlotLayer(self.slots) for _ in self.model.decoder.layers]
        self.cache = EncoderDecoderCache(Cache(layers=layers), DynamicCache())
        every_slot = self.prompt_length + self.longest * self.captions
        self.steps = prompt.new_zeros(rows)  # taken after the prompt
        self.visible = prompt.new_zeros(rows, self.captions, every_slot, dtype=torch.bool)
        self.visible[..., : self.prompt_length] = True
        logits = self._logits(prompt.expand(rows, -1))
        # The image's keys and values are cached: from here on it is asked how many images there are, and no more.
        self.encoder_hidden_states = self.encoder_hidden_states[:, :0]
        return logits

    def step(self, tokens: Tensor, parents: Tensor, most_steps: int) -> Tensor:
        """Tokens [B, K], each the next of the caption `parents` [B, K] -> logits [B, K, V] of the tokens after them.

        `most_steps` is the number of this step to the image that came first of those still in the making.
        """
        if self.captions > 1:
            self.visible = gather_captions(self.visible, parents)
        # A place that waits for the next image may have gone on for longer: it stays within what the others use.
        most_steps = min(most_steps, self.longest)
        steps = self.steps.clamp(max=most_steps - 1)[:, None]
        own = torch.arange(self.captions, device=tokens.device)
        self.slots.next = self.prompt_length + steps * self.captions + own
        self.slots.window = self.prompt_length + most_steps * self.captions
        self.visible.scatter_(-1, self.slots.next[..., None], True)
        self.steps += 1
        mask = self.visible[:, None, :, : self.slots.window]
        return self._logits(tokens.view(len(self.steps), -1), mask, self.prompt_length + steps).view(*tokens.shape, -1)

    def state(self) -> list[tuple[Any, str]]:
        """The tensors that a step replaces, as owner and attribute."""
        return [(self, "visible"), (self, "steps")]

    def keep(self, images: Tensor) -> None:
        """Go on with these images alone."""
        for layer in self.cache.self_attention_cache.layers:
            layer.keys, layer.values = layer.keys[images], layer.values[images]
        self.cache.cross_attention_cache.batch_select_indices(images)
        self.encoder_hidden_states = self.encoder_hidden_states[images]
        self.visible, self.steps = self.visible[images], self.steps[images]

    def put(self, images: Tensor | slice, other: "StepDecoder", others: Tensor | slice) -> None:
        """Let the images `others` of `other`, which has started, take the places of these images."""
        prompt = slice(self.prompt_length)
        mine, its = self.cache.self_attention_cache.layers, other.cache.self_attention_cache.layers
        for layer, source in zip(mine, its, strict=True):
            layer.keys[images, prompt] = source.keys[others, prompt]
            layer.values[images, prompt] = source.values[others, prompt]
        mine, its = self.cache.cross_attention_cache.layers, other.cache.cross_attention_cache.layers
        for layer, source in zip(mine, its, strict=True):
            layer.keys[images], layer.values[images] = source.keys[others], source.values[others]
        self.visible[images], self.steps[images] = other.visible[others], other.steps[others]

    def _logits(self, tokens: Tensor, mask: Tensor | None = None, position: Tensor | None = None) -> Tensor:
        hidden_states = self.model.decoder(tokens, self.encoder_hidden_states, mask, self.cache, position)
        return self.model.lm_head(hidden_states).float()


def gather_captions(tensor: Tensor, captions: Tensor) -> Tensor:
    """[B, K, T] at `captions` [B, J] -> [B, J, T]."""
    return tensor.gather(1, captions[..., None].expand(-1, -1, tensor.shape[-1]))
