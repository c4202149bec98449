from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional as F

from captioner.config import RunConfig
from captioner.data.images import load_image
from captioner.training.trainer import Trainer
from captioner.training.validation import validate


def test_the_loss_is_that_of_the_captions_read_one_by_one(recipe: Callable[..., RunConfig]) -> None:
    trainer = Trainer(recipe("validation.batch_size=3"), resume=False)
    model, dataset = trainer.model, trainer.validation_set
    found = validate(model, trainer.processor, dataset, trainer.config, Accelerator(cpu=True), lambda batch: None)
    losses = []
    for sample in dataset.samples:
        (caption,) = sample.captions
        tokens = torch.tensor([trainer.processor.tokenizer(caption)["input_ids"]])
        begun = torch.cat([torch.tensor([[model.config.decoder_start_token_id]]), tokens[:, :-1]], dim=1)
        pixels = trainer.processor.image_processor(load_image(sample.image), return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            losses.append(F.cross_entropy(model(pixels, begun).logits[0], tokens[0], reduction="none"))
    assert len(found.captions) == len(losses) == 8
    assert found.loss == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
