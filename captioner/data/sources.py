"""Where samples come from: one `Sample` shape out of every layout that captions are kept in.

`SourceConfig.path` and what lies there choose the layout:

    dataset_*.json      Karpathy & Fei-Fei 2015: images[].filename, filepath, sentences[].raw, split
    captions_*.json     COCO: images[].id, file_name and annotations[].image_id, caption
    .jsonl .csv .tsv    a row has an image's name and a caption, or (jsonl) a list of captions
    .parquet            the same; the images may lie in the table itself
    a folder            with metadata.csv or captions.csv (.jsonl) in it, else photo.jpg and photo.txt (or .caption), a
                        caption a line
    .tar                WebDataset: shards of KEY.jpg, KEY.txt, KEY.json; a range {0000..0031} or a glob names many
    hf:NAME             `datasets`: a folder on this machine, else a name on the Hub

With `captioned: false` the same layouts give images, with labels if they have any, and captions are not asked for.
In tables, rows of one image become one sample. Images are found, not decoded. Names may differ from those on disk in
case and in the composition of their letters, and have backslashes.
"""

import difflib
import gc
import glob
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import fsspec
import huggingface_hub.constants
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from captioner.config import SourceConfig
from captioner.data.delimited import Report, Row, delimited_rows
from captioner.data.folders import walk
from captioner.data.image_names import ImageFolders, same_name
from captioner.data.images import IMAGE_EXTENSIONS
from captioner.data.shards import ShardMember, shard_rows
from captioner.data.text import decode_text, encoding_problem, has_words, lines_of, open_text
from captioner.errors import CaptionerError

MAX_CAPTION_CHARACTERS = 10_000
MAX_LINE_BYTES = 2**24
MAX_JSON_BYTES = 2**32

FOLDER_TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet", "captions.jsonl", "captions.csv")

CAPTION_EXTENSIONS = (".txt", ".caption")


class SourceError(CaptionerError):
    """A fault that a field of `SourceConfig` gets around: `remedy` says how, to those who have a recipe."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class StoredImage:
    """An encoded image in a table on disk: read when it is decoded, so that a table larger than memory will do.

    Two are equal if they hold the same picture.
    """

    where: str = field(compare=False)
    table: Any = field(compare=False, repr=False)
    row: int = field(compare=False)
    column: str = field(compare=False)
    key: bytes | int

    def read(self) -> bytes:
        data: bytes = self.table[self.row][self.column]["bytes"]
        return data

    def __str__(self) -> str:
        return self.where


@dataclass(frozen=True, slots=True)
class Sample:
    """An image and what is said of it.

    Attributes:
        id: the layout's own number, else the image's name as the source gives it, else the row's number.
        image: what `load_image` takes.
        captions: white space collapsed, otherwise as written; at least one, or none where `captioned` is false.
        labels: class names or tags, from `label_column`.
    """

    id: str | int
    image: str | bytes | Image.Image | StoredImage | ShardMember
    captions: tuple[str, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Skip:
    """Something left out: where (file and row) and why."""

    where: str
    reason: str


def load_samples(config: SourceConfig) -> tuple[list[Sample], list[Skip]]:
    """All samples of a source in its own order, and what was left out. Raises as `iter_samples` does."""
    skips: list[Skip] = []
    with _collector_paused():
        samples = list(iter_samples(config, skips.append))
    return samples, skips


def iter_samples(config: SourceConfig, on_skip: Callable[[Skip], object]) -> Iterator[Sample]:
    """Samples of a source, one by one; with `streaming` nothing else is held in memory.

    A missing image, an empty caption, a malformed row cost what `config.on_error` says: they raise, or they are left
    out and told to `on_skip`. Of a streamed data set, only neighbouring rows of one image become one sample.

    Raises:
        CaptionerError: such a problem under `on_error: raise`; and always a source, split or column that does not
            exist (the message lists those that do), or a source without a single usable sample.
    """
    first: list[str] = []

    def report(where: str, reason: str) -> None:
        if config.on_error == "raise":
            raise SourceError(f"{where}: {reason}", "on_error: skip leaves it out")
        if not first:
            first.append(f"; the first problem: {where}: {reason}")
        on_skip(Skip(where, reason))

    empty = True
    try:
        for sample in _read(config, report):
            empty = False
            yield sample
    except OSError as error:
        raise CaptionerError(f"{error.filename or config.path}: {error.strerror or error}") from error
    if empty:
        raise CaptionerError(f"{config.path}: no usable sample" + "".join(first))


@contextmanager
def _collector_paused() -> Iterator[None]:
    """COCO's files become millions of objects, none in a cycle; looking for cycles among them doubles the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read(config: SourceConfig, report: Report) -> Iterator[Sample]:
    if config.path.startswith("hf:"):
        return _read_dataset(config, report)
    path = os.path.expanduser(config.path)
    if os.path.isdir(path):
        return _read_folder(path, config, report)
    if path.endswith(".tar"):
        return _parse(shard_rows(path, config, report), config, ImageFolders(None, []), report)
    if not os.path.isfile(path):
        raise CaptionerError(f"{path}: no such file or folder")
    return _read_file(path, config, report)


