"""What is learnt: each objective gives a summed loss, and says how many items it sums over.

Shapes: B images, K captions an image (given, drawn, or both), T tokens.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioner.config import Objective, PhaseConfig
from captioner.data.dataset import Batch
from captioner.model.modeling_captioner import IGNORE_INDEX, CaptionerForConditionalGeneration, caption_cross_entropy
from captioner.train.rewards import SelfCritic, policy_gradient_loss


def item_counts(batch: Batch, phase: PhaseConfig) -> dict[Objective, int]:
    """Items of each objective in a batch; known before the forward pass, so that one mean can span many batches."""
    valid = batch.labels != IGNORE_INDEX
    captioned_images = int(valid.view(len(batch.ids), -1).any(1).sum())
    return {"captioning": int(valid.sum()), "reward": captioned_images * phase.reward.num_samples}


def summed_losses(
    model: CaptionerForConditionalGeneration,
    wrapped: nn.Module,
    batch: Batch,
    phase: PhaseConfig,
    critic: SelfCritic | None,
    step: int,
) -> tuple[dict[Objective, Tensor], dict[Objective, Tensor]]:
    """Losses of the phase's objectives from one pass: captions given and captions drawn share an image's encoding.

    `wrapped` is `model` as prepared for many processes; `critic` is needed for the reward, and `step` seeds its draws.

    Returns:
        By objective, the loss and what else is to be logged of it, both summed over its items.
    """
    labels: dict[Objective, Tensor] = {}  # by objective, [B, K, T]
    if "captioning" in phase.objectives:
        labels["captioning"] = batch.labels.unflatten(0, (len(batch.ids), -1))
    if "reward" in phase.objectives:
        assert critic is not None
        drawn = critic.draw(model, batch, phase.reward, step)
        labels["reward"] = drawn.labels
    logits = dict(zip(labels, _logits(model, wrapped, batch, list(labels.values()), phase.word_dropout), strict=True))
    losses: dict[Objective, Tensor] = {}
    logged: dict[Objective, Tensor] = {}
    if "captioning" in phase.objectives:
        losses["captioning"], _ = caption_cross_entropy(
            logits["captioning"], labels["captioning"], phase.label_smoothing
        )
    if "reward" in phase.objectives:
        losses["reward"] = policy_gradient_loss(logits["reward"], drawn.labels, drawn.advantages)
        logged["reward"] = drawn.rewards.sum()
    return losses, logged


def _logits(
    model: CaptionerForConditionalGeneration,
    wrapped: nn.Module,
    batch: Batch,
    labels: list[Tensor],
    word_dropout: float,
) -> list[Tensor]:
    """Logits [B, K, T, V] of each of the label sets [B, K, T], all decoded against one encoding of the images."""
    longest = max(rows.shape[2] for rows in labels)
    side_by_side = torch.cat([F.pad(rows, (0, longest - rows.shape[2]), value=IGNORE_INDEX) for rows in labels], dim=1)
    decoder_input_ids = model.prepare_decoder_input_ids_from_labels(side_by_side.flatten(0, 1))
    if word_dropout > 0:
        decoder_input_ids = hide_words(decoder_input_ids, word_dropout, model.config.pad_token_id)
    logits = wrapped(**batch.encoder_inputs, decoder_input_ids=decoder_input_ids).logits
    parts = logits.unflatten(0, side_by_side.shape[:2]).split([rows.shape[1] for rows in labels], dim=1)
    return [part[:, :, : rows.shape[2]] for part, rows in zip(parts, labels, strict=True)]


def hide_words(input_ids: Tensor, share: float, pad_token_id: int) -> Tensor:
    """Word dropout (Bowman et al. 2016, https://arxiv.org/abs/1511.06349, section 3.1): words that the decoder does not
    see it must find in the image. The start token stays."""
    hidden = torch.rand(input_ids.shape, device=input_ids.device) < share
    hidden[:, 0] = False
    return input_ids.masked_fill(hidden, pad_token_id)
