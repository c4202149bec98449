"""Reads hf:NAME with `datasets`: a folder or a data set of the Hub, stored or streamed."""

import glob
import os
from collections.abc import Iterator
from typing import Any

import fsspec
import huggingface_hub.constants

from captioner.config import SourceConfig
from captioner.data.sources.arrow_tables import (
    class_names,
    column_names,
    first_line,
    named_labels,
    stored_rows,
    with_encoded_images,
)
from captioner.data.sources.image_names import ImageFolders
from captioner.data.sources.rows import Row, merge, merge_neighbours, samples_of
from captioner.data.sources.sample import Report, Sample, did_you_mean
from captioner.errors import CaptionerError


def read_dataset(config: SourceConfig, report: Report) -> Iterator[Sample]:
    import datasets  # takes a second or two, so only this layout imports it

    name = os.path.expanduser(config.path.removeprefix("hf:"))
    if os.path.isdir(name):
        name = os.path.abspath(name)  # cannot be mistaken for a name on the Hub or a `datasets` loader
        folders = ImageFolders(config.images, [name])
    else:
        folders = ImageFolders(config.images, [], confined=True)
        folders.folders += [datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE]
    splits = _open_splits(name, config)
    if config.split is not None and config.split in splits:
        table = splits[config.split]
        table = table.remove_columns("split") if "split" in column_names(table) else table
        config = config.model_copy(update={"split": None})  # already selected
    elif config.split is None and len(splits) > 1:
        raise CaptionerError(f"{config.path}: holds several splits; choose one of them: {', '.join(splits)}")
    else:
        table, *others = splits.values()
        if config.split is not None and (others or "split" not in column_names(table)):
            near = did_you_mean(config.split, splits)
            raise CaptionerError(f"{config.path}: no split {config.split!r}; there is {', '.join(splits)}{near}")
    if config.streaming:
        return merge_neighbours(samples_of(_streamed_rows(table, config), config, folders, report))
    return merge(samples_of(stored_rows(table, config), config, folders, report))


def _open_splits(name: str, config: SourceConfig) -> dict[str, Any]:
    """Open each split as a `Dataset`, or `IterableDataset` for streaming. The data set's own code never runs."""
    import datasets

    try:
        if not any(os.path.isfile(os.path.join(name, mark)) for mark in ("state.json", "dataset_dict.json")):
            _check_name(name, config)
            return dict(datasets.load_dataset(name, streaming=config.streaming))
        saved = datasets.load_from_disk(name)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise CaptionerError(f"{config.path}: {first_line(error)}") from error
    splits = dict(saved) if isinstance(saved, dict) else {str(saved.split or "all"): saved}
    return {key: table.to_iterable_dataset() if config.streaming else table for key, table in splits.items()}


def _check_name(name: str, config: SourceConfig) -> None:
    """Raise CaptionerError for a name for which `datasets` would read other files."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as LOADERS

    if not name:
        raise CaptionerError(f"{config.path}: names no data set")
    if name in LOADERS:  # `datasets` would look for its files in the current folder
        raise CaptionerError(f"{config.path}: a loader of `datasets`, not a data set; name a folder, or one of the Hub")
    if os.path.isdir(name) and glob.has_magic(name):
        raise CaptionerError(
            f"{config.path}: `datasets` takes * ? [ in a folder's name for a pattern; rename the folder"
        )


def _streamed_rows(table: Any, config: SourceConfig) -> Iterator[Row]:
    import datasets

    classes = class_names(table, config)
    try:
        table, column = with_encoded_images(table, config)
        for number, row in enumerate(table):
            image = row[column]
            if isinstance(image, dict):
                image = image["bytes"] or _fetch(image["path"])
            named = {config.label_column: named_labels(row[config.label_column], classes)} if classes else {}
            yield f"{config.path}: row {number}", row | {column: image} | named
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise CaptionerError(f"{config.path}: {first_line(error)}") from error


def _fetch(path: str | None) -> str | bytes | None:
    """Read a streamed image that is a file of its own: on the Hub, or in an archive there or on this machine."""
    if path is None or "://" not in path:
        return path
    archive = path.rpartition("::")[2]
    if not archive.startswith("hf://") and "://" in archive:
        return path  # a data set must not choose which servers we contact
    try:
        with fsspec.open(path, "rb") as file:
            data: bytes = file.read()
    except OSError:
        return path  # missing, which is reported later
    return data
