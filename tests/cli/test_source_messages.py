"""What commands say of a source names only what they have: neither keys of a recipe nor options of another command."""

import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from captioner import cli
from captioner.config import RunConfig, SourceConfig

KEYS = {*SourceConfig.model_fields, *RunConfig.model_fields} - {"path", "split", "images", "data", "tags", "model"}


@pytest.mark.parametrize("command", ["evaluate", "tokenizer"])
@pytest.mark.parametrize(
    "rows",
    [
        "image,caption,split\na.png,a,train\na.png,b,val\n",
        "image,text\na.png,a\n",
        "photo,caption\na.png,a\n",
        "image,caption\nnone.png,a\n",
        "image,caption\na.png,...\n",
        "image,caption,caption\na.png,a,b\n",
        'image,caption\na.png,"a\n',
        "",
    ],
)
def test_advice_names_what_the_command_has(
    command: str, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    source = tmp_path / "x.csv"
    source.write_text(rows)
    arguments = ["--data", source] if command == "evaluate" else [source, tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["captioner", command, *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    message = capsys.readouterr().err
    assert end.value.code == 2 and message.startswith(f"error: {source}") and message.count("\n") == 1
    assert not KEYS & set(re.findall(r"\w+", message)), message
