"""Reads WebDataset shards: tar files in which KEY.jpg, KEY.txt (a caption per line) and KEY.json are one sample.

A shard is indexed once, by its headers. Images are read in place when they are decoded; nothing is unpacked.
"""

import glob
import json
import os
import re
import tarfile
import unicodedata
from collections.abc import Iterator
from typing import Any, BinaryIO

from tqdm import tqdm

from captioner.config import SourceConfig
from captioner.data.images import IMAGE_EXTENSIONS, MAX_BYTES
from captioner.data.sources.image_names import ImageFolders
from captioner.data.sources.rows import Row, samples_of
from captioner.data.sources.sample import Report, Sample
from captioner.data.sources.stored_images import ShardMember
from captioner.data.text_files import decode_text, lines_of
from captioner.errors import CaptionerError

MAX_TEXT_BYTES = 2**24


def read_shards(pattern: str, config: SourceConfig, report: Report) -> Iterator[Sample]:
    """Read all shards that a name, a glob or a range matches."""
    return samples_of(_rows(pattern, config, report), config, ImageFolders(None, []), report)


def _rows(pattern: str, config: SourceConfig, report: Report) -> Iterator[Row]:
    """Yield a row for each sample: KEY.json's fields, the image and captions under the configured column names, and
    `__key__` (unique among all shards).

    Captions come from KEY.txt, else from KEY.json: the caption column, else `captions`.
    """
    paths = list(shard_paths(pattern))
    root = os.path.commonpath([os.path.dirname(path) for path in paths]) or "."
    for path in tqdm(paths, "indexing shards", disable=None, leave=False):
        name = os.path.relpath(path, root).replace(os.sep, "/")
        with open(path, "rb") as shard:
            for key, files in _by_key(_members(shard, path, report), report).items():
                if row := _row(shard, f"{path}: {key}", files, config, report):
                    yield f"{path}: {key}", row | {"__key__": f"{name}/{key}"}


def shard_paths(pattern: str) -> Iterator[str]:
    """Expand a name, a glob, or ranges as in `train-{0000..0031}.tar`; every shard of a range must exist."""
    found = False
    for name in [pattern] if os.path.isfile(pattern) else _in_ranges(pattern):
        paths = [name] if os.path.isfile(name) else _matches(name)
        if not paths:
            raise CaptionerError(f"{name}: no such shard")
        yield from paths
        found = True
    if not found:
        raise CaptionerError(f"{pattern}: the range is empty")


def _matches(pattern: str) -> list[str]:
    """Expand a glob. Brackets in the name of an existing folder are literal."""
    folder, name = os.path.split(pattern)
    return sorted(glob.glob(os.path.join(glob.escape(folder) if os.path.isdir(folder) else folder, name)))


def _in_ranges(pattern: str) -> Iterator[str]:
    match = re.search(r"\{(\d{1,9})\.\.(\d{1,9})\}", pattern)
    if match is None:
        yield pattern
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        yield from _in_ranges(f"{pattern[: match.start()]}{number:0{len(first)}}{pattern[match.end() :]}")


def _members(shard: BinaryIO, path: str, report: Report) -> Iterator[ShardMember]:
    """Yield the regular files of a tar file, up to where it is damaged or truncated."""
    size = os.fstat(shard.fileno()).st_size
    try:
        with tarfile.open(fileobj=shard, mode="r:") as tar:
            for info in tar:
                name = info.name.removeprefix("./")
                if info.isdir() or (name.startswith(".") and "/" not in name):
                    continue
                if problem := _problem(name, info, size):
                    report(f"{path}: {name!r:.200}", problem)
                else:
                    yield ShardMember(path, name, info.offset_data, info.size)
            shard.seek(tar.offset)  # where tarfile stopped: at the end marker, or at damage
            if shard.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                report(path, "the tar file is damaged or truncated: it has no end marker")
    except (tarfile.TarError, ValueError, OverflowError) as error:
        report(path, f"not an uncompressed tar file, or one that is damaged or truncated: {error}")


def _problem(name: str, info: tarfile.TarInfo, shard_size: int) -> str | None:
    limit = MAX_BYTES if _kind(name) == "image" else MAX_TEXT_BYTES
    if not info.isreg() or info.issparse():
        return "a link, a device or a sparse file, not a plain one"
    if "/" in name:
        return "the name has a folder in it; shards are flat: KEY.jpg, KEY.txt, KEY.json"
    if not name.isascii() and any("\ud800" <= character <= "\udfff" for character in name):
        return "the name is not valid Unicode text"
    if _kind(name) and info.size > limit:
        return f"{info.size:,} bytes are over the limit of {limit:,}"
    if info.offset_data + info.size > shard_size:
        return "the tar file is truncated: it ends within this file"
    return None


def _kind(name: str) -> str | None:
    suffix = os.path.splitext(name)[1].lower()
    return "image" if suffix in IMAGE_EXTENSIONS else {".txt": ".txt", ".caption": ".txt", ".json": ".json"}.get(suffix)


def _by_key(members: Iterator[ShardMember], report: Report) -> dict[str, dict[str, ShardMember]]:
    """Group images, .txt and .json by key, in the order of first appearance; ignore other files."""
    samples: dict[str, dict[str, ShardMember]] = {}
    for member in members:
        kind = _kind(member.member)
        if kind is None:
            continue
        # Files of one key may come from different systems and differ in Unicode composition.
        files = samples.setdefault(unicodedata.normalize("NFC", os.path.splitext(member.member)[0]), {})
        if kind in files:
            report(str(member), f"the key has this kind of file already: {files[kind].member}")
        else:
            files[kind] = member
    return samples


def _row(
    shard: BinaryIO, where: str, files: dict[str, ShardMember], config: SourceConfig, report: Report
) -> dict[str, Any] | None:
    if "image" not in files:
        report(where, "the image is missing: there is none of this name")
        return None
    fields: Any = {}
    if ".json" in files:
        try:
            fields = json.loads(files[".json"].read_from(shard))
        except (ValueError, RecursionError) as error:
            report(str(files[".json"]), f"not JSON: {error}")
            return None
        if not isinstance(fields, dict):
            report(str(files[".json"]), f"not an object but {fields!r:.60}")
            return None
    captions = fields.get(config.caption_column, fields.get("captions"))
    if ".txt" in files:
        text = decode_text(files[".txt"].read_from(shard))
        captions = [line for line in lines_of(text) if line.strip()] or ""
    elif captions is None and config.captioned:
        report(where, "the image has no caption: neither a .txt of this name nor one in its .json")
        return None
    labels = {config.label_column: fields.get(config.label_column)} if config.label_column else {}
    return fields | labels | {config.image_column: files["image"], config.caption_column: captions}
