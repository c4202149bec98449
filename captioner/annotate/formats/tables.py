"""jsonl, csv and parquet: a row an image, with the fields of `Annotation.record`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from captioner.annotate.annotations import Annotation
from captioner.annotate.formats.records import FIELDS, write_csv, write_jsonl
from captioner.files import whole_file, whole_path

WITH_WRITER = (*FIELDS, "writer", "verified")
ROWS = 1000
"""Rows that parquet groups, and that are in memory at a time."""


def to_jsonl(annotations: Iterable[Annotation], output: Path) -> None:
    with whole_file(output) as file:
        write = write_jsonl(file, WITH_WRITER)
        for annotation in annotations:
            write(annotation.record(output.parent))


def to_csv(annotations: Iterable[Annotation], output: Path) -> None:
    with whole_file(output) as file:
        write = write_csv(file, WITH_WRITER)
        for annotation in annotations:
            write(annotation.record(output.parent))


def to_parquet(annotations: Iterable[Annotation], output: Path) -> None:
    """A table of names, not of images."""
    import pyarrow as pa
    import pyarrow.parquet

    def scored(name: str, score: str) -> Any:
        return pa.list_(pa.struct([(name, pa.string()), (score, pa.float64())]))

    schema = pa.schema(
        [
            ("image", pa.string()),
            ("caption", pa.string()),
            ("confidence", pa.float64()),
            ("alternatives", scored("caption", "confidence")),
            ("tags", scored("tag", "score")),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("model", pa.string()),
            ("words", scored("word", "confidence")),
            ("flags", pa.list_(pa.struct([("flag", pa.string()), ("detail", pa.string())]))),
            ("abstained", pa.bool_()),
            ("writer", pa.string()),
            ("verified", pa.bool_()),
        ]
    )
    with whole_path(output) as partial, pyarrow.parquet.ParquetWriter(partial, schema) as table:
        rows: list[dict[str, Any]] = []
        for annotation in annotations:
            record = annotation.record(output.parent)
            flags = [{"flag": flag, "detail": detail} for flag, detail in record["flags"].items()]
            rows.append(record | {"flags": flags})
            if len(rows) == ROWS:
                table.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        table.write_table(pa.Table.from_pylist(rows, schema))
