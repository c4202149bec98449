"""Checkpoints: a model folder as transformers writes it, and beside it all that a resumed training needs.

Everything is safetensors and JSON: reading a checkpoint never runs code.
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
from captioner.train.ema import WeightAverage
from captioner.train.fsdp import part_like


@dataclass
class Progress:
    """Where the training stands: `epoch` stretches of the recipe are done, and `step` optimizer steps of the next.

    `phases` names the phase of each stretch begun, `courses` holds by phase what decided its steps
    (`resume_checks.course`).
    `history` holds the scores of every validation, `captions` what the last one said of the photos it showed.
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
    """What optimizer and average hold, whole or in parts as the model is."""
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
    """Write all but the weights.

    `origin` is what of the recipe must not change (`resume_checks.origin`); `tensors` are the `training_tensors`,
    whole, so that any number of processes can go on from them, and `random_states` [processes, bytes] of the
    generators that dropout draws from.
    """
    save_file(tensors, folder / "training_state.safetensors")
    state = {"progress": asdict(progress), "origin": origin, "scaler": scaler.state_dict() if scaler else None}
    (folder / "progress.json").write_text(json.dumps(state, indent=1))


def load_progress(folder: Path) -> tuple[Progress, dict[str, Any]]:
    """Where the training stands, and the `origin` of its weights: empty in a checkpoint of an earlier version.

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
    """Put everything back where it was, and give every process's generator state.

    An average that the training did not have before begins with the weights as they are.

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
    """Bytes of the CPU generator and, after them, of the device's own."""
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else state


def restore_random_state(state: Tensor, device: torch.device) -> None:
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size].clone())  # set_rng_state overlooks where a view begins
    if device.type == "cuda" and len(state) > size:
        torch.cuda.set_rng_state(state[size:].clone(), device)


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        slots.setdefault(int(index), {})[name] = part_like(parameters[int(index)], value)
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
