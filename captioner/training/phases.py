"""What a phase trains: the parts of a captioner, their parameter groups, and their learning rates over the phase."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.models import group_parameters
from torch import nn

from captioner.config import TRAINED_BY, Objective, OptimizationConfig, Part, PhaseConfig
from captioner.errors import CaptionerError
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration

OBJECTIVE_OF_HEAD: dict[str, Objective] = {
    "tags": "tags",
    "teacher": "distillation",
    "contrastive": "contrastive",
}


@dataclass(frozen=True)
class ParameterPlace:
    """The place of a parameter in the model.

    Attributes:
        trained_by: the objectives whose gradient reaches it.
        depth: the number of trunk blocks between it and the trunk's output.
    """

    part: Part
    trained_by: frozenset[Objective]
    depth: int = 0


def parameter_places(model: CaptionerForConditionalGeneration) -> dict[str, ParameterPlace]:
    """Return the place of every parameter, by its name."""
    depths = {f"encoder.trunk.model.{name}": depth for name, depth in trunk_depths(model.encoder.trunk.model).items()}
    return {name: _place(name, depths.get(name, 0)) for name, _ in model.named_parameters()}


def _place(name: str, depth: int) -> ParameterPlace:
    place = _place_of_weight(name, depth)
    return replace(place, part="adapters") if ".lora_" in name else place


def _place_of_weight(name: str, depth: int) -> ParameterPlace:
    match name.split("."):
        case ["encoder", "trunk", *_]:
            return ParameterPlace("trunk", TRAINED_BY["trunk"], depth)
        case ["encoder", *_]:
            return ParameterPlace("bridge", TRAINED_BY["bridge"])
        case ["decoder", "embed_tokens" | "embed_positions", *_]:
            return ParameterPlace("embeddings", TRAINED_BY["embeddings"])
        case ["decoder", "layers", _, "cross_attn" | "cross_attn_norm", *_]:
            return ParameterPlace("decoder", frozenset({"captioning", "reward"}))
        case ["heads", head, *_]:
            return ParameterPlace("heads", frozenset({OBJECTIVE_OF_HEAD[head]}))
    return ParameterPlace("decoder", TRAINED_BY["decoder"])


def trunk_depths(trunk: nn.Module) -> dict[str, int]:
    """Return the depth of each trunk parameter by timm's grouping; 0 is the last block and everything after it."""
    group_matcher: Any = trunk.group_matcher
    layers: dict[str, int] = group_parameters(trunk, group_matcher(coarse=False), reverse=True)
    last = max(layers.values())
    return {name: last - layer for name, layer in layers.items()}


def apply_phase(model: CaptionerForConditionalGeneration, phase: PhaseConfig) -> None:
    """Train the phase's parts and freeze the others: they get no gradient, so not one of their bits changes."""
    dropout = model.config.dropout if phase.dropout is None else phase.dropout
    for module in (*model.encoder.bridge.modules(), *model.decoder.modules()):
        if isinstance(module, nn.Dropout):
            module.p = dropout
    places = parameter_places(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(places[name], phase))
    set_modes(model, phase)


def set_modes(model: CaptionerForConditionalGeneration, phase: PhaseConfig) -> None:
    """Set training mode; a frozen trunk stays in evaluation mode, without dropout and stochastic depth."""
    model.train()
    if "trunk" not in phase.learning_rates:
        model.encoder.trunk.eval()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put the module into evaluation mode inside the block; afterwards every part has its former mode."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def is_trained(place: ParameterPlace, phase: PhaseConfig) -> bool:
    """Does a parameter have a rate in the phase, and an objective that reaches it?

    Data-parallel training would wait forever for the gradient of a parameter that no objective reaches.
    """
    if peak_rate(place.part, phase) == 0 or not place.trained_by & phase.objectives.keys():
        return False
    return place.part != "trunk" or phase.trunk_blocks is None or place.depth < phase.trunk_blocks


def peak_rate(part: Part, phase: PhaseConfig) -> float:
    """Return the peak learning rate of a part, 0 if it is frozen."""
    implied = phase.learning_rates.get("decoder", 0.0) if part == "embeddings" else 0.0
    return phase.learning_rates.get(part, implied)


def build_optimizer(model: CaptionerForConditionalGeneration, config: OptimizationConfig) -> torch.optim.AdamW:
    """Build AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101) over all parameters, for all phases.

    Weight decay applies to the matrices of linear and convolution layers, not to norms, biases and embeddings. Each
    parameter group has its place under "place".
    """
    tied = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and id(module.weight) not in tied
    }
    places = parameter_places(model)
    groups: dict[tuple[ParameterPlace, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((places[name], id(parameter) in decayed), []).append(parameter)
    if sum(map(len, groups.values())) != len(list(model.parameters())):
        raise CaptionerError("the parameter groups do not cover the model")
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": config.weight_decay if decays else 0.0, "place": place, "lr": 0.0}
            for (place, decays), parameters in groups.items()
        ],
        betas=config.betas,
        fused=True,
    )


def set_rates(optimizer: torch.optim.Optimizer, phase: PhaseConfig, step: int, total_steps: int) -> dict[str, float]:
    """Set every group's learning rate for this step of the phase; return the rate of each part that is trained.

    The schedule is a linear warm-up, then a cosine down to `final_rate_fraction` of the peak (Loshchilov and Hutter
    2017, eq. 5). The rate of a trunk block is multiplied by `layer_decay` for each block above it.
    """
    shape = schedule(step, total_steps, phase.warmup_fraction, phase.final_rate_fraction)
    for group in optimizer.param_groups:
        place: ParameterPlace = group["place"]
        group["lr"] = peak_rate(place.part, phase) * shape * phase.layer_decay**place.depth
    return {part: rate * shape for part, rate in phase.learning_rates.items()}


def schedule(step: int, total_steps: int, warmup_fraction: float, final_fraction: float) -> float:
    """Return the factor on the peak rate at `step`, counted from 0, of `total_steps`."""
    warmup = max(1, round(warmup_fraction * total_steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))
