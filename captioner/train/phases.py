"""Who learns what, when: the parts of a captioner, their parameter groups and their rates through a phase."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import group_parameters
from torch import nn

from captioner.config import TEACHES, Objective, OptimizationConfig, Part, PhaseConfig
from captioner.errors import CaptionerError
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration

OBJECTIVE_OF_HEAD: dict[str, Objective] = {
    "tags": "tags",
    "teacher": "distillation",
    "contrastive": "contrastive",
}


@dataclass(frozen=True)
class ParameterPlace:
    """Where a parameter belongs: its part, how many trunk blocks lie between it and the trunk's output, and the
    objectives whose gradient reaches it."""

    part: Part
    taught_by: frozenset[Objective]
    depth: int = 0


def parameter_places(model: CaptionerForConditionalGeneration) -> dict[str, ParameterPlace]:
    """Every parameter's place by its name."""
    depths = {f"encoder.trunk.model.{name}": depth for name, depth in trunk_depths(model.encoder.trunk.model).items()}
    return {name: _place(name, depths.get(name, 0)) for name, _ in model.named_parameters()}


def _place(name: str, depth: int) -> ParameterPlace:
    match name.split("."):
        case ["encoder", "trunk", *_]:
            return ParameterPlace("trunk", TEACHES["trunk"], depth)
        case ["encoder", *_]:
            return ParameterPlace("bridge", TEACHES["bridge"])
        case ["decoder", "embed_tokens" | "embed_positions", *_]:
            return ParameterPlace("embeddings", TEACHES["embeddings"])
        case ["decoder", "layers", _, "cross_attn" | "cross_attn_norm", *_]:
            return ParameterPlace("decoder", frozenset({"captioning", "reward"}))
        case ["heads", head, *_]:
            return ParameterPlace("heads", frozenset({OBJECTIVE_OF_HEAD[head]}))
    return ParameterPlace("decoder", TEACHES["decoder"])


def trunk_depths(trunk: nn.Module) -> dict[str, int]:
    """Block of each trunk parameter by timm's own grouping, 0 the last block with what follows it."""
    group_matcher: Any = trunk.group_matcher
    layers: dict[str, int] = group_parameters(trunk, group_matcher(coarse=False), reverse=True)
    last = max(layers.values())
    return {name: last - layer for name, layer in layers.items()}


def apply_phase(model: CaptionerForConditionalGeneration, phase: PhaseConfig) -> None:
    """Let the phase's parts learn and everything else rest: no gradient, hence not one bit of change."""
    dropout = model.config.dropout if phase.dropout is None else phase.dropout
    for module in (*model.encoder.bridge.modules(), *model.decoder.modules()):
        if isinstance(module, nn.Dropout):
            module.p = dropout
    places = parameter_places(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learns(places[name], phase))
    set_modes(model, phase)


def set_modes(model: CaptionerForConditionalGeneration, phase: PhaseConfig) -> None:
    """Training mode for the parts that learn; a trunk at rest has no dropout or stochastic depth."""
    model.train()
    if "trunk" not in phase.learning_rates:
        model.encoder.trunk.eval()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """No dropout of the module's inside the block; each part of it is afterwards in the mode that it was in."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def learns(place: ParameterPlace, phase: PhaseConfig) -> bool:
    """Whether a parameter has a rate in the phase, and an objective that reaches it: one without a gradient would hold
    up data-parallel training."""
    if peak_rate(place.part, phase) == 0 or not place.taught_by & phase.objectives.keys():
        return False
    return place.part != "trunk" or phase.trunk_blocks is None or place.depth < phase.trunk_blocks


def peak_rate(part: Part, phase: PhaseConfig) -> float:
    """A part's rate in the phase, 0 where it rests."""
    implied = phase.learning_rates.get("decoder", 0.0) if part == "embeddings" else 0.0
    return phase.learning_rates.get(part, implied)


def build_optimizer(model: CaptionerForConditionalGeneration, config: OptimizationConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101) over all parameters, kept through phases.

    Matrices of linear and convolution layers decay; norms, biases and embeddings do not. Each group carries its place.
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
    """Set every group's rate for this step of the phase; gives the rate of each part that learns.

    Linear warm-up, then a cosine to `final_rate_fraction` of the peak (Loshchilov and Hutter 2017, eq. 5); a trunk
    block's rate falls by `layer_decay` with each block above it.
    """
    shape = schedule(step, total_steps, phase.warmup_fraction, phase.final_rate_fraction)
    for group in optimizer.param_groups:
        place: ParameterPlace = group["place"]
        group["lr"] = peak_rate(place.part, phase) * shape * phase.layer_decay**place.depth
    return {part: rate * shape for part, rate in phase.learning_rates.items()}


def schedule(step: int, total_steps: int, warmup_fraction: float, final_fraction: float) -> float:
    """Factor on the peak rate at `step` of `total_steps`, counted from 0."""
    warmup = max(1, round(warmup_fraction * total_steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))
