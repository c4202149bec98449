"""Self-critical sequence training: captions drawn from the model, rewarded with CIDEr-D against the references.

Source: S. Rennie et al., "Self-critical Sequence Training for Image Captioning", CVPR 2017, with the baseline of
R. Luo, "A Better Variant of Self-Critical Sequence Training", https://arxiv.org/abs/2003.09971.

Shapes: B images, K captions drawn for an image, T tokens, V vocabulary.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutput
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from captioner.config import RewardConfig
from captioner.cpu.packed_linears import packed_linears
from captioner.data.batches import Batch, to_device
from captioner.decoding.hypothesis import Hypothesis
from captioner.decoding.options import GenerationOptions
from captioner.decoding.stream import generate
from captioner.metrics.cider import CiderDReward
from captioner.metrics.ptb import tokenize
from captioner.model.modeling_captioner import IGNORE_INDEX, CaptionerForConditionalGeneration
from captioner.training.phases import evaluating

END = "</s>"
"""The last word of every finished caption. Without a reward for it the model learns to stop in mid-sentence: n-grams
such as "in a" occur in most references, the words after them often do not."""


@dataclass(frozen=True)
class DrawnCaptions:
    """Captions drawn from the model: labels [B, K, T], rewards and advantages [B, K]; all on the host."""

    labels: Tensor
    rewards: Tensor
    advantages: Tensor


class SelfCritic:
    """Draws captions and scores them by CIDEr-D against the references; the end of sequence counts as a word."""

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
        """Draw captions for a batch at this step of the training; the advantage is the reward minus the baseline.

        The baseline is the mean reward of the image's other captions (Luo 2020, eq. 5), or the reward of its greedy
        caption. Captions are drawn without dropout, as in inference; the loss is then computed with dropout.
        """
        with evaluating(model.decoder), packed_linears(model):
            uniforms = uniform_numbers(batch.ids, config.num_samples, self.max_tokens, (self.seed, step))
            labels = draw_captions(model, encoder_hidden_states, to_device(uniforms, encoder_hidden_states.device))
            rewards = self.reward(batch.ids, labels)
            if config.baseline == "greedy":
                baseline = self.reward(batch.ids, most_probable_captions(model, encoder_hidden_states, self.max_tokens))
            else:
                baseline = (rewards.sum(1, keepdim=True) - rewards) / (config.num_samples - 1)
        captioned = batch.captioned[:, None]
        return DrawnCaptions(labels, rewards * captioned, (rewards - baseline) * captioned)

    def reward(self, images: Sequence[str | int], labels: Tensor) -> Tensor:
        """Return the rewards [B, K] of captions [B, K, T]; 0 for an image without references."""
        rows = [[token for token in row if token != IGNORE_INDEX] for row in labels.flatten(0, 1).tolist()]
        finished = [self.tokenizer.eos_token_id in row for row in rows]
        words = _words(self.tokenizer.batch_decode(rows, skip_special_tokens=True), finished)
        repeated = [image for image in images for _ in range(labels.shape[1])]
        scored = [row for row, image in enumerate(repeated) if image in self.images]
        rewards = np.zeros(len(words))
        rewards[scored] = self.cider([repeated[row] for row in scored], [words[row] for row in scored])
        return torch.from_numpy(rewards).float().view(labels.shape[:2])


def _words(texts: Iterable[str], finished: Sequence[bool]) -> list[list[str]]:
    return [[*words, END] if ended else words for words, ended in zip(tokenize(texts), finished, strict=True)]


def policy_gradient_loss(logits: Tensor, labels: Tensor, advantages: Tensor) -> Tensor:
    """Sum -advantage * log p(token) over tokens, including the end of sequence (Rennie et al. 2017, eq. 7).

    `logits` are [N, V], `labels` [N]; `advantages` [N] holds for each token the advantage of its caption.
    """
    return (advantages * F.cross_entropy(logits.float(), labels, reduction="none")).sum()


def draw_captions(model: CaptionerForConditionalGeneration, encoder_hidden_states: Tensor, uniforms: Tensor) -> Tensor:
    """Draw K captions for each image from the model's distribution.

    Args:
        encoder_hidden_states: [B, P, D].
        uniforms: [B, K, T] numbers in [0, 1). The captions depend only on these numbers and the model.

    Returns:
        Labels [B, K, T'] on the host: tokens including the end of sequence, then `IGNORE_INDEX`.
    """
    _, count, length = uniforms.shape
    options = GenerationOptions(do_sample=True, num_return_sequences=count, max_new_tokens=length)
    return _write(model, encoder_hidden_states, options, uniforms)


def most_probable_captions(
    model: CaptionerForConditionalGeneration, encoder_hidden_states: Tensor, max_tokens: int
) -> Tensor:
    """Return greedy captions as labels [B, 1, T]."""
    return _write(model, encoder_hidden_states, GenerationOptions(num_beams=1, max_new_tokens=max_tokens))


def _write(
    model: CaptionerForConditionalGeneration,
    encoder_hidden_states: Tensor,
    options: GenerationOptions,
    uniforms: Tensor | None = None,
) -> Tensor:
    outputs = BaseModelOutput(encoder_hidden_states)
    groups = generate(model, {"encoder_outputs": outputs}, options, uniforms)
    captions = [_label_ids(caption, model.config.eos_token_id) for group in groups for caption in group]
    labels = pad_sequence([torch.tensor(ids) for ids in captions], batch_first=True, padding_value=IGNORE_INDEX)
    return labels.view(len(groups), -1, labels.shape[1])


def _label_ids(caption: Hypothesis, end: int) -> list[int]:
    return [*caption.token_ids, *([] if caption.end_log_prob is None else [end])]


def uniform_numbers(images: Sequence[str | int], draws: int, length: int, seed: Sequence[int]) -> Tensor:
    """Return numbers [B, K, T] in [0, 1) that depend only on `seed` and each image's id, not on batch or process."""
    rows = [
        np.random.default_rng((*seed, zlib.crc32(str(image).encode()))).random((draws, length), np.float32)
        for image in images
    ]
    return torch.from_numpy(np.stack(rows))
