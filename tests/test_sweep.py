import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from captioner.errors import CaptionerError

pytest.importorskip("optuna", reason="the extra `sweep` is not installed")

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "configs" / "tiny.yaml"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / "sweep.py"))


@pytest.fixture(scope="module")
def changes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("shapes")
    runpy.run_path(str(ROOT / "examples" / "draw_shapes.py"))["draw_shapes"](folder, images=200)
    paths = [f"data.{part}.path={folder / 'captions.csv'}" for part in ("train", "validation")]
    return [*paths, "phases.0.epochs=2", "validation.metric=ROUGE_L", "optimization.betas=[0.9, 0.98]"]


def best_of(run: Path) -> float:
    return json.loads((run / "last" / "progress.json").read_text())["progress"]["best"]


def test_the_best_trial_is_the_one_with_the_best_score_and_a_sweep_goes_on(
    example: dict[str, Any], changes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    searched = ["phases.0.learning_rates.decoder=1e-4..1e-2:log", "model.num_hidden_layers=1..2"]
    arguments = [str(RECIPE), "--output", str(tmp_path), *searched, *changes, "--trials"]
    example["main"]([*arguments, "1"])
    example["main"]([*arguments, "2"])
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["000", "001"]
    lines = capsys.readouterr()
    scores = [best_of(tmp_path / number) for number in ("000", "001")]
    assert scores[0] != scores[1]
    reported = [line for line in lines.err.splitlines() if " with " in line]
    assert [f"{score:.4f}" in line for score, line in zip(scores, reported, strict=True)] == [True, True]
    _, values = reported[scores.index(max(scores))].split(" with ")
    assert lines.out.splitlines()[-1].startswith(str(RECIPE)) and lines.out.rstrip().endswith(values)
    with pytest.raises(CaptionerError, match="holds the sweep"):
        example["sweep"](RECIPE, ["model.num_hidden_layers=1..3", *changes], 2, tmp_path)


def test_a_trial_that_fails_costs_itself(example: dict[str, Any], changes: list[str], tmp_path: Path) -> None:
    """Two rates that no loss survives."""
    with pytest.raises(CaptionerError, match="no trial succeeded"):
        example["sweep"](RECIPE, ["phases.0.learning_rates.trunk=1e37,1e38", *changes], 2, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed=1", "nothing to search"),
        ("seed", "nothing to search"),
        ("model.num_layers=1..3", "did you mean 'num_hidden_layers'"),
        ("optimization.batch_size=16,many", "optimization.batch_size"),
        ("optimization.weight_decay=0.2..0.1", "optimization.weight_decay=0.2..0.1"),
        ("optimization.weight_decay=0..0.1:log", "optimization.weight_decay=0..0.1:log"),
    ],
)
def test_a_mistake_is_named_before_anything_is_trained(
    example: dict[str, Any],
    changes: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: str,
    message: str,
) -> None:
    with pytest.raises(SystemExit, match="2"):
        example["main"]([str(RECIPE), change, *changes, "--output", str(tmp_path / "sweep")])
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "sweep").exists()
