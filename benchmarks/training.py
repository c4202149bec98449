"""Time training steps of captioner and of transformers' Trainer in one run, and print one JSON line.

    CAPTIONER_FLICKR8K=folder python benchmarks/training.py
    python benchmarks/training.py --data photos/karpathy.json

Without data, drawn shapes stand in for photos. Both sides train a ViT-S/16 at 224 pixels and a 3-layer decoder of
width 384 with cross-attention, from random weights, in two phases:

    joint    encoder and decoder are trained;
    frozen   the encoder is frozen: we read cached features, the peer runs its encoder without gradients.

Our side is `captioner.training.trainer.train` with a recipe, as users run it: the five captions of an image share one
encoder pass. The peer is `VisionEncoderDecoderModel` (ViT and GPT-2) under transformers' `Trainer`: each caption is
one example, with its image.

Both sides share: photos, captions and their number in an optimizer step; JPEG decoding and preprocessing; vocabulary;
widths, depths, heads and dropout; autocast's precision; fused AdamW and its settings; gradient clipping; fused
attention; threads; batches bucketed by length, so that padding is small; loading in the training process, so that a
step includes the time for its data. Neither compiles. Each round is one epoch of each side in turn over the same
captions. The first step is warm-up; the benchmark measures the time from the end of one optimizer step to the end of
the next, with the same hook on both sides. Validation and checkpoints happen between epochs and do not count.

In the peer's favour: it uses the micro-batch that is fastest here, found by trial, where we take the step at once; it
buckets single captions, we whole images; its attention weights have no dropout and its GELU is the exact one, because
GPT-2's defaults are slower; it logs nothing. In our favour: an image is decoded and encoded once for its five
captions, or not at all if its features are cached. The cost of caching is reported separately and spread over epochs.
"""

