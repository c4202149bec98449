"""Checkpoints: a model folder in transformers' format, plus everything that a resumed training needs.

All files are safetensors or JSON, so reading a checkpoint never runs code.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from captioner.errors import CaptionerError
from captioner.training.ema import WeightAverage
from captioner.training.fsdp import part_like


@dataclass
class Progress:
    """How far the training is.

    Attributes:
        epoch: how many stretches of the recipe are finished.
        step: how many optimizer steps of the next stretch are finished.
        global_step: how many optimizer steps are finished in all.
        best: the best validation score.
        phases: the phase of each stretch begun.
        courses: what determined the batches of each phase (`resume_checks.course`).
        history: the scores of every validation.
        captions: the captions that the last validation showed, by the photo's row.
    """

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    best: float | None = None
    phases: list[str] = field(default_factory=list)
    courses: dict[str, dict[str, Any]] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    captions: dict[str, str] = field(default_factory=dict)


def training_tensors(optimizer: torch.optim.Optimizer, average: WeightAverage | None) -> dict[str, Tensor]:
    """Return the tensors of the optimizer and the average, sharded as the model is."""
    state = optimizer.state_dict()["state"]
    tensors = {
        f"optimizer.{index}.{name}": torch.as_tensor(value)
        for index, slot in state.items()
        for name, value in slot.items()
    }
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    return tensors


def save_training_state(
    folder: Path,
    progress: Progress,
    origin: dict[str, Any],
    tensors: dict[str, Tensor],
    scaler: torch.amp.GradScaler | None,
) -> None:
    """Write everything but the weights.

    Args:
        origin: the part of the recipe that must not change (`resume_checks.origin`).
        tensors: the `training_tensors`, unsharded so that any number of processes can resume, and `random_states`
            [processes, bytes], the states of the generators that dropout draws from.
    """
    save_file(tensors, folder / "training_state.safetensors")
    state = {"progress": asdict(progress), "origin": origin, "scaler": scaler.state_dict() if scaler else None}
    (folder / "progress.json").write_text(json.dumps(state, indent=1))


def load_progress(folder: Path) -> tuple[Progress, dict[str, Any]]:
    """Return the progress and the `origin` of a checkpoint (empty if an earlier version wrote it).

    Raises:
        CaptionerError: the folder is not a checkpoint.
    """
    with _reading(folder):
        state = json.loads((folder / "progress.json").read_text())
        return Progress(**state["progress"]), state.get("origin", {})


def load_training_state(
    folder: Path,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    scaler: torch.amp.GradScaler | None,
) -> Tensor:
    """Restore optimizer, average and scaler; return the generator state of every process.

    If the checkpoint has no average, the average starts from the current weights.

    Raises:
        CaptionerError: the folder is not a checkpoint of this model.
    """
    with _reading(folder):
        tensors = load_file(folder / "training_state.safetensors")
        _restore_optimizer(optimizer, _below("optimizer.", tensors))
        averages = _below("average.", tensors)
        if average is not None and averages:
            average.load_state_dict(averages)
        state = json.loads((folder / "progress.json").read_text())
        if scaler is not None and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        return tensors["random_states"]


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CaptionerError(f"{folder}: cannot be read as a checkpoint: {reason}") from error


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def random_state(device: torch.device) -> Tensor:
    """Return the state of the CPU's generator, followed by that of a CUDA device, as bytes."""
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else state


def restore_random_state(state: Tensor, device: torch.device) -> None:
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size].clone())  # set_rng_state ignores the offset of a view
    if device.type == "cuda" and len(state) > size:
        torch.cuda.set_rng_state(state[size:].clone(), device)


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        slots.setdefault(int(index), {})[name] = part_like(parameters[int(index)], value)
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
