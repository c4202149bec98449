"""A machine without an accelerator is told without torch; where there may be one, torch is asked."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from captioner.infer import accelerator


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch, **kinds: str | None) -> None:
    """Let this be the build of torch that is installed, on Linux."""
    lines = [f"{kind} = {version!r}" for kind, version in {"cuda": None, "hip": None, "xpu": None, **kinds}.items()]
    (folder / "version.py").write_text("\n".join(lines))
    monkeypatch.setattr(accelerator, "find_spec", lambda name: SimpleNamespace(origin=str(folder / "__init__.py")))
    monkeypatch.setattr(sys, "platform", "linux")


def asked(monkeypatch: pytest.MonkeyPatch, answer: object) -> list[bool]:
    """What torch is asked, one item a question."""
    questions: list[bool] = []

    def current_accelerator(check_available: bool) -> object:
        questions.append(check_available)
        return answer

    monkeypatch.setattr(torch.accelerator, "current_accelerator", current_accelerator)
    return questions


def test_a_build_for_cpus_or_a_machine_without_devices_has_none(tmp_path, monkeypatch):
    questions = asked(monkeypatch, torch.device("cuda"))
    installed(tmp_path, monkeypatch)
    assert not accelerator.has_accelerator()
    monkeypatch.setitem(accelerator.DEVICES, "cuda", ("no-such-device*",))
    installed(tmp_path, monkeypatch, cuda="13.0")
    assert not accelerator.has_accelerator()
    monkeypatch.setattr(accelerator, "find_spec", lambda name: None)
    assert not accelerator.has_accelerator()
    assert questions == []


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="devices are files on Linux")
def test_where_there_may_be_one_torch_is_asked(tmp_path, monkeypatch):
    monkeypatch.setitem(accelerator.DEVICES, "hip", ("no-such-device*", "nul*"))
    installed(tmp_path, monkeypatch, hip="7.0")
    for answer in (torch.device("cuda"), None):
        questions = asked(monkeypatch, answer)
        assert accelerator.has_accelerator() == (answer is not None) and questions == [True]


def test_apples_processors_have_one_and_others_of_theirs_none(tmp_path, monkeypatch):
    installed(tmp_path, monkeypatch)
    monkeypatch.setattr(sys, "platform", "darwin")
    for machine, expected in (("arm64", True), ("x86_64", False)):
        asked(monkeypatch, torch.device("mps"))
        monkeypatch.setattr(accelerator.platform, "machine", lambda machine=machine: machine)
        assert accelerator.has_accelerator() == expected