def _read_file(path: str, config: SourceConfig, report: Report) -> Iterator[Sample]:
    config = config.model_copy(update={"path": path})
    beside = os.path.dirname(path)
    folders = ImageFolders(config.images, [beside, os.path.join(beside, "images")])
    match os.path.splitext(path)[1].lower():
        case ".json":
            return _read_json(path, config, folders, report)
        case ".jsonl":
            return _merge(_parse(_jsonl_rows(path, report), config, folders, report))
        case ".csv" | ".tsv":
            return _merge(_parse(_csv_rows(path, config, report), config, folders, report))
        case ".parquet":
            return _merge(_parse(_parquet_rows(path, config), config, folders, report))
    raise CaptionerError(
        f"{path}: not a layout we read; give .json, .jsonl, .csv, .tsv, .parquet, .tar, a folder or hf:NAME"
    )


# Finding and checking what rows hold


def _captions(values: object, where: str, report: Report) -> tuple[str, ...]:
    """The captions that can be used; the others are reported."""
    captions = values if isinstance(values, list | tuple) else [values]
    if not captions:
        report(where, "the image has no caption")
    good = []
    for caption in captions:
        text = " ".join(caption.split()) if isinstance(caption, str) else ""
        if problem := _caption_problem(caption, text):
            report(where, problem)
        else:
            good.append(text)
    return tuple(good)


def _caption_problem(caption: object, text: str) -> str | None:
    if caption is not None and not isinstance(caption, str):
        return f"the caption is not text: {caption!r:.60}"
    if not text:
        return "the caption is empty"
    if len(text) > MAX_CAPTION_CHARACTERS:
        return f"the caption has {len(text):,} characters, over the limit of {MAX_CAPTION_CHARACTERS:,}"
    if "\0" in text:
        return f"the caption holds a NUL character: {text!r:.60}"
    if problem := encoding_problem(text):
        return f"the caption is {problem}"
    return None if has_words(text) else f"the caption holds no word: {text!r:.60}"


def _labels(values: object, where: str, report: Report) -> tuple[str, ...]:
    labels = values if isinstance(values, list | tuple) else [] if values is None else [values]
    good: dict[str, None] = {}
    for label in labels:
        if isinstance(label, str | int):
            good[str(label).strip()] = None
        else:
            report(where, f"the label is not text: {label!r:.60}")
    good.pop("", None)
    return tuple(good)


def _in_split(rows: Iterable[Row], path: str, split: str | None) -> Iterator[Row]:
    """Rows whose `split` is the one chosen; restval is the part of COCO's validation set that everyone trains on."""
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
        raise CaptionerError(f"{path}: no split {split!r}; there is {known}{_nearest(split, counts)}")


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), 1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _check_columns(names: Iterable[str], config: SourceConfig, where: str) -> None:
    """Raises SourceError if a column that the config names is not there, or is there twice."""
    if found := _column_problem(list(names), config):
        key, problem = found
        raise SourceError(f"{where}: {problem}", f"{key} names another")


