"""Files of captions -> captions by image id."""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from captioner.errors import CaptionerError
from captioner.metrics.score import refuse_images

Captions = dict[str, list[str]]
Key = tuple[str, ...]  # the last parts of an image's path, or its number

COCO_NAME = re.compile(r"(?:COCO_\w+_)?(\d{12})(?:\.\w+)?")
"""COCO's file names hold the image's id: COCO_val2014_000000391895.jpg, or 000000391895.jpg since 2017."""


class References(NamedTuple):
    """Captions by image id, and the file names of the images where the file has them."""

    captions: Captions
    file_names: dict[str, str]


def read_captions(path: Path, split: str | None = None) -> Captions:
    """Read the captions of each image, in the file's order of images. Ids are strings: 42 and "42" are one image.

    Layouts, told apart by what they contain:
    - COCO results: `[{"image_id": 42, "caption": "..."}, ...]`;
    - COCO captions: `{"annotations": [{"image_id": 42, "caption": "..."}, ...], ...}`;
    - Karpathy: `{"images": [{"filename": "...", "split": "test", "sentences": [{"raw": "..."}, ...]}, ...]}`; the id is
      `cocoid` where there is one, else the file name;
    - JSON lines: `{"image_id", "image" or "file_name": ..., "caption": "..." or "captions": ["...", ...]}` a line;
    - CSV, in a file of that suffix: a header with `image_id`, `image` or `file_name`, and `caption`.

    `split` keeps one split of a file that has splits; "train" includes Karpathy's restval. Raises CaptionerError with
    the file and the place for anything else.
    """
    return read_references(path, split).captions


def read_references(path: Path, split: str | None = None) -> References:
    """As `read_captions`, with the file names of the images."""
    captions: Captions = {}
    file_names: dict[str, str] = {}
    for where, row in _of_split(path, _rows(path), split):
        image, texts = _entry(where, row)
        captions.setdefault(image, []).extend(texts)
        if isinstance(row.get("file_name"), str):
            file_names[image] = row["file_name"]
    if not captions:
        raise CaptionerError(f"{path}: no captions" + (f" in split {split!r}" if split else ""))
    return References(captions, file_names)


def read_training_captions(path: Path) -> list[str]:
    """Read the captions that a model was trained on: of a file with splits, those of train and restval."""
    split = "train" if any("split" in row for _, row in _rows(path)) else None
    return [text for texts in read_captions(path, split).values() for text in texts]


def read_results(path: Path, split: str | None = None) -> dict[str, str]:
    """Read one generated caption per image; an image with none, or with several, is an error."""
    captions = read_captions(path, split)
    try:
        refuse_images("with more than one caption", (image for image, texts in captions.items() if len(texts) > 1))
        refuse_images("without a caption", (image for image, texts in captions.items() if not texts))
    except CaptionerError as error:
        raise CaptionerError(f"{path}: {error}") from None
    return {image: texts[0] for image, texts in captions.items()}


def by_reference(results: Mapping[str, str], references: References) -> dict[str, str]:
    """Name the images of results as the references do.

    Where ids differ, the longest common end of the paths decides: `photos/a/1.jpg` is `a/1.jpg`, and with either
    separator `1.jpg`; then COCO's number in the name. An image that no reference is, or several are, keeps its name.

    Raises:
        CaptionerError: two images are the same of the references.
    """
    images: dict[Key, set[str]] = {}
    for image in references.captions:
        for name in (image, references.file_names.get(image, image)):
            for key in _keys(name):
                images.setdefault(key, set()).add(image)
    named: dict[str, str] = {}
    origins: dict[str, str] = {}
    for result, caption in results.items():
        image = result if result in references.captions else _image_of(result, images)
        if image in named:
            raise CaptionerError(f"{origins[image]} and {result} are both {image} of the references")
        named[image], origins[image] = caption, result
    return named


def _image_of(name: str, images: Mapping[Key, set[str]]) -> str:
    found = next((images[key] for key in _keys(name) if key in images), {name})
    return next(iter(found)) if len(found) == 1 else name


