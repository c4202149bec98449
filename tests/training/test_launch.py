"""What the launcher says in its environment is obeyed, or refused; the recipe has the last word on nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import accelerate
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType

from captioner.config import RunConfig
from captioner.errors import CaptionerError
from captioner.training.launch import obey_launcher
from captioner.training.trainer import Trainer

Recipe = Callable[..., RunConfig]
PRECISION, ACCUMULATION = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"


@pytest.fixture(autouse=True)
def _a_process_of_its_own() -> None:
    """accelerate keeps the precision that a process had first."""
    AcceleratorState._reset_state(reset_partial_state=False)
    yield
    AcceleratorState._reset_state(reset_partial_state=False)


@pytest.mark.parametrize("said", [(), ("optimization.mixed_precision=bf16",)], ids=["silent", "the same"])
def test_the_launcher_s_precision_is_that_of_the_passes(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: tuple[str, ...]
) -> None:
    monkeypatch.setenv(PRECISION, "bf16")
    trainer = Trainer(recipe(*said), resume=False)
    with trainer.accelerator.autocast():
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16 and torch.is_autocast_enabled("cpu")
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["optimization"]["mixed_precision"] == "bf16", "the recipe as run"


def test_a_launcher_that_says_nothing_leaves_the_recipe_its_precision(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`accelerate launch` says "no" where its user does not say anything."""
    for silent in ("no", "", None):
        monkeypatch.delenv(PRECISION, raising=False) if silent is None else monkeypatch.setenv(PRECISION, silent)
        config = recipe("optimization.mixed_precision=bf16", "optimization.gradient_accumulation_steps=2")
        assert obey_launcher(config) == config
        assert obey_launcher(recipe()).optimization.mixed_precision == "no"


def test_the_launcher_s_accumulation_makes_the_steps_and_divides_no_loss(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_recipe = Trainer(recipe("optimization.gradient_accumulation_steps=2"), resume=False)
    monkeypatch.setenv(ACCUMULATION, "2")
    by_launcher = Trainer(recipe(), resume=False)
    stretch = by_recipe.config.schedule()[0]
    norms = []
    for trainer in (by_recipe, by_launcher):
        model, train_set, _ = trainer.enter(stretch.phase)
        steps = trainer.data.steps(train_set, stretch, 0, 0, 1)
        assert [len(step) for step in steps] == [2, 2, 1]
        loader = trainer._loader(train_set, steps[0])
        norms.append(trainer.step.take(model, list(loader), stretch.phase, 0).read()["grad_norm"])
    assert norms[0] == norms[1]


def test_the_launcher_s_compiler_compiles(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "eager")
    trainer = Trainer(recipe(), resume=False)
    model, *_ = trainer.enter(trainer.config.schedule()[0].phase)
    assert isinstance(model, torch._dynamo.OptimizedModule) or model._compiled_call_impl is not None


@pytest.mark.parametrize(
    ("variable", "value", "override", "message"),
    [
        (
            PRECISION,
            "bf16",
            "optimization.mixed_precision=fp16",
            "the launcher sets mixed_precision to bf16, the recipe",
        ),
        (
            PRECISION,
            "bf16",
            "optimization.mixed_precision='no'",
            "the launcher sets mixed_precision to bf16, the recipe",
        ),
        (PRECISION, "fp8", "seed=0", "ACCELERATE_MIXED_PRECISION is 'fp8': training supports no, bf16 and fp16"),
        (
            ACCUMULATION,
            "4",
            "optimization.gradient_accumulation_steps=2",
            "the launcher sets gradient_accumulation_steps",
        ),
        (ACCUMULATION, "auto", "seed=0", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS is 'auto'"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "seed=0", "the launcher asks for DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "seed=0", "the launcher asks for Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "seed=0", "the launcher asks for tensor, context"),
        ("ACCELERATE_DYNAMO_BACKEND", "clang", "seed=0", "this launch cannot start: 'CLANG'"),
        ("RANK", "", "seed=0", "the environment variable RANK is '', not a number"),
        ("WORLD_SIZE", "x", "seed=0", "the environment variable WORLD_SIZE is 'x', not a number"),
        ("LOCAL_RANK", "0.5", "seed=0", "the environment variable LOCAL_RANK is '0.5', not a number"),
        ("RANK", "3", "seed=0", r"this is process 3 \(RANK\) of 1"),
    ],
)
def test_a_launch_that_is_not_what_the_recipe_says_is_refused_before_anything_is_written(
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variable: str,
    value: str,
    override: str,
    message: str,
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(CaptionerError, match=message):
        Trainer(recipe(override), resume=False)
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed_is_refused(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(CaptionerError, match="log_with: not installed: tensorboard"):
        Trainer(recipe("log_with=[tensorboard]"), resume=False)


class FakeTracker(GeneralTracker):
    name, requires_logging_directory, main_process_only = "trackio", False, True
    tracker = None
    configs: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, project: str) -> None:
        super().__init__()

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.configs.append(values)

    def log(self, values: dict[str, Any], step: int | None, **kwargs: Any) -> None: ...


def test_a_tracker_gets_the_recipe_by_its_keys(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [LoggerType.TRACKIO])
    monkeypatch.setitem(accelerate.accelerator.LOGGER_TYPE_TO_CLASS, "trackio", FakeTracker)
    config = recipe("log_with=[trackio]")
    Trainer(config, resume=False)
    (given,) = FakeTracker.configs
    assert given["phases.0.epochs"] == 2 and given["optimization.betas.1"] == config.optimization.betas[1]
    assert given["model.encoder_kwargs.patch_size"] == 8
    assert {type(value) for value in given.values()} <= {int, float, str, bool, type(None)}, "all that trackers take"