import argparse
import json
import math
import os
import runpy
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode
from training_peer import IMAGE_SIZE, MODEL, CaptionExamples, build_peer
from transformers import (
    Trainer,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from captioner.config import DataConfig, RunConfig, SourceConfig, TokenizerConfig
from captioner.data.batches import bucketed_batches
from captioner.data.dataset import CaptionDataset
from captioner.data.sources import Sample, load_samples
from captioner.data.tokenizer_training import train_tokenizer
from captioner.errors import CaptionerError
from captioner.model.build import build_image_processor, build_model
from captioner.model.configuration_captioner import CaptionerConfig
from captioner.model.processing_captioner import CaptionerProcessor
from captioner.model.tokenization_captioner import CaptionerTokenizer
from captioner.training.feature_cache import cache_features
from captioner.training.trainer import train

CAPTIONS_PER_IMAGE = 5
DATA: dict[str, Any] = {"captions_per_image": CAPTIONS_PER_IMAGE, "num_workers": 0}
RATE, WEIGHT_DECAY, BETAS, MAX_GRAD_NORM = 1e-4, 0.05, (0.9, 0.98), 1.0
LEARNING_PARTS = {"joint": ("trunk", "bridge", "decoder"), "frozen": ("bridge", "decoder")}
TARGETS = {"joint": 3.0, "frozen": 5.0}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
MATRIX_SIZE = 4096

console = Console(stderr=True, soft_wrap=True)


@dataclass(frozen=True)
class Workload:
    """The data and settings of both sides."""

    samples_file: Path
    tokenizer_folder: Path
    images: CaptionDataset
    vocab_size: int
    images_per_step: int
    steps: int
    """Steps of an epoch."""
    epochs: int
    """Epochs of our frozen phase; the cost of caching is spread over them."""
    precision: str
    device: torch.device

    @property
    def captions_per_step(self) -> int:
        return self.images_per_step * CAPTIONS_PER_IMAGE


def our_rate(work: Workload, phase: str) -> float:
    """Return captions per second of `phase` with our trainer."""
    with TemporaryDirectory() as folder, step_times() as times:
        train(recipe(work, phase, Path(folder)))
    return captions_per_second(times, work.steps, work.captions_per_step)


def recipe(work: Workload, phase: str, output_dir: Path) -> RunConfig:
    source = {"path": str(work.samples_file)}
    return RunConfig.model_validate(
        {
            "output_dir": str(output_dir),
            "data": {"train": source, "validation": source, **DATA},
            "tokenizer": {"path": str(work.tokenizer_folder)},
            "model": MODEL,
            "phases": [
                {
                    "name": phase,
                    "epochs": work.epochs if phase == "frozen" else 1,
                    "learning_rates": dict.fromkeys(LEARNING_PARTS[phase], RATE),
                    "label_smoothing": 0.0,
                }
            ],
            "optimization": {
                "batch_size": work.images_per_step,
                "weight_decay": WEIGHT_DECAY,
                "betas": BETAS,
                "max_grad_norm": MAX_GRAD_NORM,
                "mixed_precision": "bf16" if work.precision == "bf16" else "no",
            },
            "validation": {"max_images": 1, "samples": 0},
        }
    )


def caching_seconds(work: Workload) -> float:
    """Time what a frozen phase does once: run the trunk over every image and write its tokens to disk."""
    with TemporaryDirectory() as folder:
        config = recipe(work, "frozen", Path(folder))
        accelerator = Accelerator(mixed_precision=config.optimization.mixed_precision)
        model = build_ours(work.vocab_size).to(accelerator.device)
        start = time.perf_counter()
        cache_features(
            model,
            work.images,
            Path(folder),
            accelerator,
            config.validation.batch_size,
            config.data.num_workers,
            on_errors=lambda batch: None,
        )
        return time.perf_counter() - start


def build_ours(vocab_size: int) -> Any:
    return build_model(CaptionerConfig(**MODEL, vocab_size=vocab_size))


def peer_rate(work: Workload, phase: str, micro_batch: int, steps: int) -> float:
    """Return captions per second of `phase` with transformers' Trainer."""
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=work.captions_per_step // micro_batch,
            train_sampling_strategy="sequential",  # the examples come in shuffled buckets
            remove_unused_columns=False,
            optim="adamw_torch_fused",
            learning_rate=RATE,
            lr_scheduler_type="cosine",
            weight_decay=WEIGHT_DECAY,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            max_grad_norm=MAX_GRAD_NORM,
            bf16=work.precision == "bf16",
            use_cpu=work.device.type == "cpu",
            dataloader_num_workers=DATA["num_workers"],
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            build_peer(work.vocab_size, phase),
            arguments,
            data_collator=CaptionExamples.collate,
            train_dataset=CaptionExamples(work.images, micro_batch),
        )
        trainer.remove_callback(PrinterCallback)  # stdout is for the JSON line
        with step_times() as times:
            trainer.train()
    return captions_per_second(times, steps, work.captions_per_step)


