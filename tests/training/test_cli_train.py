import resource
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


def tiny(shapes: Path, output_dir: object) -> list[str]:
    recipe = str(Path(__file__).parents[2] / "configs" / "tiny.yaml")
    paths = [f"data.train.path={shapes}", f"data.validation.path={shapes}", f"output_dir={output_dir}"]
    return ["--config", recipe, *paths, "phases.0.epochs=1", "validation.max_images=8"]


@pytest.mark.parametrize("place", ["a file", "below a file", "/dev/full", "/proc/nowhere"])
def test_a_place_that_cannot_be_written_to_costs_one_line_before_the_work(
    train, shapes: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("mine")
    output_dir = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "run"}.get(place, Path(place))
    status, out, err = train(*tiny(shapes, output_dir))
    assert (status, out) == (2, "") and err.startswith(f"error: {output_dir}: cannot be written: ")
    assert err.count("\n") == 1 and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("limit", [200, 20_000])
def test_a_disk_that_is_full_costs_one_line(train, shapes: Path, tmp_path: Path, limit: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))  # no file grows beyond it
    try:
        status, out, err = train(*tiny(shapes, tmp_path / "run"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    last = err.splitlines()[-1]
    assert (status, out) == (2, "") and last.startswith(f"error: {tmp_path / 'run'}") and "File too large" in last


@pytest.mark.parametrize(("name", "value"), [("RANK", ""), ("WORLD_SIZE", "x"), ("LOCAL_RANK", " ")])
def test_a_launch_that_is_none_costs_one_line(
    train, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    status, out, err = train(*tiny(shapes, tmp_path / "run"))
    assert (status, out) == (2, "") and err == f"error: the environment variable {name} is {value!r}, not a number\n"


def test_nothing_to_resume_costs_one_line(train, shapes: Path, tmp_path: Path) -> None:
    status, out, err = train(*tiny(shapes, tmp_path / "run"), "--resume")
    assert (status, out) == (2, "") and "nothing to resume" in err and not (tmp_path / "run").exists()