def _column_problem(names: list[str], config: SourceConfig) -> tuple[str, str] | None:
    """The config's key for a column that is not there, or is there twice, and what to say."""
    wanted = {"image_column": _image_column(names, config), "label_column": config.label_column}
    if config.captioned:
        wanted["caption_column"] = config.caption_column
    for key, column in wanted.items():
        if column is not None and names.count(column) > 1:
            return key, f"the header names {column!r} twice"
        if column is not None and column not in names:
            there = ", ".join(repr(name) for name in names[:50])
            return key, f"no column {column!r}; there is {there}{_nearest(column, names)}"
    return None


def _image_column(names: Container[str], config: SourceConfig) -> str:
    """`file_name` is what metadata files call it by the habit of `datasets`' imagefolder."""
    return "file_name" if config.image_column not in names and "file_name" in names else config.image_column


# From rows to samples


def _parse(rows: Iterable[Row], config: SourceConfig, folders: ImageFolders, report: Report) -> Iterator[Sample]:
    """A sample a row."""
    checked: set[str] = set()
    for number, (where, row) in enumerate(_in_split(rows, config.path, config.split)):
        if row.keys() != checked:
            if problem := _column_problem(list(row), config):
                report(where, problem[1])
                continue
            checked = set(row)  # the rows of a table are all alike
        image = row[_image_column(row, config)]
        identifier = number
        if isinstance(image, StoredImage):
            identifier = image.row
        elif isinstance(image, ShardMember):
            identifier = row["__key__"]
        elif not isinstance(image, bytes):
            identifier, image = image, folders.find(where, report, image)
        captions = _captions(row[config.caption_column], where, report) if config.captioned else ()
        labels = _labels(row[config.label_column], where, report) if config.label_column else ()
        if image is not None and (captions or not config.captioned):
            yield Sample(identifier, image, captions, labels)


def _merge(samples: Iterable[Sample]) -> Iterator[Sample]:
    """One sample an image, in the order of first appearance."""
    groups: dict[Any, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.image, []).append(sample)
    return map(_join, groups.values())


def _merge_neighbours(samples: Iterable[Sample]) -> Iterator[Sample]:
    return (_join(list(group)) for _, group in itertools.groupby(samples, key=lambda sample: sample.image))


def _join(samples: list[Sample]) -> Sample:
    captions = tuple(caption for sample in samples for caption in sample.captions)
    labels = tuple(dict.fromkeys(label for sample in samples for label in sample.labels))
    return replace(samples[0], captions=captions, labels=labels)


# Files


def _read_json(path: str, config: SourceConfig, folders: ImageFolders, report: Report) -> Iterator[Sample]:
    if os.path.getsize(path) > MAX_JSON_BYTES:
        raise CaptionerError(f"{path}: over the limit of {MAX_JSON_BYTES:,} bytes; use .jsonl or .parquet")
    try:
        with open(path, "rb") as file:
            tree = json.load(file)
    except (ValueError, RecursionError) as error:
        raise CaptionerError(f"{path}: not a JSON file: {error}") from error
    tree = tree if isinstance(tree, dict) else {}
    images, annotations = tree.get("images"), tree.get("annotations")
    if isinstance(images, list) and any(isinstance(image, dict) and "sentences" in image for image in images):
        return _read_karpathy(path, images, config, folders, report)
    if isinstance(images, list) and not config.captioned:  # COCO's image_info_unlabeled2017.json has no annotations
        return _read_coco(path, images, [], config, folders, report)
    if isinstance(images, list) and isinstance(annotations, list):
        return _read_coco(path, images, annotations, config, folders, report)
    raise CaptionerError(
        f"{path}: neither Karpathy's layout (images[].sentences) nor COCO's (images[] and annotations[]); "
        "a list of rows goes into a .jsonl, one object a line"
    )