def fastest_micro_batch(work: Workload, phase: str) -> int:
    """Find the peer's fastest micro-batch: two steps with each, of which the second counts."""
    sizes = [work.captions_per_step // parts for parts in (1, 2, 4) if work.captions_per_step % parts == 0]
    rates = {size: peer_rate(work, phase, size, steps=2) for size in sizes}
    tried = ", ".join(f"{size}: {value:.2f}" for size, value in rates.items())
    console.print(f"{phase}, peer's captions a second by micro-batch: {tried}")
    return max(rates, key=lambda size: rates[size])


@contextmanager
def step_times() -> Iterator[list[float]]:
    """Collect the times at which optimizer steps end inside the context, in any training loop."""
    times: list[float] = []

    def note(*_: object) -> None:
        synchronize()
        times.append(time.perf_counter())

    handle = register_optimizer_step_post_hook(note)
    try:
        yield times
    finally:
        handle.remove()


def captions_per_second(times: Sequence[float], steps: int, captions_per_step: int) -> float:
    """Average over the times from one optimizer step of an epoch to the next, in all epochs."""
    seconds = np.diff(np.reshape(times, (-1, steps)), axis=1)
    return captions_per_step / float(seconds.mean())


def flops_per_caption(work: Workload, phase: str) -> float:
    """Count the operations of our matrix products, convolutions and attention, forward and backward, over an epoch.

    The model is on the meta device, which has shapes without data.
    """
    lengths = work.images.lengths()
    model = build_ours(work.vocab_size).to("meta").train()
    model.encoder.trunk.requires_grad_(phase == "joint")
    pixels = torch.empty(work.images_per_step, 3, IMAGE_SIZE, IMAGE_SIZE, device="meta")
    inputs = {"pixel_values": pixels} if phase == "joint" else {"trunk_features": model.encoder.trunk(pixels)[0]}
    with FlopCounterMode(display=False) as counter:
        for batch in bucketed_batches(lengths, work.images_per_step, seed=0, epoch=0):
            tokens = math.ceil(max(lengths[i] for i in batch) / CAPTIONS_PER_IMAGE)  # of the longest row's captions
            labels = torch.zeros(work.captions_per_step, tokens, dtype=torch.long, device="meta")
            model(**inputs, labels=labels).loss.backward()
    return counter.get_total_flops() / (work.captions_per_step * work.steps)


def matrix_multiply_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Return the operations per second of a large matrix product, the best of five."""
    left, right = (torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(5):
        synchronize()
        start = time.perf_counter()
        left @ right
        synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * MATRIX_SIZE**3 / min(seconds)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare(work: Workload, phase: str, rounds: int, peak: float) -> dict[str, Any]:
    """Run both sides in turn; each round gives a ratio, and the median counts."""
    micro_batch = fastest_micro_batch(work, phase)
    ours, peer, caching = [], [], []
    for number in range(1, rounds + 1):
        if phase == "frozen":
            caching.append(caching_seconds(work))
        ours.append(our_rate(work, phase))
        peer.append(peer_rate(work, phase, micro_batch, work.steps))
        console.print(f"{phase} {number}/{rounds}: ours {ours[-1]:.2f}, peer {peer[-1]:.2f} captions a second")
    flops = flops_per_caption(work, phase)
    result = {
        "captions_per_second": round(median(ours), 2),
        "peer_captions_per_second": round(median(peer), 2),
        "times_faster": round(median(a / b for a, b in zip(ours, peer, strict=True)), 2),
        "target": TARGETS[phase],
        "rounds": [round(a / b, 2) for a, b in zip(ours, peer, strict=True)],
        "gflop_per_caption": round(flops / 1e9, 2),
        "share_of_peak": round(flops * median(ours) / peak, 3),
        "peer_micro_batch": micro_batch,
    }
    if phase == "frozen":
        captions = work.captions_per_step * work.steps * work.epochs
        with_caching = [
            (captions / b) / (captions / a + seconds) for a, b, seconds in zip(ours, peer, caching, strict=True)
        ]
        result |= {
            "caching_seconds": round(median(caching), 2),
            "epochs": work.epochs,
            "times_faster_with_caching": round(median(with_caching), 2),
        }
    return result


def read_samples(data: Path | None, images: int, folder: Path) -> list[Sample]:
    """Load samples with at least five captions; without data, draw shapes with five descriptions each."""
    if data is not None:
        samples, _ = load_samples(SourceConfig(path=str(data), split="train"))
        return [sample for sample in samples if len(sample.captions) >= CAPTIONS_PER_IMAGE]
    draw = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "draw_shapes.py"))["draw_shapes"]
    draw(folder / "shapes", images=2 * images)
    samples, _ = load_samples(SourceConfig(path=str(folder / "shapes" / "captions.csv"), split="train"))
    frames = (
        "{}",
        "a picture of {}",
        "there is {} here",
        "{} on a light background",
        "two shapes, {}",
    )
    return [replace(s, captions=tuple(frame.format(s.captions[0]) for frame in frames)) for s in samples]


def prepare(options: argparse.Namespace, folder: Path, precision: str, device: torch.device) -> Workload:
    """Write the first images of the data with five captions each, and train a tokenizer on all captions."""
    samples = read_samples(options.data, options.images_per_step * options.steps, folder)
    train_tokenizer(
        (caption for sample in samples for caption in sample.captions), TokenizerConfig(), folder / "tokenizer.model"
    )
    count = options.images_per_step * options.steps
    if len(samples) < count:
        raise CaptionerError(
            f"{options.data}: {len(samples)} images of {CAPTIONS_PER_IMAGE} captions; {count} are needed"
        )
    samples = [replace(sample, captions=sample.captions[:CAPTIONS_PER_IMAGE]) for sample in samples[:count]]
    samples_file = folder / "samples.jsonl"
    with samples_file.open("w") as file:
        for sample in samples:
            file.write(json.dumps({"image": os.path.abspath(str(sample.image)), "caption": sample.captions}) + "\n")
    tokenizer = CaptionerTokenizer(str(folder / "tokenizer.model"))
    processor = CaptionerProcessor(build_image_processor(build_ours(len(tokenizer))), tokenizer)
    source = SourceConfig(path=str(samples_file))
    return Workload(
        samples_file,
        folder,
        CaptionDataset(samples, processor, DataConfig(train=source, validation=source, **DATA)),
        len(tokenizer),
        options.images_per_step,
        options.steps,
        options.epochs,
        precision,
        device,
    )


def print_table(report: dict[str, Any]) -> None:
    table = Table("", "captioner", "peer", "times faster", "target", "of peak", title="captions a second")
    for phase in TARGETS:
        row = report[phase]
        ours, peer, share = row["captions_per_second"], row["peer_captions_per_second"], row["share_of_peak"]
        table.add_row(phase, str(ours), str(peer), str(row["times_faster"]), str(row["target"]), f"{share:.0%}")
    console.print(table)


def main() -> None:
    default = os.environ.get("CAPTIONER_FLICKR8K")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(default) / "dataset_flickr8k.json" if default else None,
        help="Karpathy's layout, with the photos beside it or in images/; default: CAPTIONER_FLICKR8K, or drawn shapes",
    )
    parser.add_argument("--precision", choices=["bf16", "fp32"], help="default: whichever multiplies faster here")
    parser.add_argument("--images-per-step", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4, help="steps of an epoch; the first is warm-up")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of our frozen phase, which caches features once")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("--steps: 2 or more, for the first is warm-up")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = Accelerator().device
    peaks = {name: matrix_multiply_peak(dtype, device) for name, dtype in DTYPES.items()}
    precision = options.precision or max(peaks, key=lambda name: peaks[name])
    with TemporaryDirectory() as folder:
        work = prepare(options, Path(folder), precision, device)
        report = {
            "benchmark": "training",
            "peer": f"transformers {transformers.__version__} VisionEncoderDecoderModel under Trainer",
            "device": str(device),
            "threads": torch.get_num_threads(),
            "load_average_before": round(os.getloadavg()[0], 1),
            "precision": precision,
            "captions_per_step": work.captions_per_step,
            "vocab_size": work.vocab_size,
            "parameters": sum(p.numel() for p in build_ours(work.vocab_size).parameters()),
            "peer_parameters": sum(p.numel() for p in build_peer(work.vocab_size, "joint").parameters()),
            "matrix_multiply_peak_gflops": round(peaks[precision] / 1e9),
            **{phase: compare(work, phase, options.rounds, peaks[precision]) for phase in TARGETS},
        }
    print_table(report)
    print(json.dumps(report))


if __name__ == "__main__":
    try:
        main()
    except CaptionerError as error:
        sys.exit(f"error: {error}")
