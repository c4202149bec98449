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

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from captioner.config import SourceConfig
from captioner.data.sources.folders import read_folder
from captioner.data.sources.hf_datasets import read_dataset
from captioner.data.sources.karpathy_coco import read_json
from captioner.data.sources.sample import Report, Sample, Skip, SourceError
from captioner.data.sources.tables import read_table
from captioner.data.sources.tar_shards import read_shards
from captioner.errors import CaptionerError


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
        return read_dataset(config, report)
    path = os.path.expanduser(config.path)
    if os.path.isdir(path):
        return read_folder(path, config, report)
    if path.endswith(".tar"):
        return read_shards(path, config, report)
    if not os.path.isfile(path):
        raise CaptionerError(f"{path}: no such file or folder")
    match os.path.splitext(path)[1].lower():
        case ".json":
            return read_json(path, config, report)
        case ".jsonl" | ".csv" | ".tsv" | ".parquet":
            return read_table(path, config, report)
    raise CaptionerError(
        f"{path}: not a layout we read; give .json, .jsonl, .csv, .tsv, .parquet, .tar, a folder or hf:NAME"
    )
