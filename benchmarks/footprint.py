"""Compute what a recipe needs on GPUs that are not at hand: memory of one GPU, and hours on all, for each phase.

    CAPTIONER_COCO_IMAGES=. python benchmarks/footprint.py configs/coco_vit_base.yaml --images 113287

Nothing is trained: one step of each phase runs on torch's meta device, which has shapes but no values.

    memory   parameters, gradients and AdamW's two moments (float32; also those of a frozen part, once it has been
             trained), the average of the weights, and every tensor that autograd keeps for the backward pass, in the
             precision of the recipe; without the allocator's slack and what cuBLAS and NCCL reserve (about 2 GiB)
    hours    floating-point operations of all passes, divided by `--teraflops` times `--utilization`. Sampling captions
             for rewards counts as one more pass through the decoder without gradients; token by token it will take
             longer. The CPUs must decode the given images a second; if they are slower, they set the pace.

Prints one JSON line for each phase.
"""

import argparse
import json
import math

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from captioner.config import Objective, PhaseConfig, RunConfig, load_config
from captioner.data.batches import Batch
from captioner.model.build import build_model
from captioner.model.configuration_captioner import CaptionerConfig
from captioner.training.fsdp import WholeModel
from captioner.training.phases import apply_phase
from captioner.training.task import CaptioningTask

FORMATS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class KeptTensors(torch.autograd.graph.saved_tensors_hooks):
    """Adds up the tensors that autograd keeps, each storage once, without parameters."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(self._pack, lambda tensor: tensor)
        self._seen = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self.bytes = 0

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self.bytes += storage.nbytes()
        return tensor


def footprint(config: RunConfig, phase: PhaseConfig, tokens: int) -> dict[str, float]:
    """GiB and operations of one step of one process."""
    settings, data = config.model, config.data
    fields = settings.model_dump(exclude={"gradient_checkpointing", "resize_mode", "crop_pct", "contrastive_size"})
    images = config.optimization.batch_size
    captions: dict[Objective, int] = {}
    if "reward" in phase.objectives:
        captions["reward"] = phase.reward.num_samples
    if "captioning" in phase.objectives or not captions:  # other objectives are counted as captioning is
        captions["captioning"] = data.captions_per_image
    labels = torch.zeros(images * sum(captions.values()), tokens).long()
    with torch.device("meta"):
        model = build_model(CaptionerConfig(**fields, vocab_size=config.tokenizer.vocab_size))
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        pixel_values = torch.empty(images, 3, settings.image_size, settings.image_size)
    apply_phase(model, phase)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    averages = parameters if config.optimization.ema_decay else 0
    state = 4 * (parameters + learning + 2 * parameters + averages)
    model.to(FORMATS[config.optimization.mixed_precision])
    kept = KeptTensors(model)
    with FlopCounterMode(display=False) as counter, kept:
        # Drawn captions are counted as given ones: both take the same pass.
        task = CaptioningTask(WholeModel(Accelerator(cpu=True), model), tags=None, critic=None, teacher=None)
        batch = Batch(list(range(images)), {"pixel_values": pixel_values.to(model.dtype)}, labels, errors={})
        losses, _ = task(batch, phase.model_copy(update={"objectives": {"captioning": 1.0}}), step=0)
        forward = counter.get_total_flops()
        encoding = sum(counter.get_flop_counts()["CaptioningTask.captioner.encoder"].values())
        loss = losses["captioning"]
        loss.backward()
    drawing = forward - encoding if "reward" in phase.objectives else 0
    return {
        "parameters": parameters,
        "learning": learning,
        "state_gib": state / 2**30,
        "activations_gib": kept.bytes / 2**30,
        "flop": counter.get_total_flops() + drawing,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--images", type=int, required=True, help="number of images in the training data")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=13, help="mean number of tokens in a caption")
    parser.add_argument("--teraflops", type=float, default=989.0, help="peak of one GPU in the recipe's precision")
    parser.add_argument("--utilization", type=float, default=0.35, help="share of the peak that a training reaches")
    arguments = parser.parse_args()
    config = load_config(arguments.recipe, arguments.overrides)
    settings = config.optimization
    for phase, turns in {stretch.phase.name: (stretch.phase, stretch.total) for stretch in config.schedule()}.values():
        step = footprint(config, phase, arguments.tokens)
        epoch = math.ceil(arguments.images / (settings.batch_size * arguments.gpus))
        passes = turns * (phase.steps * settings.gradient_accumulation_steps if phase.steps else epoch)
        seconds = step["flop"] / (arguments.teraflops * 1e12 * arguments.utilization)
        print(
            json.dumps(
                {
                    "phase": phase.name,
                    "parameters": step["parameters"],
                    "learning": step["learning"],
                    "gib": round(step["state_gib"] + step["activations_gib"], 1),
                    "of_which_activations": round(step["activations_gib"], 1),
                    "teraflop_a_pass": round(step["flop"] / 1e12, 1),
                    "hours": round(passes * seconds / 3600, 3),
                    "images_a_second": round(settings.batch_size * arguments.gpus / seconds),
                }
            )
        )


if __name__ == "__main__":
    main()