def _read_karpathy(
    path: str, images: list[Any], config: SourceConfig, folders: ImageFolders, report: Report
) -> Iterator[Sample]:
    seen: dict[str | int, str] = {}
    rows = _objects(images, f"{path}: images", report)
    for where, image in _in_split(rows, path, config.split):
        identifier: Any = image.get("cocoid", image.get("filename"))
        names = [image.get("filename")]
        if isinstance(names[0], str) and isinstance(image.get("filepath"), str):
            names.insert(0, os.path.join(image["filepath"], names[0]))
        if not _is_new(identifier, where, seen, report):
            continue
        file = folders.find(where, report, *names)
        sentences = image.get("sentences")
        raw = [s.get("raw") if isinstance(s, dict) else s for s in sentences] if isinstance(sentences, list) else []
        captions = _captions(raw, where, report) if config.captioned else ()
        labels = _labels(image.get(config.label_column), where, report) if config.label_column else ()
        if file and (captions or not config.captioned):
            yield Sample(identifier, file, captions, labels)


def _read_coco(
    path: str, entries: list[Any], annotations: list[Any], config: SourceConfig, folders: ImageFolders, report: Report
) -> Iterator[Sample]:
    if config.split is not None:
        raise CaptionerError(f"{path}: a COCO file is one split; choose none")
    if config.captioned and not any(isinstance(entry, dict) and "caption" in entry for entry in annotations):
        raise CaptionerError(f"{path}: its annotations have no captions; COCO's are in captions_*.json")
    if not config.images:  # annotations/captions_val2017.json and val2017/ are siblings in COCO's own archive
        split_folder = os.path.splitext(os.path.basename(path))[0].rpartition("_")[2]
        folders.folders.append(os.path.join(os.path.dirname(path), "..", split_folder))
    seen: dict[str | int, str] = {}
    images: dict[str | int, Row] = {}
    for where, image in _objects(entries, f"{path}: images", report):
        if _is_new(image.get("id"), where, seen, report):
            images[image["id"]] = (where, image)
    captions: dict[str | int, list[str]] = {}
    for where, annotation in _objects(annotations, f"{path}: annotations", report):
        identifier = annotation.get("image_id")
        if not isinstance(identifier, str | int) or identifier not in seen:
            report(where, f"there is no image with the id {identifier!r:.60}")
            continue
        captions.setdefault(identifier, []).extend(_captions(annotation.get("caption"), where, report))
    for identifier, (where, image) in images.items():
        if config.captioned and identifier not in captions:
            report(where, "the image has no caption")
            continue
        file = folders.find(where, report, image.get("file_name"))
        labels = _labels(image.get(config.label_column), where, report) if config.label_column else ()
        if file and (captions.get(identifier) or not config.captioned):
            yield Sample(identifier, file, tuple(captions.get(identifier, ())), labels)


def _objects(values: list[Any], where: str, report: Report) -> Iterator[Row]:
    for index, value in enumerate(values):
        if isinstance(value, dict):
            yield f"{where}[{index}]", value
        else:
            report(f"{where}[{index}]", f"malformed: not an object but {value!r:.60}")


def _is_new(identifier: object, where: str, seen: dict[str | int, str], report: Report) -> bool:
    if not isinstance(identifier, str | int):
        report(where, f"malformed: the image's id is {identifier!r:.60}")
        return False
    if identifier in seen:
        report(where, f"the id {identifier!r} is taken by {seen[identifier]}")
        return False
    seen[identifier] = where
    return True


def _jsonl_rows(path: str, report: Report) -> Iterator[Row]:
    with open_text(path) as file:
        lines = iter(lambda: file.readline(MAX_LINE_BYTES), "")
        for number, line in enumerate(lines, 1):
            where = f"{path}:{number}"
            if len(line) == MAX_LINE_BYTES:
                while line and not line.endswith("\n"):
                    line = file.readline(MAX_LINE_BYTES)
                report(where, f"the line is over the limit of {MAX_LINE_BYTES:,} bytes")
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
                yield where, row
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
        _check_columns(header, config, path)
        return _image_column(header, config)

    return delimited_rows(path, image_column, report)


