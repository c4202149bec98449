"""Self-critical sequence training: captions drawn from the model, rewarded with CIDEr-D against the references.

Source: S. Rennie et al., "Self-critical Sequence Training for Image Captioning", CVPR 2017, with the baseline of
R. Luo, "A Better Variant of Self-Critical Sequence Training", https://arxiv.org/abs/2003.09971.

Shapes: B images, K captions drawn for an image, T tokens, V vocabulary.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from captioner.config import RewardConfig
from captioner.data.batches import Batch, send
from captioner.metrics.cider import CiderDReward
from captioner.metrics.ptb import tokenize
from captioner.model.modeling_captioner import IGNORE_INDEX, CaptionerForConditionalGeneration
from captioner.train.phases import evaluating

END = "</s>"
"""The last word of every finished caption. Were it not rewarded, captions would learn to break off: n-grams such as
"in a" score in most references, and the words that have to follow them cost."""


@dataclass(frozen=True)
class DrawnCaptions:
    """Captions of the model's own making: labels [B, K, T], their rewards and advantages [B, K]."""

    labels: Tensor
    rewards: Tensor
    advantages: Tensor


class SelfCritic:
    """Draws captions and rewards them: CIDEr-D against the images' captions, the end of sequence counted as a word."""

    def __init__(
        self,
        captions: Mapping[str | int, Sequence[str]],
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        seed: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.seed = seed
        self.images = frozenset(captions)
        self.cider = CiderDReward({image: _words(texts, [True] * len(texts)) for image, texts in captions.items()})

    def draw(
        self,
        model: CaptionerForConditionalGeneration,
        encoder_hidden_states: Tensor,
        batch: Batch,
        config: RewardConfig,
        step: int,
    ) -> DrawnCaptions:
        """Draw captions for a batch at this step of the training; the advantage is the reward above the baseline.

        The baseline is the mean reward of the image's other captions (Luo 2020, eq. 5), or that of its greedy caption.
        The decoder draws without dropout: what it would write, though what it learns from that is learnt with dropout.
        """
        with torch.no_grad(), evaluating(model.decoder):
            uniforms = uniform_numbers(batch.ids, config.num_samples, self.max_tokens, (self.seed, step))
            labels = draw_captions(model, encoder_hidden_states, uniforms.to(encoder_hidden_states.device))
            rewards = self.reward(batch.ids, labels)
            if config.baseline == "greedy":
                baseline = self.reward(batch.ids, most_probable_captions(model, encoder_hidden_states, self.max_tokens))
            else:
                baseline = (rewards.sum(1, keepdim=True) - rewards) / (config.num_samples - 1)
        captioned = send(batch.captioned, rewards.device)[:, None]
        return DrawnCaptions(labels, rewards * captioned, (rewards - baseline) * captioned)

    def reward(self, images: Sequence[str | int], labels: Tensor) -> Tensor:
        """[B, K] of captions [B, K, T] for these images; 0 for one that has no captions to judge by."""
        rows = [[token for token in row if token != IGNORE_INDEX] for row in labels.flatten(0, 1).tolist()]
        finished = [self.tokenizer.eos_token_id in row for row in rows]
        words = _words(self.tokenizer.batch_decode(rows, skip_special_tokens=True), finished)
        repeated = [image for image in images for _ in range(labels.shape[1])]
        judged = [row for row, image in enumerate(repeated) if image in self.images]
        rewards = np.zeros(len(words))
        rewards[judged] = self.cider([repeated[row] for row in judged], [words[row] for row in judged])
        return torch.from_numpy(rewards).to(labels.device, torch.float32).view(labels.shape[:2])


def _words(texts: Iterable[str], finished: Sequence[bool]) -> list[list[str]]:
    return [[*words, END] if ended else words for words, ended in zip(tokenize(texts), finished, strict=True)]


def policy_gradient_loss(logits: Tensor, labels: Tensor, advantages: Tensor) -> Tensor:
    """Sum over captions of -advantage * log p(caption), the end of sequence included (Rennie et al. 2017, eq. 7).

    `logits` [N, V] are those of the N valid `labels` [B, K, T], in their order; `advantages` are [B, K].
    """
    valid = labels != IGNORE_INDEX
    negative_log_likelihood = F.cross_entropy(logits.float(), labels[valid], reduction="none")
    return (advantages[:, :, None].expand(labels.shape)[valid] * negative_log_likelihood).sum()


def draw_captions(model: CaptionerForConditionalGeneration, encoder_hidden_states: Tensor, uniforms: Tensor) -> Tensor:
    """Draw K captions for each image from the model's own distribution.

    Args:
        encoder_hidden_states: [B, P, D].
        uniforms: [B, K, T] numbers in [0, 1); the token at a step is the one at which the cumulated probabilities pass
            the step's number, so that the captions depend on these numbers and the model alone.

    Returns:
        Labels [B, K, T']: tokens, end of sequence included, then `IGNORE_INDEX`.
    """
    numbers = uniforms.flatten(0, 1)

    def draw(logits: Tensor, rows: Tensor, step: int) -> Tensor:
        cumulated = logits.float().softmax(-1).cumsum(-1)
        # The last sum can fall short of 1 by rounding: measured against it, a token of no probability is never drawn.
        threshold = numbers[rows, step, None] * cumulated[:, -1:]
        return torch.searchsorted(cumulated, threshold, right=True).clamp(max=cumulated.shape[-1] - 1)

    return _write(model, encoder_hidden_states, uniforms.shape[1], uniforms.shape[2], draw)


def most_probable_captions(
    model: CaptionerForConditionalGeneration, encoder_hidden_states: Tensor, max_tokens: int
) -> Tensor:
    """Greedy captions as labels [B, 1, T]."""
    return _write(model, encoder_hidden_states, 1, max_tokens, lambda logits, *_: logits.argmax(-1, keepdim=True))


def _write(
    model: CaptionerForConditionalGeneration,
    encoder_hidden_states: Tensor,
    captions: int,
    max_tokens: int,
    choose: Callable[[Tensor, Tensor, int], Tensor],
) -> Tensor:
    """K captions of every image, token by token: `choose` maps logits [N, V], their rows [N] among B * K and the step
    to ids [N, 1]. Images whose captions have all ended are left out as soon as they are a quarter."""
    device = encoder_hidden_states.device
    rows = torch.arange(len(encoder_hidden_states) * captions, device=device)
    tokens = torch.full((len(rows), 1), model.config.decoder_start_token_id, device=device)
    labels = torch.full((len(rows), max_tokens), IGNORE_INDEX, device=device)
    running = torch.ones(len(rows), dtype=torch.bool, device=device)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    for step in range(max_tokens):
        hidden_states = model.decoder(tokens, encoder_hidden_states, cache=cache)
        tokens = choose(model.lm_head(hidden_states)[:, -1], rows, step)
        labels[rows[running], step] = tokens[running, 0]
        running &= tokens[:, 0] != model.config.eos_token_id
        images = running.view(-1, captions).any(1)
        going_on = int(images.sum())
        if not going_on:
            break
        if 4 * going_on <= 3 * len(images):
            encoder_hidden_states, left = encoder_hidden_states[images], images.repeat_interleave(captions)
            cache.cross_attention_cache.batch_select_indices(images)
            cache.self_attention_cache.batch_select_indices(left)
            rows, tokens, running = rows[left], tokens[left], running[left]
    return labels[:, : step + 1].view(-1, captions, step + 1)


def uniform_numbers(images: Sequence[str | int], draws: int, length: int, seed: Sequence[int]) -> Tensor:
    """[B, K, T] in [0, 1), a function of `seed` and each image's id: the same in whatever batch or process it falls."""
    rows = [
        np.random.default_rng((*seed, zlib.crc32(str(image).encode()))).random((draws, length), np.float32)
        for image in images
    ]
    return torch.from_numpy(np.stack(rows))
