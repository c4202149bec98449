"""hf:NAME: a data set that `datasets` reads, from a folder or from the Hub, whole or as a stream."""

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
from captioner.data.sources.rows import Row, merge_neighbours, merge_rows, samples_of
from captioner.data.sources.sample import Report, Sample, did_you_mean
from captioner.errors import CaptionerError


def read_dataset(config: SourceConfig, report: Report) -> Iterator[Sample]:
    import datasets  # a second or two that the other layouts need not pay

    name = os.path.expanduser(config.path.removeprefix("hf:"))
    if os.path.isdir(name):
        name = os.path.abspath(name)  # no name of the Hub, nor of a loader of `datasets`
        folders = ImageFolders(config.images, [name])
    else:
        folders = ImageFolders(config.images, [], confined=True)
        folders.folders += [datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE]
    splits = _open_splits(name, config)
    if config.split is not None and config.split in splits:
        table = splits[config.split]
        table = table.remove_columns("split") if "split" in column_names(table) else table
        config = config.model_copy(update={"split": None})  # done
    elif config.split is None and len(splits) > 1:
        raise CaptionerError(f"{config.path}: holds several splits; choose one of them: {', '.join(splits)}")
    else:
        table, *others = splits.values()
        if config.split is not None and (others or "split" not in column_names(table)):  # nor does a column divide it
            near = did_you_mean(config.split, splits)
            raise CaptionerError(f"{config.path}: no split {config.split!r}; there is {', '.join(splits)}{near}")
    if config.streaming:
        return merge_neighbours(samples_of(_streamed_rows(table, config), config, folders, report))
    return merge_rows(samples_of(stored_rows(table, config), config, folders, report))


def _open_splits(name: str, config: SourceConfig) -> dict[str, Any]:
    """Each split as a `datasets.Dataset`, or an `IterableDataset` if it is to be streamed. Its code is never run."""
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
    """Raises CaptionerError for a name by which `datasets` would read other files."""
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
    """An image that is streamed as a file of its own: from the Hub, or out of an archive there or here."""
    if path is None or "://" not in path:
        return path
    archive = path.rpartition("::")[2]
    if not archive.startswith("hf://") and "://" in archive:
        return path  # a data set does not choose which other servers we ask
    try:
        with fsspec.open(path, "rb") as file:
            data: bytes = file.read()
    except OSError:
        return path  # not there, as will be found and reported
    return data
