"""Yields the rows of Arrow tables that `datasets` memory-maps: .parquet files and data sets in its cache."""

import glob
import hashlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from captioner.config import SourceConfig
from captioner.data.sources.rows import Row, check_columns, image_column_of
from captioner.data.sources.stored_images import StoredImage
from captioner.errors import CaptionerError


def parquet_rows(path: str, config: SourceConfig) -> Iterator[Row]:
    import datasets

    try:
        table = datasets.Dataset.from_parquet(glob.escape(path))  # memory-mapped from the cache of `datasets`
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise CaptionerError(f"{path}: not a parquet file: {first_line(error)}") from error
    return stored_rows(table, config)


def stored_rows(table: Any, config: SourceConfig) -> Iterator[Row]:
    table, column = with_encoded_images(table, config)
    encoded = table.select_columns([column])
    classes = class_names(table, config)
    wanted = {column, config.caption_column, config.label_column, "split"}
    table = table.select_columns([name for name in table.column_names if name in wanted])
    row = 0
    for batch in table.with_format("arrow").iter(batch_size=1000):
        cells = batch.drop_columns([column]).to_pydict()
        if classes:
            cells[config.label_column] = [named_labels(labels, classes) for labels in cells[config.label_column]]
        for index, image in enumerate(_images_of(batch, column, config)):
            where = f"{config.path}: row {row}"
            stored = StoredImage(where, encoded, row, column, image or row) if isinstance(image, bytes) else image
            yield where, {column: stored} | {name: values[index] for name, values in cells.items()}
            row += 1


def _images_of(batch: pa.Table, column: str, config: SourceConfig) -> Iterator[str | bytes | None]:
    """Yield each image's path if the table has paths, else a digest of the encoded image.

    A table with a list of captions per row, or without captions, has one row per image. There is nothing to compare,
    so images are not read and digests are empty.
    """
    cells = batch.column(column)
    if not pa.types.is_struct(cells.type):
        yield from cells.to_pylist()
        return
    compare = config.caption_column in batch.schema.names and not _is_list(batch.schema, config.caption_column)
    for data, path in zip(pc.struct_field(cells, "bytes"), pc.struct_field(cells, "path").to_pylist(), strict=True):
        if not data.is_valid:
            yield path
        else:
            yield hashlib.blake2b(data.as_buffer(), digest_size=16).digest() if compare else b""


def _is_list(schema: pa.Schema, column: str) -> bool:
    kind = schema.field(column).type
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def column_names(table: Any) -> list[str]:
    return table.column_names or list(next(iter(table.take(1)), {}))


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def with_encoded_images(table: Any, config: SourceConfig) -> tuple[Any, str]:
    """Return the table with its images left encoded, and the name of their column."""
    import datasets

    names = column_names(table)
    check_columns(names, config, config.path)
    column = image_column_of(names, config)
    feature = (table.features or {}).get(column)
    if feature is None or getattr(feature, "dtype", None) in ("string", "large_string"):
        return table, column
    try:
        return table.cast_column(column, datasets.Image(decode=False)), column
    except (TypeError, ValueError) as error:
        raise CaptionerError(f"{config.path}: the column {column!r} holds neither images nor names") from error


def class_names(table: Any, config: SourceConfig) -> list[str] | None:
    """Return the names of the classes if the table stores labels as numbers."""
    feature = (table.features or {}).get(config.label_column)
    names: list[str] | None = getattr(getattr(feature, "feature", feature), "names", None)
    return names


def named_labels(labels: Any, names: list[str]) -> Any:
    if isinstance(labels, list):
        return [named_labels(label, names) for label in labels]
    return names[labels] if isinstance(labels, int) and 0 <= labels < len(names) else labels
