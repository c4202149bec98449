"""benchmarks/gpu.py at tiny size on a CPU, so that its first run on a GPU is not its first run."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, dict[str, float]], Any]:
    """Run these sections, with seconds for each, by a script that stands in for what measures; gives the report."""

    def run(script: str, budgets: dict[str, float]) -> Any:
        stand_in = tmp_path / "sections.py"
        head = "import json, os, sys, time\nname = sys.argv[1]\ndone = sys.argv[sys.argv.index('--done') + 1:]\n"
        tell = "def tell(**row):\n    print(json.dumps(row), flush=True)\nsys.stdin.readline()\n"
        stand_in.write_text(head + tell + script)
        monkeypatch.setattr(gpu, "SCRIPT", stand_in)
        monkeypatch.setattr(gpu, "BUDGETS", {"full": budgets})
        monkeypatch.setattr(sys, "argv", ["gpu.py", str(tmp_path / "out"), "--device", "cpu"])
        assert gpu.main() == 0
        return json.loads((tmp_path / "out" / "gpu.json").read_text())["sections"]

    return run


ROWS = """
tell(plan=["one", "two", "three"])
for row in ("one", "two", "three"):
    if row not in done:
        tell(start=row, limit=LIMIT)
        if row == "two":
            BREAK
        tell(row=row, speed=1.0)
"""


@pytest.mark.parametrize(
    ("breaks", "limit", "error"),
    [
        ("raise SystemExit(3)", 60, "died, exit status 3; see gpu.log"),
        ("os.abort()", 60, "died, exit status -6; see gpu.log"),
        ("time.sleep(600)", 0.5, "ended after 0 s; see gpu.log"),
        ("tell(row='two', error='no'); os._exit(75)", 60, "no"),
    ],
)
def test_a_row_that_breaks_costs_itself(
    run: Callable[..., Any], tmp_path: Path, breaks: str, limit: float, error: str
) -> None:
    found = run(ROWS.replace("BREAK", breaks).replace("LIMIT", str(limit)), {"device": 60, "tests": 60})
    for section in found.values():
        one, two, three = section["rows"]
        assert one == {"row": "one", "speed": 1.0} and three == {"row": "three", "speed": 1.0}
        assert two["row"] == "two" and two["error"].replace("after 1 s", "after 0 s") == error
    assert error in (tmp_path / "out" / "gpu.md").read_text().replace("after 1 s", "after 0 s")


def test_a_section_that_runs_out_of_time_or_cannot_begin_costs_itself(run: Callable[..., Any]) -> None:
    slow = ROWS.replace("BREAK", "time.sleep(600)").replace("LIMIT", "60")
    script = "if name == 'tests':\n    raise ImportError\nif name == 'inference':\n    time.sleep(600)\n" + slow
    found = run(script, dict.fromkeys(("device", "tests", "inference", "training"), 2.0))
    assert [row["row"] for row in found["device"]["rows"]] == ["one", "two"]
    assert found["device"]["not_reached"] == ["three"] and "ended after" in found["device"]["rows"][1]["error"]
    assert "died between rows, exit status 1" in found["tests"]["rows"][0]["error"]
    assert found["inference"]["rows"] == [{"row": "(section)", "error": "ran out of time; see gpu.log"}]
    assert found["training"]["rows"][0] == {"row": "one", "speed": 1.0}


def test_every_section_runs_on_a_cpu_at_tiny_size(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(SCRIPT), str(tmp_path), "--device", "cpu", "--tiny"]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert finished.returncode == 0, finished.stderr
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["seconds"] < content["limit_s"] == 600
    sections = content["sections"]
    assert list(sections) == ["device", "tests", "inference", "training", "profile", "memory"]
    for name, section in sections.items():
        assert section["rows"] and section["not_reached"] == [], name
        assert [row for row in section["rows"] if "error" in row] == [], name
    rows = {name: {row["row"]: row for row in section["rows"]} for name, section in sections.items()}
    assert {row["outcome"] for row in rows["tests"].values()} <= {"skipped", "passed"}
    for side in ("ours", "eager", "static", "ours, JPEG", "eager, JPEG"):
        assert rows["inference"][f"tiny, batch 4, 4 beams, {side}"]["images_per_s"] > 0
    for phase in ("joint", "frozen"):
        for side in ("ours", "Trainer"):
            assert rows["training"][f"tiny, {phase}, {side}"]["tokens_per_s"] > 0
        assert 0 < rows["training"][f"tiny, {phase}, ours"]["mfu"] < 1
    assert rows["training"]["tiny, loading"]["images_per_s"] > 0
    assert len(rows["profile"]["training, joint"]["top"]) > 5
    page = (tmp_path / "gpu.md").read_text()
    assert all(f"## {name}" in page for name in sections) and "| tiny, joint, ours |" in page
