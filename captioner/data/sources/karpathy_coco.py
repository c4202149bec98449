"""JSON files: Karpathy's splits, COCO's annotations, and the layouts of other programs (see foreign_rows)."""

import json
import os
from collections.abc import Iterator
from typing import Any

from captioner.config import SourceConfig
from captioner.data.sources.foreign_rows import json_rows
from captioner.data.sources.image_names import ImageFolders
from captioner.data.sources.rows import Row, merge, rows_in_split, samples_of
from captioner.data.sources.sample import Report, Sample, usable_captions, usable_labels
from captioner.errors import CaptionerError

MAX_JSON_BYTES = 2**32


def read_json(path: str, config: SourceConfig, report: Report) -> Iterator[Sample]:
    """Read a .json file in the layout that its fields tell."""
    folders = ImageFolders.beside(path, config.images)
    if os.path.getsize(path) > MAX_JSON_BYTES:
        raise CaptionerError(f"{path}: over the limit of {MAX_JSON_BYTES:,} bytes; use .jsonl or .parquet")
    try:
        with open(path, "rb") as file:
            tree = json.load(file)
    except (ValueError, RecursionError) as error:
        raise CaptionerError(f"{path}: not a JSON file: {error}") from error
    rows = json_rows(tree, path, config)
    if rows is not None:
        folders.folders += [os.path.join(os.path.dirname(path), name) for name in ("VG_100K", "VG_100K_2")]
        return merge(samples_of(rows, config.model_copy(update={"path": path}), folders, report))
    tree = tree if isinstance(tree, dict) else {}
    images, annotations = tree.get("images"), tree.get("annotations")
    if isinstance(images, list) and any(isinstance(image, dict) and "sentences" in image for image in images):
        return _read_karpathy(path, images, config, folders, report)
    if isinstance(images, list) and not config.captioned:  # COCO's image_info_unlabeled2017.json has no annotations
        return _read_coco(path, images, [], config, folders, report)
    if isinstance(images, list) and isinstance(annotations, list):
        return _read_coco(path, images, annotations, config, folders, report)
    raise CaptionerError(
        f"{path}: neither Karpathy's layout (images[].sentences) nor COCO's (images[] and annotations[]), and none of "
        "Label Studio, Visual Genome, FiftyOne or kohya; write a list of rows as .jsonl, one object per line"
    )


def _read_karpathy(
    path: str, images: list[Any], config: SourceConfig, folders: ImageFolders, report: Report
) -> Iterator[Sample]:
    seen: dict[str | int, str] = {}
    rows = _objects(images, f"{path}: images", report)
    for where, image in rows_in_split(rows, path, config.split):
        identifier: Any = image.get("cocoid", image.get("filename"))
        names = [image.get("filename")]
        if isinstance(names[0], str) and isinstance(image.get("filepath"), str):
            names.insert(0, os.path.join(image["filepath"], names[0]))
        if not _is_new(identifier, where, seen, report):
            continue
        file = folders.find(where, report, *names)
        sentences = image.get("sentences")
        raw = [s.get("raw") if isinstance(s, dict) else s for s in sentences] if isinstance(sentences, list) else []
        captions = usable_captions(raw, where, report) if config.captioned else ()
        labels = usable_labels(image.get(config.label_column), where, report) if config.label_column else ()
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
        captions.setdefault(identifier, []).extend(usable_captions(annotation.get("caption"), where, report))
    for identifier, (where, image) in images.items():
        if config.captioned and identifier not in captions:
            report(where, "the image has no caption")
            continue
        file = folders.find(where, report, image.get("file_name"))
        labels = usable_labels(image.get(config.label_column), where, report) if config.label_column else ()
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
