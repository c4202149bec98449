"""Runs the commands of a page of documentation and pastes what they print.

    python examples/paste_output.py docs/tutorials/own-photos.md FOLDER

The page's `sh` blocks run in order in FOLDER, which holds the data that the page assumes. A `text` block right after
one is replaced by its output, of stdout and stderr as a person sees them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

BLOCKS = re.compile(r"^```sh\n(?P<commands>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```\n)?", re.DOTALL | re.MULTILINE)
ROOT = Path(__file__).resolve().parents[1]


def paste(page: Path, folder: Path) -> None:
    text = page.read_text(encoding="utf-8")
    page.write_text(BLOCKS.sub(lambda block: _run(block, folder), text), encoding="utf-8")


def _run(block: re.Match[str], folder: Path) -> str:
    commands = block["commands"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    print(f"$ {commands}", end="", file=sys.stderr)
    run = subprocess.run(
        ["bash", "-eu", "-c", commands],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(run.stdout, file=sys.stderr)
    if run.returncode:
        sys.exit(f"exit status {run.returncode}")
    if block["output"] is None:
        return block[0]
    return f"```sh\n{commands}```\n\n```text\n{run.stdout.rstrip()}\n```\n"


if __name__ == "__main__":
    paste(Path(sys.argv[1]), Path(sys.argv[2]))
