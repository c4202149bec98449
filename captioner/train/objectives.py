"""What is learnt: each objective gives a summed loss, and says how many items it sums over."""

from torch import Tensor, nn

from captioner.config import PhaseConfig
from captioner.data.dataset import Batch
from captioner.model.modeling_captioner import IGNORE_INDEX, CaptionerForConditionalGeneration, caption_cross_entropy


def item_counts(batch: Batch) -> dict[str, int]:
    """Items of each objective in a batch; known before the forward pass, so that one mean can span many batches."""
    return {"captioning": int((batch.labels != IGNORE_INDEX).sum())}


def summed_losses(
    model: CaptionerForConditionalGeneration, wrapped: nn.Module, batch: Batch, phase: PhaseConfig
) -> dict[str, Tensor]:
    """Summed loss of each of the phase's objectives. `wrapped` is `model` as prepared for many processes."""
    decoder_input_ids = model.prepare_decoder_input_ids_from_labels(batch.labels)
    outputs = wrapped(**batch.encoder_inputs, decoder_input_ids=decoder_input_ids)
    total, _ = caption_cross_entropy(outputs.logits, batch.labels, phase.label_smoothing)
    return {"captioning": total}
