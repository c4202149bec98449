"""The training task: one module that encodes a batch once and returns the summed loss of each objective.

Shapes: B images, K captions per image (given, drawn, or both), T tokens, D width, V vocabulary, C classes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioner.config import Objective, PhaseConfig, TagsConfig
from captioner.data.batches import Batch, to_device
from captioner.model.modeling_captioner import IGNORE_INDEX, caption_cross_entropy
from captioner.training.caption_packing import PackedCaptions, pack_captions
from captioner.training.contrastive import contrastive_loss
from captioner.training.fsdp import WholeModel
from captioner.training.rewards import SelfCritic, policy_gradient_loss
from captioner.training.teacher import Teacher

Losses = dict[Objective, Tensor]

GIVEN_CAPTIONS: tuple[Objective, ...] = ("captioning", "language_modeling")
"""Objectives that train on the data set's captions, in the order in which the captions are packed."""


class CaptioningTask(nn.Module):
    """The captioner with all its objectives. accelerate wraps this module, so gradients are synchronised once a step.

    Teacher, critic and whole model are plain attributes, so the only parameters of the task are the captioner's.
    """

    def __init__(
        self,
        whole: WholeModel,
        tags: TagsConfig | None,
        critic: SelfCritic | None,
        teacher: Teacher | None,
        compiled: bool = False,
    ) -> None:
        """`whole` holds the captioner; rewards need a critic, distillation a teacher, tags their settings.

        With `compiled`, losses are computed by torch.compile's encoder and decoder; drawing captions is not compiled.
        """
        super().__init__()
        self.captioner = captioner = whole.model
        # A tuple, which does not register the two as submodules a second time.
        self.towers: tuple[Callable[..., Any], Callable[..., Any]] = captioner.encoder, captioner.decoder
        if compiled:
            self.towers = torch.compile(captioner.encoder.forward), torch.compile(captioner.decoder.forward)
        self.whole = whole
        self.tags = tags
        self.critic = critic
        self.teacher = teacher

    def item_counts(self, batch: Batch, phase: PhaseConfig) -> dict[Objective, int]:
        """Count each objective's items, without a forward pass, so that one mean can span many batches."""
        tokens = int((batch.labels != IGNORE_INDEX).sum())
        captioned = int(batch.captioned.sum())
        tagged = 0
        if batch.tags is not None:
            known = batch.tags != IGNORE_INDEX
            tagged = int((known if self._multi_label else known.any(1)).sum())
        return {
            "captioning": tokens,
            "language_modeling": tokens,
            "reward": captioned * phase.reward.num_samples,
            "contrastive": captioned,
            "tags": tagged,
            "distillation": len(batch.ids) - len(batch.errors),
        }

    def forward(self, batch: Batch, phase: PhaseConfig, step: int, gather: bool = True) -> tuple[Losses, Losses]:
        """Encode the batch once and compute the losses of the phase's objectives.

        Args:
            step: the training step; it seeds the drawn captions and selects the caption for the contrastive loss.
            gather: let the contrastive loss compare with the images of all processes; every process must then run a
                forward pass at the same time.

        Returns:
            By objective: the losses, and other values to log (the rewards). Both are sums over the objective's items.
        """
        names = phase.objectives.keys()
        losses: Losses = {}
        logged: Losses = {}
        encode, _ = self.towers
        states = encode(**batch.encoder_inputs).last_hidden_state if batch.encoder_inputs else None
        if names & {*GIVEN_CAPTIONS, "reward"}:
            losses, logged = self._caption_losses(batch, states, phase, step)
        if "tags" in names:
            losses["tags"] = self._tag_loss(batch, states)
        if "distillation" in names:
            losses["distillation"] = self._distillation_loss(batch, states)
        if "contrastive" in names:
            losses["contrastive"] = self._contrastive_loss(batch, states, step, gather)
        return losses, logged

    def _caption_losses(
        self, batch: Batch, states: Tensor | None, phase: PhaseConfig, step: int
    ) -> tuple[Losses, Losses]:
        """Decode given and drawn captions in one pass, with the images' states if there are any.

        Captions are packed on the host, where drawn captions already are because of their rewards.
        """
        given = _by_image(batch)
        labels: Losses = {name: given for name in GIVEN_CAPTIONS if name in phase.objectives}
        drawn = None
        if "reward" in phase.objectives:
            assert self.critic is not None and states is not None
            with self.whole.gathered() as captioner:
                drawn = self.critic.draw(captioner, states, batch, phase.reward, step)
            labels["reward"] = drawn.labels
        packed = pack_captions(labels, partial(self._decoder_inputs, phase=phase)).to(self.captioner.device)
        _, decode = self.towers
        logits = packed_logits(decode, self.captioner.lm_head, packed, states)

        losses: Losses = {}
        logged: Losses = {}
        for name, own in labels.items():
            valid = own != IGNORE_INDEX
            targets = to_device(own[valid], self.captioner.device)
            if drawn is not None and name == "reward":
                advantages = to_device(drawn.advantages[:, :, None].expand_as(own)[valid], self.captioner.device)
                losses[name] = policy_gradient_loss(logits[name], targets, advantages)
                logged[name] = to_device(drawn.rewards.sum(), self.captioner.device)
            else:
                weights = None
                if batch.weights is not None:
                    weights = to_device(batch.weights[:, None, None].expand_as(own)[valid], self.captioner.device)
                losses[name], _ = caption_cross_entropy(logits[name], targets, phase.label_smoothing, weights)
        return losses, logged

    def _decoder_inputs(self, labels: Tensor, phase: PhaseConfig) -> Tensor:
        input_ids = self.captioner.prepare_decoder_input_ids_from_labels(labels)
        pad_token_id = self.captioner.config.pad_token_id
        return hide_words(input_ids, phase.word_dropout, pad_token_id) if phase.word_dropout > 0 else input_ids

    def _contrastive_loss(self, batch: Batch, states: Tensor | None, step: int, gather: bool) -> Tensor:
        """Contrast every captioned image with one of its captions, a different one at each step."""
        assert self.captioner.heads.contrastive is not None
        device, given = self.captioner.device, _by_image(batch)
        valid = given != IGNORE_INDEX
        number_of_captions = valid.any(2).sum(1).clamp(min=1)
        chosen = given[torch.arange(len(given)), step % number_of_captions][batch.captioned]
        last = to_device((chosen != IGNORE_INDEX).sum(1) - 1, device)
        input_ids = to_device(self.captioner.prepare_decoder_input_ids_from_labels(chosen), device)
        texts = self.captioner.decoder(input_ids, None)[torch.arange(len(last), device=device), last]
        images, texts, scale = self.captioner.heads.contrastive(states, texts)
        captioned = to_device(batch.captioned.nonzero()[:, 0], device)
        return contrastive_loss(images[captioned], texts, scale, gather)

    def _distillation_loss(self, batch: Batch, states: Tensor | None) -> Tensor:
        assert self.teacher is not None and self.captioner.heads.teacher is not None
        logits = self.captioner.heads.teacher(states)
        rows = [row for row in range(len(batch.ids)) if row not in batch.errors]
        readable = to_device(torch.tensor(rows, dtype=torch.long), self.captioner.device)
        return self.teacher.loss(logits[readable], batch.encoder_inputs["pixel_values"][readable])

    def _tag_loss(self, batch: Batch, states: Tensor | None) -> Tensor:
        assert batch.tags is not None and self.tags is not None and self.captioner.heads.tags is not None
        logits = self.captioner.heads.tags(states)
        known = batch.tags != IGNORE_INDEX
        if not self._multi_label:
            labelled = known.any(1).nonzero()[:, 0]
            targets = to_device(batch.tags[labelled], logits.device).float()
            return F.cross_entropy(logits[to_device(labelled, logits.device)].float(), targets, reduction="sum")
        places = known.flatten().nonzero()[:, 0]
        targets = to_device(batch.tags[known], logits.device).float()
        logits = logits.flatten()[to_device(places, logits.device)].float()
        if self.tags.loss == "asymmetric":
            return asymmetric_loss(logits, targets)
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")

    @property
    def _multi_label(self) -> bool:
        return self.tags is not None and self.tags.problem_type == "multi_label_classification"


