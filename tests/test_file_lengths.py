"""A file is short enough to read in one sitting."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST = 450
TABLES = {"captioner/metrics/ptb.py"}  # most of it is the tokenizer's tables


def test_no_file_is_too_long() -> None:
    paths = [path for folder in ("captioner", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")]
    assert paths
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert {name: length for name, length in lengths.items() if length > LONGEST and name not in TABLES} == {}
