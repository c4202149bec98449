"""What is learnt: each objective gives a summed loss, and says how many items it sums over.

Shapes: B images, K captions an image (given, drawn, or both), T tokens, D width, V vocabulary, C classes.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioner.config import Objective, PhaseConfig, TagsConfig
from captioner.data.batches import Batch, send
from captioner.model.modeling_captioner import IGNORE_INDEX, CaptionerForConditionalGeneration, caption_cross_entropy
from captioner.train.caption_packing import PackedCaptions, pack_captions
from captioner.train.contrastive import contrastive_loss
from captioner.train.fsdp import WholeModel
from captioner.train.rewards import DrawnCaptions, SelfCritic, policy_gradient_loss
from captioner.train.teacher import Teacher

Losses = dict[Objective, Tensor]

GIVEN_CAPTIONS: tuple[Objective, ...] = ("captioning", "language_modeling")
"""What is learnt from the data set's own captions, in the order in which these are packed."""


class JointModel(nn.Module):
    """One pass for all objectives of a step: what is wrapped for many processes, whose gradients come together once."""

    def __init__(self, captioner: CaptionerForConditionalGeneration, compiled: bool = False) -> None:
        """`compiled`: encoder and decoder by torch.compile, in these passes alone; writing captions stays as it is."""
        super().__init__()
        self.captioner = captioner
        self.towers: tuple[Callable[..., Any], Callable[..., Any]] = captioner.encoder, captioner.decoder
        if compiled:
            self.towers = torch.compile(captioner.encoder.forward), torch.compile(captioner.decoder.forward)

    def forward(
        self,
        encoder_inputs: dict[str, Tensor],
        captions: Callable[[Tensor | None], tuple[PackedCaptions, DrawnCaptions | None]] | None,
        text: tuple[Tensor, Tensor] | None,
        objectives: Set[Objective],
    ) -> dict[str, Any]:
        """Encode the images once, and read off them what the objectives ask for.

        Args:
            encoder_inputs: of the encoder; empty where there are words alone, and the decoder is a language model.
            captions: from the images' states, what the decoder reads, and what of it was drawn from these states; for
                the logits [N, V] of each objective that has captions, N its valid labels.
            text: for the contrastive objective, [M, T] decoder inputs of captions and [M] their last positions.
        """
        captioner, heads = self.captioner, self.captioner.heads
        encode, decode = self.towers
        outputs: dict[str, Any] = {}
        image_states = encode(**encoder_inputs).last_hidden_state if encoder_inputs else None
        if captions is not None:
            packed, outputs["drawn"] = captions(image_states)
            states = decode(packed.input_ids, image_states, packed.attention_mask, position_ids=packed.position_ids)
            states = states.flatten(0, 1)
            outputs["logits"] = {name: captioner.lm_head(states[own]) for name, own in packed.places.items()}
        if "tags" in objectives and heads.tags is not None:
            outputs["tag_logits"] = heads.tags(image_states)
        if "distillation" in objectives and heads.teacher is not None:
            outputs["teacher_logits"] = heads.teacher(image_states)
        if text is not None and heads.contrastive is not None:
            input_ids, last = text
            states = captioner.decoder(input_ids, None)[torch.arange(len(last), device=last.device), last]
            outputs["images"], outputs["texts"], outputs["scale"] = heads.contrastive(image_states, states)
        return outputs