def _read_folder(path: str, config: SourceConfig, report: Report) -> Iterator[Sample]:
    for name in FOLDER_TABLES:
        if os.path.isfile(os.path.join(path, name)):
            return _read_file(os.path.join(path, name), config, report)
    for name in sorted(os.listdir(path)):
        if name in ("dataset_info.json", "dataset_dict.json"):
            raise CaptionerError(f"{path}: saved by `datasets`; write hf:{path}")
        if name.endswith(".json") and name.startswith(("dataset_", "captions_")):
            raise CaptionerError(f"{path}: holds {name}; give that file as the path")
    if config.split is not None:
        raise CaptionerError(f"{path}: a folder is one split; choose none")
    return _read_sidecars(path, config, report)


def _read_sidecars(path: str, config: SourceConfig, report: Report) -> Iterator[Sample]:
    for folder, names in _files_by_folder(path, report):
        images = [name for name in names if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS]
        texts: dict[str, list[str]] = {}  # of each image, by its name without the suffix
        for name in names:
            stem, suffix = os.path.splitext(name)
            if config.captioned and suffix.lower() in CAPTION_EXTENSIONS:
                texts.setdefault(same_name(stem), []).append(name)
        unused = {name for several in texts.values() for name in several}
        for name in images:
            image = os.path.join(folder, name)
            identifier = os.path.relpath(image, path).replace(os.sep, "/")
            stem = os.path.splitext(name)[0]
            alike = texts.get(same_name(stem), [])
            beside = [text for text in alike if os.path.splitext(text)[0] == stem] or alike
            unused.difference_update(beside)
            if not config.captioned:
                yield Sample(identifier, image, ())
            elif not beside:
                report(image, f"the image has no caption: no {stem}.txt beside it")
            elif len(beside) > 1:
                report(image, f"several files have the image's captions: {' and '.join(beside)}; keep one")
            elif captions := _read_text(os.path.join(folder, beside[0]), report):
                yield Sample(identifier, image, captions)
        for text in sorted(unused):
            report(os.path.join(folder, text), "the image is missing: there is none of this name beside it")


def _files_by_folder(path: str, report: Report) -> Iterator[tuple[str, list[str]]]:
    """Each folder from `path` down that has files, with their names."""
    folders: dict[str, list[str]] = {}
    for file in walk(path, set()):
        if error := file.error or _status_error(file.path):
            report(file.path, f"cannot be read: {error.strerror}")
        else:
            folders.setdefault(os.path.dirname(file.path), []).append(os.path.basename(file.path))
    yield from sorted(folders.items(), key=lambda item: item[0].split(os.sep))


def _status_error(path: str) -> OSError | None:
    """Why a link leads nowhere, or a folder may not be entered."""
    try:
        os.stat(path)
    except OSError as error:
        return error
    return None


def _read_text(path: str, report: Report) -> tuple[str, ...]:
    try:
        with open(path, "rb") as file:
            text = decode_text(file.read(MAX_LINE_BYTES))
    except OSError as error:
        report(path, f"cannot be read: {error.strerror}")
        return ()
    lines = [(number, line) for number, line in enumerate(lines_of(text), 1) if line.strip()]
    if not lines:
        report(path, "the caption is empty")
    return tuple(caption for number, line in lines for caption in _captions(line, f"{path}:{number}", report))


# `datasets`


def _read_dataset(config: SourceConfig, report: Report) -> Iterator[Sample]:
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
        table = table.remove_columns("split") if "split" in _column_names(table) else table
        config = config.model_copy(update={"split": None})  # done
    elif config.split is None and len(splits) > 1:
        raise CaptionerError(f"{config.path}: holds several splits; choose one of them: {', '.join(splits)}")
    else:
        table, *others = splits.values()
        if config.split is not None and (others or "split" not in _column_names(table)):  # nor does a column divide it
            near = _nearest(config.split, splits)
            raise CaptionerError(f"{config.path}: no split {config.split!r}; there is {', '.join(splits)}{near}")
    if config.streaming:
        return _merge_neighbours(_parse(_streamed_rows(table, config), config, folders, report))
    return _merge(_parse(_stored_rows(table, config), config, folders, report))


