"""The entry point: chooses the reader of a source by its path, and yields samples."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from captioner.config import SourceConfig
from captioner.data.sources.folders import read_folder
from captioner.data.sources.hf_datasets import read_dataset
from captioner.data.sources.karpathy_coco import read_json
from captioner.data.sources.project import read_project
from captioner.data.sources.sample import Report, Sample, Skip, SourceError
from captioner.data.sources.tables import read_table
from captioner.data.sources.tar_shards import read_shards
from captioner.errors import CaptionerError


def load_samples(config: SourceConfig) -> tuple[list[Sample], list[Skip]]:
    """Return all samples of a source in its own order, and what was left out. Raises as `iter_samples`."""
    skips: list[Skip] = []
    with _collector_paused():
        samples = list(iter_samples(config, skips.append))
    return samples, skips


def iter_samples(config: SourceConfig, on_skip: Callable[[Skip], object]) -> Iterator[Sample]:
    """Yield the samples of a source; with `streaming`, nothing else is held in memory.

    A missing image, an empty caption or a malformed row raises, or with `on_error: skip` is left out and passed to
    `on_skip`. In a streamed data set, only adjacent rows of an image are merged.

    Raises:
        CaptionerError: a problem as above under `on_error: raise`; always for a source, split or column that does not
            exist (the message lists those that do), and for a source without a usable sample.
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
    """Pause garbage collection: COCO has millions of objects and no cycles, and looking for cycles doubles the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read(config: SourceConfig, report: Report) -> Iterator[Sample]:
    """Read a source in the layout that its path tells:

    hf:NAME             `datasets`: a local folder, else a name on the Hub
    a folder            metadata.csv or captions.csv (.jsonl) in it, else photo.jpg and photo.txt (or .caption), a
                        caption per line, or photo.jpg.xmp, or a description in the photo
    .tar                WebDataset: KEY.jpg, KEY.txt, KEY.json; a range {0000..0031} or a glob matches several shards
    .json               Karpathy & Fei-Fei 2015: images[].filename, filepath, sentences[].raw, split; or
                        COCO: images[].id, file_name and annotations[].image_id, caption
                        Label Studio, Visual Genome, FiftyOne, kohya, COCO results: see foreign_rows
    .captions           a project of `captioner annotate`
    .jsonl .csv .tsv    a row has an image's name and a caption, or (jsonl) a list of captions
    .parquet            the same, or with the images in the table

    With `captioned: false`, the same layouts give images, with labels if they have any, and captions are ignored.
    Rows of one image become one sample. Images are found, not decoded; their names may differ from those on disk in
    case and Unicode composition, and contain backslashes.
    """
    if config.path.startswith("hf:"):
        return read_dataset(config, report)
    path = os.path.expanduser(config.path)
    if os.path.isdir(path):
        return read_folder(path, config, report)
    if path.endswith(".tar"):
        return read_shards(path, config, report)
    if not os.path.isfile(path):
        raise CaptionerError(f"{path}: no such file or folder")
    match os.path.splitext(path)[1].lower():
        case ".captions":
            return read_project(path, config, report)
        case ".json":
            return read_json(path, config, report)
        case ".jsonl" | ".csv" | ".tsv" | ".parquet":
            return read_table(path, config, report)
    raise CaptionerError(
        f"{path}: unknown layout; give .json, .jsonl, .csv, .tsv, .parquet, .tar, .captions, a folder or hf:NAME"
    )
