"""Turns rows into samples, for every layout that has rows."""

import itertools
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from typing import Any

from captioner.config import SourceConfig
from captioner.data.sources.image_names import ImageFolders
from captioner.data.sources.sample import (
    Report,
    Sample,
    SourceError,
    did_you_mean,
    usable_captions,
    usable_labels,
    usable_weight,
)
from captioner.data.sources.stored_images import ShardMember, StoredImage
from captioner.errors import CaptionerError

Row = tuple[str, dict[str, Any]]  # (where, for error messages; columns)


def rows_in_split(rows: Iterable[Row], path: str, split: str | None) -> Iterator[Row]:
    """Yield the rows of a split; "train" includes restval, the part of COCO's validation set used for training."""
    counts: Counter[str] = Counter()
    for where, row in rows:
        name = row.get("split")
        if name is not None:
            counts[str(name)] += 1
        if split is None or name == split or (split == "train" and name == "restval"):
            yield where, row
    known = ", ".join(f"{name!r} ({count:,} rows)" for name, count in counts.items())
    if split is None and len(counts) > 1:
        raise CaptionerError(f"{path}: holds several splits; choose one of them: {known}")
    if split is not None and not counts:
        raise CaptionerError(
            f"{path}: no row has a split, {split!r} or other; add a column named split, or choose none"
        )
    if split is not None and split not in counts and not (split == "train" and "restval" in counts):
        raise CaptionerError(f"{path}: no split {split!r}; there is {known}{did_you_mean(split, counts)}")


def check_columns(names: Iterable[str], config: SourceConfig, where: str) -> None:
    """Raise SourceError if a configured column is missing or occurs twice."""
    if found := _column_problem(list(names), config):
        key, problem = found
        raise SourceError(f"{where}: {problem}", f"{key} names another")


def _column_problem(names: list[str], config: SourceConfig) -> tuple[str, str] | None:
    """Return the config key of a column that is missing or occurs twice, and the message."""
    wanted = {"image_column": image_column_of(names, config), "label_column": config.label_column}
    if config.captioned:
        wanted["caption_column"] = config.caption_column
    for key, column in wanted.items():
        if column is not None and names.count(column) > 1:
            return key, f"the header names {column!r} twice"
        if column is not None and column not in names:
            there = ", ".join(repr(name) for name in names[:50])
            return key, f"no column {column!r}; there is {there}{did_you_mean(column, names)}"
    return None


def image_column_of(names: Container[str], config: SourceConfig) -> str:
    """Return the column of images; metadata files of `datasets`' imagefolder call it `file_name`."""
    return "file_name" if config.image_column not in names and "file_name" in names else config.image_column


def samples_of(rows: Iterable[Row], config: SourceConfig, folders: ImageFolders, report: Report) -> Iterator[Sample]:
    """Yield a sample for each usable row."""
    checked: set[str] = set()
    for number, (where, row) in enumerate(rows_in_split(rows, config.path, config.split)):
        if row.keys() != checked:
            if problem := _column_problem(list(row), config):
                report(where, problem[1])
                continue
            checked = set(row)  # rows of a table all have the same columns
        image = row[image_column_of(row, config)]
        identifier = number
        if isinstance(image, StoredImage):
            identifier = image.row
        elif isinstance(image, ShardMember):
            identifier = row["__key__"]
        elif not isinstance(image, bytes):
            identifier, image = image, folders.find(where, report, image)
        captions = usable_captions(row[config.caption_column], where, report) if config.captioned else ()
        labels = usable_labels(row[config.label_column], where, report) if config.label_column else ()
        if image is not None and (captions or not config.captioned):
            weight = usable_weight(row.get("sample_weight"), where, report)
            yield Sample(identifier, image, captions, labels, weight)


def merge(samples: Iterable[Sample]) -> Iterator[Sample]:
    """Merge all samples of an image, in the order of first appearance."""
    groups: dict[Any, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.image, []).append(sample)
    return map(_join, groups.values())


def merge_neighbours(samples: Iterable[Sample]) -> Iterator[Sample]:
    """Merge adjacent samples of an image, without holding the others in memory."""
    return (_join(list(group)) for _, group in itertools.groupby(samples, key=lambda sample: sample.image))


def _join(samples: list[Sample]) -> Sample:
    captions = tuple(caption for sample in samples for caption in sample.captions)
    labels = tuple(dict.fromkeys(label for sample in samples for label in sample.labels))
    weight = sum(sample.weight for sample in samples) / len(samples)
    return replace(samples[0], captions=captions, labels=labels, weight=weight)
