"""gpu.py's section `training`: our steps against transformers' Trainer, with the same shape."""

import contextlib
import functools
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gpu_inference import decoder_config, draw_photos, encoder_config
from gpu_work import (
    CAPTIONS_PER_IMAGE,
    ROOT,
    Measurement,
    Row,
    Work,
    go_on_with_a_sound_device,
    peak_gib,
    run,
    synchronize,
)
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    GPT2LMHeadModel,
    TrainingArguments,
    VisionEncoderDecoderModel,
    ViTModel,
)

from captioner.config import RunConfig
from captioner.data.batches import Batch
from captioner.model.modeling_captioner import IGNORE_INDEX
from captioner.training.phases import set_modes
from captioner.training.trainer import Trainer


def training_recipe(work: Work, name: str, phase: str, batch: int, folder: Path, compiled: bool = False) -> RunConfig:
    shape = work.shapes[name]
    source = {"path": str(draw_samples(work))}
    parts = ("trunk", "bridge", "decoder") if phase == "joint" else ("bridge", "decoder")
    return RunConfig.model_validate(
        {
            "output_dir": str(folder),
            "data": {
                "train": source,
                "validation": source,
                "captions_per_image": CAPTIONS_PER_IMAGE,
                "num_workers": 0 if work.tiny else min(16, os.cpu_count() or 1),
            },
            "tokenizer": {"path": str(ROOT / "captioner" / "assets" / "default")},
            "model": {
                "encoder_name": shape.timm_name,
                "encoder_kwargs": dict(shape.timm_arguments),
                "image_size": shape.image_size,
                "hidden_size": shape.width,
                "num_hidden_layers": shape.decoder_layers,
                "num_attention_heads": shape.heads,
                "max_position_embeddings": 48,
            },
            "phases": [
                {
                    "name": phase,
                    "epochs": 8,
                    "learning_rates": dict.fromkeys(parts, 1e-5),
                    "label_smoothing": 0.0,
                }
            ],
            "optimization": {
                "batch_size": batch,
                "mixed_precision": "no" if work.tiny else "bf16",
                "compile": compiled,
            },
            "validation": {"max_images": 1, "samples": 0},
        }
    )


