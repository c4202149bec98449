"""Captions the validation images during training; each process takes a share."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from captioner.config import RunConfig
from captioner.data.batches import Batch, load_batches, to_device
from captioner.data.dataset import CaptionDataset
from captioner.decoding.options import GenerationOptions
from captioner.decoding.stream import generate
from captioner.model.modeling_captioner import IGNORE_INDEX, CaptionerForConditionalGeneration
from captioner.model.processing_captioner import CaptionerProcessor


class Validation(NamedTuple):
    """Captions by the image's index, without unreadable images; and the `loss`: the mean cross-entropy of the reference
    captions (`captions_per_image` of each image), in nats per token."""

    captions: dict[int, str]
    loss: float


@torch.inference_mode()
def validate(
    model: CaptionerForConditionalGeneration,
    processor: CaptionerProcessor,
    dataset: CaptionDataset,
    config: RunConfig,
    accelerator: Accelerator,
    on_errors: Callable[[Batch], None],
) -> Validation:
    """Caption a data set and compute the loss of its captions; every process gets the whole result."""
    settings = config.validation
    model.eval()
    options = GenerationOptions(num_beams=settings.num_beams, max_new_tokens=config.data.max_caption_tokens)
    share = list(range(accelerator.process_index, len(dataset), accelerator.num_processes))
    batches = [share[i : i + settings.batch_size] for i in range(0, len(share), settings.batch_size)]
    loader = load_batches(dataset, batches, config.data.num_workers, pin_memory=accelerator.device.type == "cuda")
    quiet = None if accelerator.is_main_process else True  # None: a bar on terminals only
    captions: list[tuple[int, str]] = []
    losses: list[tuple[float, int]] = []
    for rows, batch in zip(batches, tqdm(loader, "validation", disable=quiet, leave=False), strict=True):
        on_errors(batch)
        with accelerator.autocast():
            batch = batch.to(accelerator.device)
            encoded = model.encoder(**batch.encoder_inputs)
            loss = model(
                encoder_outputs=encoded, labels=to_device(batch.labels, accelerator.device), num_items_in_batch=1
            ).loss
            hypotheses = generate(model, {"encoder_outputs": encoded}, options)
        texts = processor.tokenizer.batch_decode([best.token_ids for best, *_ in hypotheses])
        losses.append((float(loss), int((batch.labels != IGNORE_INDEX).sum())))
        captions += [pair for row, pair in enumerate(zip(rows, texts, strict=True)) if row not in batch.errors]
    total, tokens = map(sum, zip(*gather_object(losses), strict=True))
    return Validation(dict(sorted(gather_object(captions))), total / max(tokens, 1))
