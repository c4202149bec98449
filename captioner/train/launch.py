"""What the launcher asks for (`accelerate launch`, torchrun; in the environment): obeyed, or refused with the reason.

`accelerate launch` sets the precision to "no" and accumulation to 1 where its user says nothing, so these leave the
recipe its own; a recipe that says nothing takes any others, and one that says something else is refused.
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
SHARDED = "configs/accelerate/fsdp2_8gpu.yaml and zero2_8gpu.yaml share parameters and optimizer among processes"
UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context and sequence parallelism",
}
"""Switches of the launcher, and what each would turn on that training does not have."""


def obey_launcher(config: RunConfig) -> RunConfig:
    """The recipe with what it leaves to the launcher filled in.

    Raises:
        CaptionerError: the launcher asks for something else than the recipe, or for what training does not have, or a
            variable of its is no number.
    """
    this_process()
    for switch, meaning in UNSUPPORTED.items():
        if os.environ.get(switch, "").lower() in ("1", "true", "yes"):
            raise CaptionerError(f"the launcher asks for {meaning}, which training does not support: {SHARDED}")
    precision = os.environ.get(MIXED_PRECISION, "").lower() or "no"
    if precision not in ("no", "bf16", "fp16"):
        raise CaptionerError(f"{MIXED_PRECISION} is {precision!r}: training has no, bf16 and fp16")
    accumulation = os.environ.get(ACCUMULATION) or "1"
    if not accumulation.isdecimal() or int(accumulation) < 1:
        raise CaptionerError(f"{ACCUMULATION} is {accumulation!r}: a whole number above 0 is needed")
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
            "say the same in both, or leave one out"
        )


def join_launch(config: RunConfig) -> Accelerator:
    """Join the launch's other processes, with the precision and the trackers of a recipe that `obey_launcher` gave.

    Raises:
        CaptionerError: a launch that cannot start, or would not train as it was meant: with DeepSpeed or the first
            version of FSDP; processes that do not know of one another, as torchrun's on a machine without GPUs;
            trackers that are not installed.
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
            f"{started} processes were started, each of which would train alone; "
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
    """A recipe's values by the keys that set them on the command line (`phases.0.epochs`): trackers take no nesting."""
    if not isinstance(tree, dict | list):
        return {prefix.removesuffix("."): tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {name: leaf for key, value in items for name, leaf in flat_keys(value, f"{prefix}{key}.").items()}
