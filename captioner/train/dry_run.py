"""A recipe tried out before it is run: everything is built, every path is read, a few steps of each phase are taken."""

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from accelerate.utils import broadcast_object_list

from captioner.config import RunConfig, Stretch
from captioner.train.data import TrainingData
from captioner.train.launch import join_launch, obey_launcher
from captioner.train.phases import apply_phase
from captioner.train.trainer import Trainer

STEPS = 3  # of each phase; the first, which warms up, is not timed


@dataclass(frozen=True)
class PhaseEstimate:
    """What a few steps of a phase tell of it as a whole, on this machine with these processes.

    Attributes:
        learning: how many parameters learn.
        tokens_per_second: caption tokens of the data that a step reads, over all processes.
        steps: optimizer steps of the phase in all.
        hours: of these steps; the validations and the caching of features come on top.
    """

    name: str
    learning: int
    tokens_per_second: float
    steps: int
    hours: float


@dataclass(frozen=True)
class Estimate:
    """`parameters` of the model; `memory` in bytes: a GPU's peak, without one what this process holds at the end."""

    parameters: int
    memory: int
    phases: list[PhaseEstimate]


def dry_run(config: RunConfig) -> Estimate:
    """Build all that a recipe asks for, take three steps of each phase, validate once, and leave nothing behind.

    Raises:
        CaptionerError: as the training would.
    """
    config = obey_launcher(config)
    totals = {stretch.phase.name: stretch for stretch in config.schedule()}
    launch = join_launch(config)
    with tempfile.TemporaryDirectory() as own:
        (folder,) = broadcast_object_list([own])  # the main process's, for all of them
        trainer = Trainer(_shortened(config, Path(folder)), resume=False)
        steps = {name: _steps(config, trainer.data, stretch, launch.num_processes) for name, stretch in totals.items()}
        _keep(trainer.data, STEPS * _samples_a_step(config, launch.num_processes))
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
    """The recipe with three steps a phase, one phase after the other, validated on one batch."""
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


def _keep(data: TrainingData, samples: int) -> None:
    """Train on the first of them alone, with the words and tags of all: the features of no others are cached."""
    data.train, data.unlabelled, data.text = data.train[:samples], data.unlabelled[:samples], data.text[:samples]


def _samples_a_step(config: RunConfig, processes: int) -> int:
    return config.optimization.batch_size * config.optimization.gradient_accumulation_steps * processes


def _steps(config: RunConfig, data: TrainingData, stretch: Stretch, processes: int) -> int:
    """The steps of all turns or epochs of a phase."""
    phase = stretch.phase
    samples = len(data.text) if "language_modeling" in phase.objectives else len(data.samples(phase))
    return stretch.total * (phase.steps or math.ceil(samples / _samples_a_step(config, processes)))


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
