"""Streamed data sets, kept while a training lasts: read once over the network, then from a shard by index.

Epochs, buckets of equal length and resuming need every sample at hand; memory would hold few.
"""

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from captioner.config import SourceConfig
from captioner.data.folder_walk import walk
from captioner.data.sources import Sample, Skip, iter_samples
from captioner.errors import CaptionerError

SHARD_VERSION = 2
"""Of what is written for a sample; other versions are not read."""


def stored(source: SourceConfig, folder: Path, on_skip: Callable[[Skip], object]) -> SourceConfig:
    """A source that is not streamed, with the same samples: a shard in `folder`, written unless it is there already.

    The shard's name is a digest of the source's settings and, where its files are on this machine, of their names,
    sizes and times. A data set of the Hub may have changed meanwhile: a training that starts anew leaves no shard of
    an earlier one in `folder`.

    Raises:
        CaptionerError: the stream cannot be read, as in `iter_samples`, or the shard not written.
    """
    if not source.streaming:
        return source
    path = folder / f"{_digest(source)}.tar"
    if not path.exists():
        samples = tqdm(iter_samples(source, on_skip), f"reading {source.path}", disable=None, leave=False)
        try:
            _write_shard(samples, path)
        except OSError as error:
            raise CaptionerError(f"{error.filename or path}: {error.strerror or error}") from error
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
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        partial = Path(file.name)
        try:
            with tarfile.open(fileobj=file, mode="w") as shard:
                for number, sample in enumerate(samples):
                    words = {"captions": sample.captions, "labels": sample.labels}
                    _add(shard, f"{number:09}.jpg", _encoded(sample.image))  # whatever it is: decoders look inside
                    _add(shard, f"{number:09}.json", json.dumps(words).encode())
        except BaseException:
            partial.unlink()
            raise
    partial.replace(path)


def _encoded(image: object) -> bytes:
    """Streams give the bytes of an image, or the name of a file on this machine."""
    return image if isinstance(image, bytes) else Path(str(image)).read_bytes()


def _add(shard: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    shard.addfile(info, io.BytesIO(data))