def _keys(name: str) -> Iterator[Key]:
    """What an image may go by, the most precise first."""
    parts = tuple(part for part in re.split(r"[\\/]", unicodedata.normalize("NFC", name)) if part not in ("", "."))
    for start in range(len(parts)):
        yield parts[start:]
    if parts and (number := COCO_NAME.fullmatch(parts[-1])):
        yield (str(int(number[1])),)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The file's entries, each with the place to name in an error."""
    for where, row in _entries(path):
        if not isinstance(row, dict):
            raise CaptionerError(f"{where}: not an object")
        yield where, row


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise CaptionerError(f"{path}: {reason}") from error
    if path.suffix.lower() == ".csv":
        yield from _csv(path, text)
        return
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        yield from _json_lines(path, text)
        return
    except RecursionError as error:
        raise CaptionerError(f"{path}: nested too deeply") from error
    if isinstance(content, list):
        yield from ((f"{path}: entry {i}", row) for i, row in enumerate(content))
    elif isinstance(content, dict) and isinstance(content.get("annotations"), list):
        yield from _coco(path, content["annotations"], content.get("images"))
    elif isinstance(content, dict) and isinstance(content.get("images"), list):
        yield from _karpathy(path, content["images"])
    elif isinstance(content, dict) and ("image" in content or "image_id" in content):
        yield f"{path}:1", content
    else:
        raise CaptionerError(f"{path}: neither COCO results or captions, nor Karpathy's layout, nor JSON lines")


def _csv(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        yield from ((f"{path}:{reader.line_num}", row) for row in reader)
    except csv.Error as error:
        raise CaptionerError(f"{path}:{reader.line_num + 1}: {error}") from error  # the row after the last good one


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise CaptionerError(f"{path}:{number}: not JSON: {str(error)[:100]}") from error


def _coco(path: Path, annotations: list[Any], images: Any) -> Iterator[tuple[str, Any]]:
    known = [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    file_names = {str(image.get("id")): image.get("file_name") for image in known}
    for i, row in enumerate(annotations):
        name = file_names.get(str(row.get("image_id"))) if isinstance(row, dict) else None
        yield f"{path}: annotation {i}", row if name is None else {**row, "file_name": name}


def _karpathy(path: Path, images: list[Any]) -> Iterator[tuple[str, Any]]:
    for i, image in enumerate(images):
        where = f"{path}: image {i}"
        if not isinstance(image, dict) or not isinstance(image.get("sentences"), list):
            raise CaptionerError(f"{where}: no list of sentences")
        texts = [sentence.get("raw") if isinstance(sentence, dict) else sentence for sentence in image["sentences"]]
        name = image.get("filename")
        row = {"image_id": image.get("cocoid", name), "file_name": name, "captions": texts}
        if isinstance(name, str) and isinstance(image.get("filepath"), str):
            row["file_name"] = f"{image['filepath']}/{name}"
        yield where, row | ({"split": image["split"]} if "split" in image else {})


def _of_split(
    path: Path, rows: Iterable[tuple[str, dict[str, Any]]], split: str | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    known: set[str] = set()
    for where, row in rows:
        name = row.get("split")
        known |= set() if name is None else {str(name)}
        if split in (None, name) or (split == "train" and name == "restval"):
            yield where, row
    if split is not None and not known:
        raise CaptionerError(f"{path}: has no splits, {split!r} or other")
    if split is not None and split not in known and not (split == "train" and "restval" in known):
        raise CaptionerError(f"{path}: no split {split!r}; there are {', '.join(sorted(known))}")


def _entry(where: str, row: dict[str, Any]) -> tuple[str, list[str]]:
    image = row.get("image_id", row.get("image", row.get("file_name")))
    if isinstance(image, float) and image.is_integer():
        image = int(image)
    if not isinstance(image, str | int) or isinstance(image, bool):
        raise CaptionerError(f"{where}: no image_id or image")
    given = row.get("captions", row.get("caption"))
    texts: list[Any] = given if isinstance(given, list) else [given]
    if not all(isinstance(text, str) for text in texts):
        raise CaptionerError(f"{where}: no caption that is text, for image {image}")
    return str(image), texts
