"""Applies the settings of the launcher (`accelerate launch`, torchrun), which come in the environment.

`accelerate launch` sets precision "no" and accumulation 1 unless its user chooses others, so these two do not override
the recipe. Other values fill in keys that the recipe does not set; if the recipe sets another value, that is an error.
"""

import os
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType, GradientAccumulationPlugin

from captioner.config import OptimizationConfig, RunConfig
from captioner.distributed import this_process
from captioner.errors import CaptionerError

MIXED_PRECISION = "ACCELERATE_MIXED_PRECISION"
ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
SHARDED = "configs/accelerate/fsdp2_8gpu.yaml and zero2_8gpu.yaml shard parameters and optimizer over processes"
UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context and sequence parallelism",
}
"""Switches of the launcher for features that training does not support."""


def obey_launcher(config: RunConfig) -> RunConfig:
    """Return the recipe with the launcher's settings filled in.

    Raises:
        CaptionerError: the launcher contradicts the recipe or asks for an unsupported feature; one of its variables is
            not a number.
    """
    this_process()
    for switch, meaning in UNSUPPORTED.items():
        if os.environ.get(switch, "").lower() in ("1", "true", "yes"):
            raise CaptionerError(f"the launcher asks for {meaning}, which training does not support: {SHARDED}")
    precision = os.environ.get(MIXED_PRECISION, "").lower() or "no"
    if precision not in ("no", "bf16", "fp16"):
        raise CaptionerError(f"{MIXED_PRECISION} is {precision!r}: training supports no, bf16 and fp16")
    accumulation = os.environ.get(ACCUMULATION) or "1"
    if not accumulation.isdecimal() or int(accumulation) < 1:
        raise CaptionerError(f"{ACCUMULATION} is {accumulation!r}: it must be a whole number above 0")
    changes: dict[str, str | int] = {}
    if precision != "no":
        changes["mixed_precision"] = precision
    if accumulation != "1":
        changes["gradient_accumulation_steps"] = int(accumulation)
    for name, value in changes.items():
        _refuse_another(config.optimization, name, value)
    if not changes:
        return config
    return config.model_copy(update={"optimization": config.optimization.model_copy(update=changes)})


def _refuse_another(recipe: OptimizationConfig, name: str, value: str | int) -> None:
    if name in recipe.model_fields_set and getattr(recipe, name) != value:
        raise CaptionerError(
            f"the launcher sets {name} to {value}, the recipe optimization.{name} to {getattr(recipe, name)}: "
            "set the same value in both, or leave one out"
        )


def join_launch(config: RunConfig) -> Accelerator:
    """Connect to the other processes of the launch, with the precision and the trackers of the recipe.

    Raises:
        CaptionerError: the launch cannot start or would not train as intended: DeepSpeed, version 1 of FSDP, processes
            that cannot see each other (torchrun on a machine without GPUs), trackers that are not installed.
    """
    try:
        accelerator = Accelerator(
            mixed_precision=config.optimization.mixed_precision,
            # The trainer sums over accumulated batches itself: accelerate must not divide their losses.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            log_with=list(config.log_with) or None,
            project_dir=config.output_dir,
        )
    except (ValueError, ImportError, RuntimeError) as error:
        raise CaptionerError(f"this launch cannot start: {' '.join(str(error).split())}") from error
    started = this_process().count
    if accelerator.num_processes < started:
        raise CaptionerError(
            f"{started} processes were started, and each would train alone; "
            f"without GPUs: ACCELERATE_USE_CPU=true torchrun --nproc-per-node {started} train.py ..."
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise CaptionerError(f"DeepSpeed is not supported: {SHARDED}")
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise CaptionerError("this launch has fsdp_version 1: set 2, as configs/accelerate/fsdp2_8gpu.yaml does")
    if missing := sorted(set(config.log_with) - {str(tracker) for tracker in accelerator.log_with}):
        raise CaptionerError(f"log_with: not installed: {', '.join(missing)}")
    return accelerator


def flat_keys(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return a recipe's values by the keys of the command line (`phases.0.epochs`), as trackers accept no nesting."""
    if not isinstance(tree, dict | list):
        return {prefix.removesuffix("."): tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {name: leaf for key, value in items for name, leaf in flat_keys(value, f"{prefix}{key}.").items()}
