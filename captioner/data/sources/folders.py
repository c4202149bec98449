"""Reads folders: a table in the folder, or captions beside each image (text, XMP) or in it."""

import os
from collections.abc import Iterator

from captioner.config import SourceConfig
from captioner.data.folder_walk import walk
from captioner.data.images import IMAGE_EXTENSIONS, MAX_BYTES
from captioner.data.photo_metadata import embedded_description, xmp_description
from captioner.data.sources.image_names import normalized_name
from captioner.data.sources.sample import Report, Sample, usable_captions
from captioner.data.sources.tables import read_table
from captioner.data.text_files import decode_text, lines_of
from captioner.errors import CaptionerError

FOLDER_TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet", "captions.jsonl", "captions.csv")

CAPTION_EXTENSIONS = (".txt", ".caption")

MAX_TEXT_BYTES = 2**24


def read_folder(path: str, config: SourceConfig, report: Report) -> Iterator[Sample]:
    """Read the first of `FOLDER_TABLES` that the folder contains, else images with captions beside them."""
    for name in FOLDER_TABLES:
        if os.path.isfile(os.path.join(path, name)):
            return read_table(os.path.join(path, name), config, report)
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
        texts: dict[str, list[str]] = {}  # caption files by normalized stem
        for name in names:
            stem, suffix = os.path.splitext(name)
            if config.captioned and suffix.lower() in CAPTION_EXTENSIONS:
                texts.setdefault(normalized_name(stem), []).append(name)
        with_xmp = {name.removesuffix(".xmp") for name in names if name.endswith(".xmp")}
        unused = {name for several in texts.values() for name in several}
        for name in images:
            image = os.path.join(folder, name)
            identifier = os.path.relpath(image, path).replace(os.sep, "/")
            stem = os.path.splitext(name)[0]
            alike = texts.get(normalized_name(stem), [])
            beside = [text for text in alike if os.path.splitext(text)[0] == stem] or alike
            unused.difference_update(beside)
            if not config.captioned:
                yield Sample(identifier, image, ())
            elif not beside and (description := _description(image, name in with_xmp)):
                yield Sample(identifier, image, (description,))
            elif not beside:
                report(image, f"the image has no caption: no {stem}.txt beside it, and no description in it")
            elif len(beside) > 1:
                report(image, f"several files have the image's captions: {' and '.join(beside)}; keep one")
            elif captions := _read_text(os.path.join(folder, beside[0]), report):
                yield Sample(identifier, image, captions)
        for text in sorted(unused):
            report(os.path.join(folder, text), "the image is missing: there is none of this name beside it")


def _description(image: str, has_sidecar: bool) -> str | None:
    """The description in an image's XMP sidecar, else in the image."""
    try:
        if has_sidecar and os.path.getsize(f"{image}.xmp") <= MAX_TEXT_BYTES:
            with open(f"{image}.xmp", "rb") as file:
                if found := xmp_description(file.read()):
                    return found.text
        with open(image, "rb") as file:
            found = embedded_description(file.read()) if os.path.getsize(image) <= MAX_BYTES else None
    except OSError:
        return None
    return found.text if found else None


def _files_by_folder(path: str, report: Report) -> Iterator[tuple[str, list[str]]]:
    """Yield `path` and each folder below it that has files, with their names."""
    folders: dict[str, list[str]] = {}
    for file in walk(path, set()):
        if error := file.error or _status_error(file.path):
            report(file.path, f"cannot be read: {error.strerror}")
        else:
            folders.setdefault(os.path.dirname(file.path), []).append(os.path.basename(file.path))
    yield from sorted(folders.items(), key=lambda item: item[0].split(os.sep))


def _status_error(path: str) -> OSError | None:
    """Return why a path is inaccessible: a broken link, a folder without permission."""
    try:
        os.stat(path)
    except OSError as error:
        return error
    return None


def _read_text(path: str, report: Report) -> tuple[str, ...]:
    try:
        with open(path, "rb") as file:
            text = decode_text(file.read(MAX_TEXT_BYTES))
    except OSError as error:
        report(path, f"cannot be read: {error.strerror}")
        return ()
    lines = [(number, line) for number, line in enumerate(lines_of(text), 1) if line.strip()]
    if not lines:
        report(path, "the caption is empty")
    return tuple(caption for number, line in lines for caption in usable_captions(line, f"{path}:{number}", report))
