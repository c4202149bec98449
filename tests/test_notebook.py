"""The notebook of the examples is valid and runs; CI's workflow executes it by Jupyter, in full."""

import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = EXAMPLES / "caption_and_fine_tune.ipynb"
pytestmark = pytest.mark.skipif(not NOTEBOOK.is_file(), reason="installed without the examples")


def test_the_notebook_s_cells_run_in_order_and_hold_no_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(EXAMPLES)
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict[str, object] = {}
    for cell in cells:
        assert cell["outputs"] == []
        source = "".join(cell["source"]).replace("images=1000", "images=20").replace("epochs=8", "epochs=1")
        exec(compile(source, NOTEBOOK.name, "exec"), names)
    assert "dune.jpg" in capsys.readouterr().out
