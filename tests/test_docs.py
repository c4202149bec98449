"""What the documentation tells people to write is what the package reads."""

import re
from pathlib import Path

import pytest
import yaml

from captioner.config import RunConfig

TRAINING = Path(__file__).parents[1] / "docs" / "training.md"
pytestmark = pytest.mark.skipif(not TRAINING.is_file(), reason="installed without the repository")


def recipes() -> list[str]:
    return (
        re.findall(r"```yaml\n(.*?)```", TRAINING.read_text(encoding="utf-8"), re.DOTALL) if TRAINING.is_file() else []
    )


@pytest.mark.parametrize("text", recipes())
def test_every_recipe_shown_is_one(text: str) -> None:
    basis = {
        "output_dir": "runs/x",
        "data": {"train": {"path": "a.csv"}, "validation": {"path": "a.csv"}},
        "phases": [{"name": "joint", "epochs": 1, "learning_rates": {"decoder": 1e-3}}],
    }
    RunConfig.model_validate(basis | yaml.safe_load(text))
    assert len(recipes()) == 6
