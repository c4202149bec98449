"""What is learnt: each objective gives a summed loss, and says how many items it sums over."""

from torch import Tensor, nn

from captioner.config import PhaseConfig
from captioner.data.dataset import Batch
from captioner.model.configuration_captioner import CaptionerConfig
from captioner.model.modeling_captioner import IGNORE_INDEX, caption_cross_entropy, shift_tokens_right


def item_counts(batch: Batch) -> dict[str, int]:
    """Items of each objective in a batch; known before the forward pass, so that one mean can span many batches."""
    return {"captioning": int((batch.labels != IGNORE_INDEX).sum())}


def summed_losses(model: nn.Module, config: CaptionerConfig, batch: Batch, phase: PhaseConfig) -> dict[str, Tensor]:
    """Summed loss of each of the phase's objectives. `model` may be wrapped for many processes."""
    inputs = shift_tokens_right(batch.labels, config.decoder_start_token_id, config.pad_token_id)
    outputs = model(**batch.encoder_inputs, decoder_input_ids=inputs)
    total, _ = caption_cross_entropy(outputs.logits, batch.labels, phase.label_smoothing)
    return {"captioning": total}
