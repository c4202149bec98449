"""Reads tables: .jsonl, .csv, .tsv and .parquet."""

import csv
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from captioner.config import SourceConfig
from captioner.data.images import IMAGE_EXTENSIONS
from captioner.data.sources.arrow_tables import parquet_rows
from captioner.data.sources.foreign_rows import our_columns
from captioner.data.sources.image_names import ImageFolders
from captioner.data.sources.rows import Row, check_columns, image_column_of, merge, samples_of
from captioner.data.sources.sample import Report, Sample
from captioner.data.text_files import encoding_problem, open_text
from captioner.errors import CaptionerError

MAX_LINE_CHARACTERS = 2**24


def read_table(path: str, config: SourceConfig, report: Report) -> Iterator[Sample]:
    """Read a .jsonl, .csv, .tsv or .parquet file."""
    config = config.model_copy(update={"path": path})
    match os.path.splitext(path)[1].lower():
        case ".jsonl":
            rows = _jsonl_rows(path, config, report)
        case ".parquet":
            rows = parquet_rows(path, config)
        case _:
            rows = _csv_rows(path, config, report)
    return merge(samples_of(rows, config, ImageFolders.beside(path, config.images), report))


def _jsonl_rows(path: str, config: SourceConfig, report: Report) -> Iterator[Row]:
    with open_text(path) as file:
        lines = iter(lambda: file.readline(MAX_LINE_CHARACTERS), "")
        for number, line in enumerate(lines, 1):
            where = f"{path}:{number}"
            if len(line) == MAX_LINE_CHARACTERS:
                while line and not line.endswith("\n"):
                    line = file.readline(MAX_LINE_CHARACTERS)
                report(where, f"the line is over the limit of {MAX_LINE_CHARACTERS:,} characters")
                continue
            if not line.strip():
                continue
            if problem := encoding_problem(line):
                report(where, f"malformed row: {problem}")
                continue
            try:
                row = json.loads(line, object_pairs_hook=_unique)
            except (ValueError, RecursionError) as error:
                report(where, f"malformed row: not JSON: {error}")
                continue
            if isinstance(row, dict):
                yield where, our_columns(row, config)
            else:
                report(where, f"malformed row: not an object but {row!r:.60}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice!r} is there twice")
    return fields


def _csv_rows(path: str, config: SourceConfig, report: Report) -> Iterator[Row]:
    def image_column(header: list[str]) -> str:
        check_columns(header, config, path)
        return image_column_of(header, config)

    return _delimited_rows(path, image_column, report)


def _delimited_rows(path: str, find_image_column: Callable[[list[str]], str], report: Report) -> Iterator[Row]:
    """Yield the rows of a file whose delimiter is the one of `,` `;` `|` and tab that is most frequent in the header.

    Args:
        find_image_column: takes the header and returns the column of images' names; raises CaptionerError if the header
            lacks a column.
    """
    with open_text(path) as file:
        lines = _Lines(file)
        number, first = next(((number, line) for number, line in lines if line.strip()), (0, ""))
        if not first:
            raise CaptionerError(f"{path}: the file is empty")
        parse = _parser(max(",;|\t", key=first.count))
        try:
            header = [name.strip() for name in parse(iter([first]), strict=True)]
        except csv.Error as error:
            raise CaptionerError(f"{path}:{number}: not the header of a csv file: {error}") from error
        if problem := encoding_problem(first):
            raise CaptionerError(f"{path}:{number}: {problem}")
        image = header.index(find_image_column(header))
        for number, line in lines:
            taken = [(number, line)]
            try:
                cells = parse(_following(taken, lines), strict=True)
                problem = _row_problem(cells, header, taken, lambda line: _names_an_image(parse(iter([line])), image))
            except csv.Error as error:
                left_open = len(taken) > 1 or "unexpected end of data" in str(error)
                problem = "a quote is opened on this line and not closed" if left_open else str(error)
            if problem:
                report(f"{path}:{number}", f"malformed row: {problem}")
                lines.put_back(taken[1:])  # the lines consumed by an open quote
            elif line.strip():
                yield f"{path}:{number}", dict(zip(header, cells, strict=True))


class _Lines:
    """The numbered lines of a file; lines can be put back."""

    def __init__(self, file: TextIO) -> None:
        self.numbered = enumerate(iter(lambda: file.readline(MAX_LINE_CHARACTERS), ""), 1)
        self.waiting: deque[tuple[int, str]] = deque()

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return self

    def __next__(self) -> tuple[int, str]:
        return self.waiting.popleft() if self.waiting else next(self.numbered)

    def put_back(self, lines: list[tuple[int, str]]) -> None:
        self.waiting.extendleft(reversed(lines))


def _following(taken: list[tuple[int, str]], lines: _Lines) -> Iterator[str]:
    """Yield the first line of a row, already in `taken`, then further lines, which are added to it."""
    yield taken[0][1]
    for numbered in lines:
        taken.append(numbered)
        yield numbered[1]


def _parser(delimiter: str) -> Callable[..., list[str]]:
    def parse(lines: Iterator[str], strict: bool = False) -> list[str]:
        return next(csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=strict), [])

    return parse


def _row_problem(
    cells: list[str], header: list[str], taken: list[tuple[int, str]], is_row: Callable[[str], bool]
) -> str | None:
    for number, line in taken[1:]:
        if is_row(line):
            return f"a quote is opened on this line and not closed: it would swallow the row on line {number}"
    if len(taken) == 1 and not taken[0][1].strip():
        return None
    if len(cells) != len(header):
        return f"{len(cells)} fields, the header has {len(header)}"
    return next(filter(None, (encoding_problem(line) for _, line in taken)), None)


def _names_an_image(cells: list[str], column: int) -> bool:
    return len(cells) > column and os.path.splitext(cells[column].strip())[1].lower() in IMAGE_EXTENSIONS