def _by_image(batch: Batch) -> Tensor:
    """Return the labels of a batch as [B, K, T]."""
    return batch.labels.unflatten(0, (max(len(batch.ids), 1), -1))


def packed_logits(
    decoder: Callable[..., Tensor], lm_head: nn.Module, packed: PackedCaptions, states: Tensor | None
) -> Losses:
    """Return the logits [N, V] of each objective's N valid labels; the images' `states` are [B, P, D] or None."""
    hidden_states = decoder(packed.input_ids, states, packed.attention_mask, position_ids=packed.position_ids)
    hidden_states = hidden_states.flatten(0, 1)
    return {name: lm_head(hidden_states[own]) for name, own in packed.places.items()}


def asymmetric_loss(logits: Tensor, targets: Tensor, gamma_negative: float = 4.0, margin: float = 0.05) -> Tensor:
    """Sum the asymmetric loss over multi-label targets (Ridnik et al. 2021, https://arxiv.org/abs/2009.14119, eq. 7).

    The lower the predicted probability of an absent label, the less it counts; below `margin` it does not count at all.
    `logits` may have any shape; `targets` have the same shape and are 0 or 1.
    """
    shifted = (logits.sigmoid() - margin).clamp(min=0)
    present = targets * F.logsigmoid(logits)
    absent = (1 - targets) * shifted**gamma_negative * torch.log1p(-shifted)
    return -(present + absent).sum()


def hide_words(input_ids: Tensor, share: float, pad_token_id: int) -> Tensor:
    """Replace a share of the input tokens by padding, so that the decoder must take them from the image.

    Word dropout (Bowman et al. 2016, https://arxiv.org/abs/1511.06349, section 3.1). The start token stays.
    """
    hidden = torch.rand(input_ids.shape, device=input_ids.device) < share
    hidden[:, 0] = False
    return input_ids.masked_fill(hidden, pad_token_id)