def _open_splits(name: str, config: SourceConfig) -> dict[str, Any]:
    """Each split as a `datasets.Dataset`, or an `IterableDataset` if it is to be streamed. Its code is never run."""
    import datasets

    try:
        if not any(os.path.isfile(os.path.join(name, mark)) for mark in ("state.json", "dataset_dict.json")):
            _check_name(name, config)
            return dict(datasets.load_dataset(name, streaming=config.streaming))
        saved = datasets.load_from_disk(name)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise CaptionerError(f"{config.path}: {_first_line(error)}") from error
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


def _column_names(table: Any) -> list[str]:
    return table.column_names or list(next(iter(table.take(1)), {}))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _encoded(table: Any, config: SourceConfig) -> tuple[Any, str]:
    """The table with its images left encoded, and the name of their column."""
    import datasets

    names = _column_names(table)
    _check_columns(names, config, config.path)
    column = _image_column(names, config)
    feature = (table.features or {}).get(column)
    if feature is None or getattr(feature, "dtype", None) in ("string", "large_string"):
        return table, column
    try:
        return table.cast_column(column, datasets.Image(decode=False)), column
    except (TypeError, ValueError) as error:
        raise CaptionerError(f"{config.path}: the column {column!r} holds neither images nor names") from error


def _label_names(table: Any, config: SourceConfig) -> list[str] | None:
    """Names of classes that the table keeps as numbers."""
    feature = (table.features or {}).get(config.label_column)
    names: list[str] | None = getattr(getattr(feature, "feature", feature), "names", None)
    return names


def _named(labels: Any, names: list[str]) -> Any:
    if isinstance(labels, list):
        return [_named(label, names) for label in labels]
    return names[labels] if isinstance(labels, int) and 0 <= labels < len(names) else labels


def _parquet_rows(path: str, config: SourceConfig) -> Iterator[Row]:
    import datasets

    try:
        table = datasets.Dataset.from_parquet(glob.escape(path))  # memory-mapped from the cache of `datasets`
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise CaptionerError(f"{path}: not a parquet file: {_first_line(error)}") from error
    return _stored_rows(table, config)


def _stored_rows(table: Any, config: SourceConfig) -> Iterator[Row]:
    table, column = _encoded(table, config)
    encoded = table.select_columns([column])
    classes = _label_names(table, config)
    wanted = {column, config.caption_column, config.label_column, "split"}
    table = table.select_columns([name for name in table.column_names if name in wanted])
    row = 0
    for batch in table.with_format("arrow").iter(batch_size=1000):
        cells = batch.drop_columns([column]).to_pydict()
        if classes:
            cells[config.label_column] = [_named(labels, classes) for labels in cells[config.label_column]]
        for index, image in enumerate(_images_of(batch, column, config)):
            where = f"{config.path}: row {row}"
            stored = StoredImage(where, encoded, row, column, image or row) if isinstance(image, bytes) else image
            yield where, {column: stored} | {name: values[index] for name, values in cells.items()}
            row += 1


def _images_of(batch: pa.Table, column: str, config: SourceConfig) -> Iterator[str | bytes | None]:
    """The image's path where the table has paths; else a digest, the same for two rows that show the same picture.

    A table with a list of captions, or with none, has a row an image: nothing to compare, so images are not read and
    digests empty.
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


def _streamed_rows(table: Any, config: SourceConfig) -> Iterator[Row]:
    import datasets

    classes = _label_names(table, config)
    try:
        table, column = _encoded(table, config)
        for number, row in enumerate(table):
            image = row[column]
            if isinstance(image, dict):
                image = image["bytes"] or _fetch(image["path"])
            named = {config.label_column: _named(row[config.label_column], classes)} if classes else {}
            yield f"{config.path}: row {number}", row | {column: image} | named
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise CaptionerError(f"{config.path}: {_first_line(error)}") from error


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
