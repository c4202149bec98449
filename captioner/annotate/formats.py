"""The files that annotations are written to, by format name: a record an image, written as it comes."""

import csv
import json
from collections.abc import Callable
from typing import Any, TextIO

Record = dict[str, Any]
Write = Callable[[Record], object]

FIELDS = ("image", "caption", "confidence", "alternatives", "tags", "width", "height", "model")


def json_line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _jsonl(file: TextIO) -> Write:
    return lambda record: file.write(json_line({field: record[field] for field in FIELDS}))


def _csv(file: TextIO) -> Write:
    """A header and one row an image; alternatives and tags are JSON lists in their cells."""
    writer = csv.DictWriter(file, FIELDS, extrasaction="ignore")
    writer.writeheader()

    def write(record: Record) -> None:
        lists = {key: json.dumps(record[key], ensure_ascii=False) for key in ("alternatives", "tags")}
        writer.writerow(record | lists)

    return write


FORMATS: dict[str, Callable[[TextIO], Write]] = {"jsonl": _jsonl, "csv": _csv}
