"""`captioner env` and `captioner --version` say what a bug report needs, and nothing private."""

import os
import subprocess
import sys

import numpy
import pytest

from captioner import __version__, cli


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["captioner", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    return capsys.readouterr().out


def test_env_names_versions_devices_threads_and_instruction_sets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    output = run("env", monkeypatch=monkeypatch, capsys=capsys)
    values = dict(line.split(": ", 1) for line in output.splitlines())
    assert values["captioner"] == __version__
    assert values["numpy"] == numpy.__version__
    assert values["devices"].startswith("cpu") and values["instruction sets"] and "GiB" in values["memory"]
    assert values["OMP_NUM_THREADS"] == "1" and int(values["threads"].split()[0]) >= 1
    assert "hf_secret" not in output and os.path.expanduser("~") not in output


def test_env_works_without_torch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("captioner.cli.env.find_spec", lambda name: None)
    output = run("env", monkeypatch=monkeypatch, capsys=capsys)
    assert "devices" not in output and "numpy: " in output


def test_version_is_that_of_the_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version", monkeypatch=monkeypatch, capsys=capsys) == f"{__version__}\n"


def test_shells_complete_commands() -> None:
    code = "import sys; sys.argv = ['captioner']; from captioner.cli import main; main()"
    asked = {"_CAPTIONER_COMPLETE": "complete_bash", "COMP_WORDS": "captioner ev", "COMP_CWORD": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["evaluate"]
