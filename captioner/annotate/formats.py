"""The files that annotations are written to: one record an image, streamed, by format name."""

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TextIO

FIELDS = ("image", "caption", "confidence", "alternatives", "tags", "width", "height", "model")


def open_text(path: Path, mode: Literal["a", "w"]) -> TextIO:
    """Open as UTF-8. Bytes of a file name that are not UTF-8 become \\udcXX, which JSON reads back as the same name."""
    return open(path, mode, encoding="utf-8", errors="backslashreplace", newline="")


def json_line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _write_jsonl(records: Iterable[dict[str, Any]], file: TextIO) -> None:
    file.writelines(map(json_line, records))


def _write_csv(records: Iterable[dict[str, Any]], file: TextIO) -> None:
    """A header and one row an image; alternatives and tags are JSON lists in their cells."""
    writer = csv.DictWriter(file, FIELDS)
    writer.writeheader()
    for record in records:
        lists = {key: json.dumps(record[key], ensure_ascii=False) for key in ("alternatives", "tags")}
        writer.writerow(record | lists)


FORMATS: dict[str, Callable[[Iterable[dict[str, Any]], TextIO], None]] = {"jsonl": _write_jsonl, "csv": _write_csv}