@dataclass(frozen=True)
class Objectives:
    """The losses of a recipe, with what they need beside the model."""

    whole: WholeModel
    critic: SelfCritic | None
    teacher: Teacher | None
    tags: TagsConfig | None

    def item_counts(self, batch: Batch, phase: PhaseConfig) -> dict[Objective, int]:
        """Items of each objective in a batch; known before the forward pass, so that one mean can span many batches."""
        tokens = int((batch.labels != IGNORE_INDEX).sum())
        captioned = int(batch.captioned.sum())
        tagged = 0
        if batch.tags is not None:
            judged = batch.tags != IGNORE_INDEX
            tagged = int((judged if self._many_tags else judged.any(1)).sum())
        return {
            "captioning": tokens,
            "language_modeling": tokens,
            "reward": captioned * phase.reward.num_samples,
            "contrastive": captioned,
            "tags": tagged,
            "distillation": len(batch.ids) - len(batch.errors),
        }

    def summed_losses(
        self, joint: nn.Module, batch: Batch, phase: PhaseConfig, step: int, gather: bool = True
    ) -> tuple[Losses, Losses]:
        """Losses of the phase's objectives from one pass: captions given and captions drawn share an image's encoding.

        `joint` is the `JointModel` as prepared for many processes; `step` seeds what is drawn; with `gather` the
        contrastive loss compares with the images of all processes, which have to take a pass at the same time.

        Returns:
            By objective, the loss and what else is to be logged of it, both summed over its items.
        """
        names = phase.objectives.keys()
        device = self.whole.model.device
        given = batch.labels.unflatten(0, (max(len(batch.ids), 1), -1))
        written = names & {*GIVEN_CAPTIONS, "reward"}
        captions = partial(self._captions, given=given, batch=batch, phase=phase, step=step) if written else None
        text = self._text(given, batch.captioned, step) if "contrastive" in names else None
        outputs = joint(batch.encoder_inputs, captions, text, names)

        losses: Losses = {}
        logged: Losses = {}
        for name, logits in outputs.get("logits", {}).items():
            if name == "reward":
                drawn = outputs["drawn"]
                losses[name] = policy_gradient_loss(logits, drawn.labels, drawn.advantages)
                logged[name] = drawn.rewards.sum()
            else:
                labels = send(given[given != IGNORE_INDEX], device)
                losses[name], _ = caption_cross_entropy(logits, labels, phase.label_smoothing)
        if "contrastive" in names:
            captioned = send(batch.captioned.nonzero()[:, 0], device)
            losses["contrastive"] = contrastive_loss(
                outputs["images"][captioned], outputs["texts"], outputs["scale"], gather
            )
        if "tags" in names:
            losses["tags"] = self._tag_loss(outputs["tag_logits"], batch)
        if "distillation" in names:
            assert self.teacher is not None
            rows = [row for row in range(len(batch.ids)) if row not in batch.errors]
            readable = send(torch.tensor(rows, dtype=torch.long), device)
            pixel_values = batch.encoder_inputs["pixel_values"][readable]
            losses["distillation"] = self.teacher.loss(outputs["teacher_logits"][readable], pixel_values)
        return losses, logged

    @property
    def _many_tags(self) -> bool:
        return self.tags is not None and self.tags.problem_type == "multi_label_classification"

    def _captions(
        self, encoder_hidden_states: Tensor | None, given: Tensor, batch: Batch, phase: PhaseConfig, step: int
    ) -> tuple[PackedCaptions, DrawnCaptions | None]:
        """What the decoder reads, from labels [B, K, T] by objective; and the captions drawn for it.

        Words are packed and hidden on the host: what was drawn is there already, for its reward.
        """
        labels: Losses = {name: given for name in GIVEN_CAPTIONS if name in phase.objectives}
        drawn = None
        if "reward" in phase.objectives:
            assert self.critic is not None and encoder_hidden_states is not None
            with self.whole.gathered() as captioner:
                drawn = self.critic.draw(captioner, encoder_hidden_states, batch, phase.reward, step)
            labels["reward"] = drawn.labels.cpu()
        packed = pack_captions(labels, partial(self._decoder_inputs, phase=phase))
        return packed.to(self.whole.model.device), drawn

    def _decoder_inputs(self, labels: Tensor, phase: PhaseConfig) -> Tensor:
        input_ids = self.whole.model.prepare_decoder_input_ids_from_labels(labels)
        pad_token_id = self.whole.model.config.pad_token_id
        return hide_words(input_ids, phase.word_dropout, pad_token_id) if phase.word_dropout > 0 else input_ids

    def _text(self, labels: Tensor, captioned: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """One caption of every captioned image, another at another step, and where it has been read to its end."""
        valid = labels != IGNORE_INDEX
        number_of_captions = valid.any(2).sum(1).clamp(min=1)
        rows = torch.arange(len(labels), device=labels.device)
        chosen = labels[rows, step % number_of_captions][captioned]
        last = (chosen != IGNORE_INDEX).sum(1) - 1
        input_ids = self.whole.model.prepare_decoder_input_ids_from_labels(chosen)
        return send(input_ids, self.whole.model.device), send(last, self.whole.model.device)

    def _tag_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        assert batch.tags is not None and self.tags is not None
        judged = batch.tags != IGNORE_INDEX
        if not self._many_tags:
            labelled = judged.any(1).nonzero()[:, 0]
            targets = send(batch.tags[labelled], logits.device).float()
            return F.cross_entropy(logits[send(labelled, logits.device)].float(), targets, reduction="sum")
        places = judged.flatten().nonzero()[:, 0]
        targets = send(batch.tags[judged], logits.device).float()
        logits = logits.flatten()[send(places, logits.device)].float()
        if self.tags.loss == "asymmetric":
            return asymmetric_loss(logits, targets)
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")


def asymmetric_loss(logits: Tensor, targets: Tensor, gamma_negative: float = 4.0, margin: float = 0.05) -> Tensor:
    """Summed loss of many labels, few of them true (Ridnik et al. 2021, https://arxiv.org/abs/2009.14119, eq. 7): what
    is absent counts the less the surer the model is of it, and not at all below a probability of `margin`.

    `logits` of any shape; `targets` of the same, 0 or 1.
    """
    shifted = (logits.sigmoid() - margin).clamp(min=0)
    present = targets * F.logsigmoid(logits)
    absent = (1 - targets) * shifted**gamma_negative * torch.log1p(-shifted)
    return -(present + absent).sum()


def hide_words(input_ids: Tensor, share: float, pad_token_id: int) -> Tensor:
    """Word dropout (Bowman et al. 2016, https://arxiv.org/abs/1511.06349, section 3.1): words that the decoder does not
    see it must find in the image. The start token stays."""
    hidden = torch.rand(input_ids.shape, device=input_ids.device) < share
    hidden[:, 0] = False
    return input_ids.masked_fill(hidden, pad_token_id)
