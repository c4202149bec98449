import sys
from pathlib import Path

import pytest

from captioner import cli


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["captioner", "train", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (end.value.code or 0, *capsys.readouterr())

    return run


def test_a_process_that_was_to_be_one_of_several_does_not_train_alone(train, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch --cpu --num_processes 2` sets, and no more, where it is given no MPI."""
    for name, value in {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    status, out, err = train("--config", "configs/tiny.yaml")
    assert (status, out) == (2, "") and "torchrun --nproc-per-node N" in err


def test_a_dry_run_prints_what_each_phase_will_take(train, shapes: Path, tmp_path: Path) -> None:
    recipe = str(Path(__file__).parents[2] / "configs" / "tiny.yaml")
    data = [f"data.train.path={shapes}", f"data.validation.path={shapes}", f"output_dir={tmp_path / 'run'}"]
    status, out, _ = train("--config", recipe, "--dry-run", *data)
    assert status == 0 and "joint" in out and "hours" in out and "GiB of memory" in out
    assert not (tmp_path / "run").exists()