def draw_samples(work: Work) -> Path:
    """Write the photos with five captions each, of about ten words."""
    path = work.scratch / "samples.jsonl"
    words = "a the man woman dog child red blue ball grass beach street near on with two runs sits small large".split()
    draw = np.random.default_rng(0)
    photos = draw_photos(work)
    if not path.exists():
        captions = [
            [" ".join(draw.choice(words, int(draw.integers(8, 14)))) for _ in range(CAPTIONS_PER_IMAGE)] for _ in photos
        ]
        rows = [{"image": str(photo), "caption": given} for photo, given in zip(photos, captions, strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@contextlib.contextmanager
def entered(
    work: Work, name: str, phase: str, batch: int, compiled: bool = False
) -> Iterator[tuple[Trainer, Any, Any, list[Batch]]]:
    """Yield our trainer, the wrapped model, the phase, and batches that are on the device."""
    with tempfile.TemporaryDirectory(dir=work.scratch) as folder:
        trainer = Trainer(training_recipe(work, name, phase, batch, Path(folder), compiled), resume=False)
        stretch = trainer.config.schedule()[0]
        model, train_set, _ = trainer.enter(stretch.phase)
        steps = trainer.data.steps(train_set, stretch, 0, 0, 1)
        loader = trainer._loader(train_set, [places for step in steps[:2] for places in step])
        batches = [batch.to(work.device) for batch in loader]
        set_modes(trainer.model, stretch.phase)
        yield trainer, model, stretch.phase, batches
        trainer.accelerator.free_memory()


def tokens_of(batches: list[Batch]) -> float:
    """Return the mean number of caption tokens in a batch."""
    return sum(int((batch.labels != IGNORE_INDEX).sum()) for batch in batches) / len(batches)


def time_our_training(work: Work, name: str, phase: str, batch: int, compiled: bool = False) -> Row:
    with entered(work, name, phase, batch, compiled) as (trainer, model, settings, batches):
        turns = iter(range(10**9))

        def step() -> None:
            trainer.step.take(model, [batches[next(turns) % len(batches)]], settings, 0)

        towers = trainer.task.towers
        trainer.task.towers = trainer.model.encoder, trainer.model.decoder  # compiled code is not counted
        with FlopCounterMode(display=False) as counter:
            step()
        trainer.task.towers = towers
        for _ in batches:
            step()
        synchronize(work.device)
        start, steps = time.perf_counter(), 0
        while steps < 4 or time.perf_counter() - start < 2 * work.seconds:
            step()
            steps += 1
        synchronize(work.device)
        seconds = (time.perf_counter() - start) / steps
        flops = counter.get_total_flops()
        return {
            "tokens_per_s": round(tokens_of(batches) / seconds),
            "images_per_s": round(batch / seconds, 1),
            "step_ms": round(1e3 * seconds, 1),
            "tflop_a_step": round(flops / 1e12, 2),
            "mfu": work.share(flops / seconds, "peak_bf16_flops"),
            "micro_batch": trainer.step.micro_batch,
            "gib": peak_gib(work.device),
        }


class CaptionExamples(Dataset):
    """Each caption of a batch with its image, on the device, sorted by length."""

    def __init__(self, batch: Batch) -> None:
        labels = batch.labels.to(batch.encoder_inputs["pixel_values"].device)
        captions = [row[row != IGNORE_INDEX] for row in labels]
        order = sorted(range(len(captions)), key=lambda row: len(captions[row]))
        pixels = batch.encoder_inputs["pixel_values"]
        self.examples = [{"pixel_values": pixels[row // CAPTIONS_PER_IMAGE], "labels": captions[row]} for row in order]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.examples[index]

    @staticmethod
    def collate(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        labels = [example["labels"] for example in examples]
        return {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        }


def time_peer_training(work: Work, name: str, phase: str, batch: int) -> Row:
    """Time steps with as many captions as ours, each with its image, in the largest micro-batches that fit."""
    with entered(work, name, "joint", batch) as (trainer, _, _, batches):  # also the frozen phase needs pixels
        examples, tokens, vocab_size = (
            CaptionExamples(batches[0]),
            tokens_of(batches[:1]),
            trainer.model.config.vocab_size,
        )
    del trainer, batches
    parts = 1
    while True:
        go_on_with_a_sound_device(work.device)
        try:
            seconds = peer_step_seconds(work, name, phase, vocab_size, examples, parts)
            break
        except torch.OutOfMemoryError:
            parts *= 2
    return {
        "tokens_per_s": round(tokens / seconds),
        "images_per_s": round(batch / seconds, 1),
        "step_ms": round(1e3 * seconds, 1),
        "micro_batch": len(examples) // parts,
        "gib": peak_gib(work.device),
    }


def peer_step_seconds(
    work: Work, name: str, phase: str, vocab_size: int, examples: CaptionExamples, parts: int
) -> float:
    shape, steps, warm = work.shapes[name], 6, 2
    decoder = decoder_config(
        shape,
        vocab_size,
        end=2,
        attn_pdrop=0.0,
        activation_function="gelu",
        add_cross_attention=True,
        is_decoder=True,
        use_cache=False,
    )
    encoder = ViTModel(encoder_config(shape), add_pooling_layer=False)
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=GPT2LMHeadModel(decoder))
    model.config.pad_token_id, model.config.decoder_start_token_id = 0, 1
    model.encoder.requires_grad_(phase == "joint")
    times: list[float] = []

    def note(*_: object) -> None:
        synchronize(work.device)
        times.append(time.perf_counter())

    with tempfile.TemporaryDirectory(dir=work.scratch) as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=len(examples) // parts,
            gradient_accumulation_steps=parts,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            optim="adamw_torch_fused",
            bf16=work.device.type == "cuda",
            use_cpu=work.device.type == "cpu",
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        handle = register_optimizer_step_post_hook(note)
        try:
            peer = transformers.Trainer(model, arguments, data_collator=CaptionExamples.collate, train_dataset=examples)
            peer.train()
        finally:
            handle.remove()
    return (times[-1] - times[warm - 1]) / (steps - warm)


def time_loading(work: Work, name: str, batch: int) -> Row:
    """Time loading photos to the device, without training."""
    with tempfile.TemporaryDirectory(dir=work.scratch) as folder:
        trainer = Trainer(training_recipe(work, name, "joint", batch, Path(folder)), resume=False)
        stretch = trainer.config.schedule()[0]
        train_set = trainer.data.train_set(stretch.phase, trainer.processor)
        places = [(epoch, index) for epoch in range(8) for index in range(len(train_set))]
        batches = [places[start : start + batch] for start in range(0, len(places), batch)]
        loader = trainer._loader(train_set, batches)
        begun = time.perf_counter()
        next(loader)
        start = time.perf_counter()
        images = sum(len(one.to(work.device).ids) for one in loader)
        synchronize(work.device)
        seconds = time.perf_counter() - start
    return {
        "images_per_s": round(images / seconds, 1),
        "first_batch_s": round(start - begun, 2),
        "workers": trainer.config.data.num_workers,
    }


def training_section(work: Work) -> None:
    batch = work.batch_size
    measurements = []
    compiled = functools.partial(time_our_training, compiled=True)
    for phase in ("joint", "frozen"):
        for side, measure in {"ours": time_our_training, "Trainer": time_peer_training}.items():
            measurements += [
                Measurement(f"{name}, {phase}, {side}", 60, functools.partial(measure, work, name, phase, batch))
                for name in work.shapes
            ]
        if phase == "joint":
            if work.device.type == "cuda":  # on a CPU the compiler takes minutes
                measurements += [
                    Measurement(
                        f"{name}, joint, ours, compiled", 90, functools.partial(compiled, work, name, phase, batch)
                    )
                    for name in work.shapes
                ]
            loading = [
                Measurement(f"{name}, loading", 30, functools.partial(time_loading, work, name, batch))
                for name in work.shapes
            ]
            measurements += loading[:1] if work.quick else loading
    run(work, measurements)
