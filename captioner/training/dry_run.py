"""Tries out a recipe: builds everything, reads every path, and takes a few steps of each phase."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from accelerate.utils import broadcast_object_list

from captioner.config import RunConfig, Stretch
from captioner.training.launch import join_launch, obey_launcher
from captioner.training.phases import apply_phase
from captioner.training.trainer import Trainer

STEPS = 3  # of each phase; the first is warm-up and not timed


@dataclass(frozen=True)
class PhaseEstimate:
    """An estimate for a phase from a few of its steps, on this machine with these processes.

    Attributes:
        learning: the number of trained parameters.
        tokens_per_second: caption tokens read per second, over all processes.
        steps: all optimizer steps of the phase.
        hours: time for these steps, without validation and feature caching.
    """

    name: str
    learning: int
    tokens_per_second: float
    steps: int
    hours: float


@dataclass(frozen=True)
class Estimate:
    """The number of `parameters`; `memory` in bytes: the GPU's peak, or on a CPU what the process holds at the end."""

    parameters: int
    memory: int
    phases: list[PhaseEstimate]


def dry_run(config: RunConfig) -> Estimate:
    """Build everything in a recipe, take three steps of each phase, validate once, and leave no files behind.

    Raises:
        CaptionerError: the training would raise it.
    """
    config = obey_launcher(config)
    totals = {stretch.phase.name: stretch for stretch in config.schedule()}
    launch = join_launch(config)
    with tempfile.TemporaryDirectory() as own:
        (folder,) = broadcast_object_list([own])  # all processes use the main process's
        trainer = Trainer(_shortened(config, Path(folder)), resume=False)
        steps = {name: _steps(trainer, stretch) for name, stretch in totals.items()}
        trainer.data.thin_out(STEPS * _samples_a_step(config, launch.num_processes))
        trainer.run()
        launch.wait_for_everyone()
        log = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
        launch.wait_for_everyone()
    phases = []
    for name, stretch in totals.items():
        timed = [line for line in log if line["phase"] == name and "loss" in line][1:]
        seconds = sum(line["seconds"] for line in timed)
        apply_phase(trainer.model, stretch.phase)
        learning = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
        speed = sum(line["tokens"] for line in timed) / seconds
        hours = steps[name] * seconds / len(timed) / 3600
        phases.append(PhaseEstimate(name, learning, speed, steps[name], hours))
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    return Estimate(parameters, _memory(trainer.accelerator.device), phases)


def _shortened(config: RunConfig, folder: Path) -> RunConfig:
    """Return the recipe with three steps for each phase, without repeats, validated on one batch."""
    once = {stretch.phase.name: stretch.phase for stretch in config.schedule()}
    validation = config.validation
    return config.model_copy(
        update={
            "output_dir": str(folder),
            "log_with": [],
            "phases": [phase.model_copy(update={"epochs": None, "steps": STEPS}) for phase in once.values()],
            "validation": validation.model_copy(update={"max_images": validation.batch_size, "every_steps": 10**9}),
        }
    )


def _samples_a_step(config: RunConfig, processes: int) -> int:
    default = config.optimization.batch_size
    largest = max(stretch.phase.batch_size or default for stretch in config.schedule())
    return largest * config.optimization.gradient_accumulation_steps * processes


def _steps(trainer: Trainer, stretch: Stretch) -> int:
    """Count the steps of all turns or epochs of a phase."""
    if stretch.phase.steps is not None:
        return stretch.total * stretch.phase.steps
    train_set = trainer.data.train_set(stretch.phase, trainer.processor)
    return stretch.total * len(trainer.data.steps(train_set, stretch, 0, 0, trainer.accelerator.num_processes))


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
