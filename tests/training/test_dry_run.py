import json
from collections.abc import Callable
from pathlib import Path

import pytest

from captioner.config import RunConfig
from captioner.errors import CaptionerError
from captioner.hub.load import load_model
from captioner.training.dry_run import dry_run
from captioner.training.trainer import train

PHASES = (
    "phases=[{name: frozen, epochs: 2, learning_rates: {bridge: 0.001, decoder: 0.001}}, {repeat: 2, phases: "
    "[{name: rewards, steps: 3, objectives: {reward: 1.0}, learning_rates: {decoder: 0.001}}]}]"
)


def test_it_counts_the_steps_that_the_training_takes_and_leaves_nothing_behind(
    recipe: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = recipe(PHASES, "optimization.gradient_accumulation_steps=2")
    before = set(tmp_path.rglob("*"))
    estimate = dry_run(config)
    assert set(tmp_path.rglob("*")) == before
    best = train(config)
    assert estimate.parameters == sum(p.numel() for p in load_model(best, "best")[0].parameters())
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    taken = {name: sum("loss" in line and line["phase"] == name for line in log) for name in ("frozen", "rewards")}
    assert {phase.name: phase.steps for phase in estimate.phases} == taken == {"frozen": 6, "rewards": 6}
    frozen, rewards = estimate.phases
    assert estimate.parameters > frozen.learning > rewards.learning > 0
    assert all(phase.tokens_per_second > 0 and phase.hours > 0 for phase in estimate.phases) and estimate.memory > 2**20


def test_it_finds_what_the_training_would_stumble_over(recipe: Callable[..., RunConfig], tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match=r"lost\.csv"):
        dry_run(recipe(f"data.validation.path={tmp_path / 'lost.csv'}"))
