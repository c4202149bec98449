"""Caches a streamed data set in a tar shard: it is read from the network once, then from disk by index.

Epochs, length bucketing and resuming need random access to all samples, which may not fit in memory.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from captioner.config import SourceConfig
from captioner.data.folder_walk import walk
from captioner.data.sources import Sample, Skip, iter_samples
from captioner.files import reporting, whole_file

SHARD_VERSION = 3
"""Part of a shard's name, so that shards in an older format are not read."""


def cache_stream(source: SourceConfig, folder: Path, on_skip: Callable[[Skip], object]) -> SourceConfig:
    """Cache a streamed source in a shard in `folder`, unless it is there; return the shard as a source.

    A source that is not streamed is returned as it is.

    The shard's name is a digest of the source's settings and, for local files, of their names, sizes and times. A data
    set on the Hub may change unnoticed, so a new training deletes old shards from `folder`.

    Raises:
        CaptionerError: the stream cannot be read (see `iter_samples`), or the shard cannot be written.
    """
    if not source.streaming:
        return source
    path = folder / f"{_digest(source)}.tar"
    if not path.exists():
        _write_shard(tqdm(iter_samples(source, on_skip), f"reading {source.path}", disable=None, leave=False), path)
    return SourceConfig(
        path=str(path),
        captioned=source.captioned,
        caption_column="captions",
        label_column="labels" if source.label_column else None,
        on_error=source.on_error,
    )


def _digest(source: SourceConfig) -> str:
    digest = hashlib.sha256(f"{SHARD_VERSION} {source.model_dump_json(exclude={'streaming', 'weight'})}".encode())
    for name in (source.path.removeprefix("hf:"), source.images or ""):
        folder = os.path.abspath(os.path.expanduser(name))
        if name and os.path.isdir(folder):
            for file in walk(folder, set()):
                digest.update(os.fsencode(file.path) + _state(file.path))
    return digest.hexdigest()[:16]


def _state(path: str) -> bytes:
    try:
        status = os.stat(path)
    except OSError:
        return b"\0unreadable\0"
    return f"\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\0".encode()


def _write_shard(samples: Iterable[Sample], path: Path) -> None:
    with reporting(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file, tarfile.open(fileobj=file.buffer, mode="w") as shard:
        for number, sample in enumerate(samples):
            words = {"captions": sample.captions, "labels": sample.labels, "sample_weight": sample.weight}
            _add(shard, f"{number:09}.jpg", _encoded(sample.image))  # any format: we decode by content, not by suffix
            _add(shard, f"{number:09}.json", json.dumps(words).encode())


def _encoded(image: object) -> bytes:
    """Return the bytes of an image from a stream, which gives bytes or the name of a local file."""
    return image if isinstance(image, bytes) else Path(str(image)).read_bytes()


def _add(shard: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    shard.addfile(info, io.BytesIO(data))
