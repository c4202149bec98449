"""`captioner annotate`: what it hands to the engines."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import captioner.ray
from captioner.cli import app
from captioner.errors import CaptionerError


def test_the_cluster_gets_the_path_the_folder_and_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []
    monkeypatch.setattr(captioner.ray, "annotate_path", lambda *paths, **options: asked.append((paths, options)))
    output = str(tmp_path / "captions")
    arguments = ["annotate", "photos", "--engine", "ray", "-o", output, "--num-beams", "2", "--banned-word", "cat"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    ((paths, options),) = asked
    assert paths == ("photos", output)
    assert (options["num_beams"], options["banned_words"], options["batch_size"]) == (2, ["cat"], 16)


@pytest.mark.parametrize(
    "other", [["--min-confidence", "0.5"], ["--precision", "bf16"], ["--neutral-people"], ["--style", "alt"]]
)
def test_the_cluster_refuses_what_it_cannot_do(tmp_path: Path, other: list[str]):
    arguments = ["annotate", "photos", "--engine", "ray", "-o", str(tmp_path / "captions"), *other]
    with pytest.raises(CaptionerError, match="--engine ray takes one path"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
