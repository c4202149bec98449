"""What a model in training says of the validation images, each process captioning its share."""

from collections.abc import Callable
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from captioner.config import RunConfig
from captioner.data.dataset import Batch, CaptionDataset, load_batches
from captioner.infer.generation import generate
from captioner.infer.options import GenerationOptions
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration
from captioner.model.processing_captioner import CaptionerProcessor


@torch.inference_mode()
def caption_images(
    model: CaptionerForConditionalGeneration,
    processor: CaptionerProcessor,
    dataset: CaptionDataset,
    config: RunConfig,
    accelerator: Accelerator,
    on_errors: Callable[[Batch], None],
) -> dict[int, str]:
    """Caption a data set; every process gets all the captions, by index, without the images that cannot be read."""
    settings = config.validation
    model.eval()
    options = GenerationOptions(num_beams=settings.num_beams, max_new_tokens=config.data.max_caption_tokens)
    share = list(range(accelerator.process_index, len(dataset), accelerator.num_processes))
    batches = [share[i : i + settings.batch_size] for i in range(0, len(share), settings.batch_size)]
    loader = load_batches(dataset, batches, config.data.num_workers)
    quiet = None if accelerator.is_main_process else True  # None: a bar on a terminal only
    captions = []
    for rows, batch in zip(batches, tqdm(loader, "validation", disable=quiet, leave=False), strict=True):
        on_errors(batch)
        with accelerator.autocast():
            encoded = model.encoder(**batch.to(accelerator.device).encoder_inputs)
            hypotheses = generate(model, {"encoder_outputs": encoded}, options)
        texts = processor.tokenizer.batch_decode([best.token_ids for best, *_ in hypotheses])
        captions += [pair for row, pair in enumerate(zip(rows, texts, strict=True)) if row not in batch.errors]
    return dict(sorted(cast(list[tuple[int, str]], gather_object(captions))))
