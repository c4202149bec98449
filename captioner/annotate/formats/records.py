"""jsonl and csv: a record an image, written as it comes."""

import csv
import json
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from captioner.infer.caption import Caption

Record = dict[str, Any]
Write = Callable[[Record], object]

FIELDS = (
    "image",
    "caption",
    "confidence",
    "alternatives",
    "tags",
    "width",
    "height",
    "model",
    "words",
    "flags",
    "abstained",
)
NESTED = ("alternatives", "tags", "words", "flags")


def alternatives_of(caption: Caption, shape: Callable[[str], str] = str) -> list[Record]:
    """The further captions of an image, each brought into shape."""
    return [{"caption": shape(other.text), "confidence": round(other.confidence, 4)} for other in caption.alternatives]


def tags_of(caption: Caption) -> list[Record]:
    return [{"tag": tag.text, "score": round(tag.score, 4)} for tag in caption.tags]


def json_line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def write_jsonl(file: TextIO, fields: Sequence[str] = FIELDS) -> Write:
    return lambda record: file.write(json_line({field: record[field] for field in fields}))


def write_csv(file: TextIO, fields: Sequence[str] = FIELDS) -> Write:
    """A header and one row an image; lists and objects are JSON in their cells."""
    writer = csv.DictWriter(file, fields, extrasaction="ignore")
    writer.writeheader()

    def write(record: Record) -> None:
        nested = {key: json.dumps(record[key], ensure_ascii=False) for key in NESTED}
        writer.writerow(record | nested)

    return write


FORMATS: dict[str, Callable[[TextIO], Write]] = {"jsonl": write_jsonl, "csv": write_csv}
