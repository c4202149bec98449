"""Many images through a `Captioner`: threads decode and preprocess ahead of the model, memory stays bounded."""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from captioner.annotate.flags import caption_flags, photo_flags
from captioner.annotate.sheets import Sheets
from captioner.data.images import ImageError, ImageInput
from captioner.decoding.options import GenerationOptions
from captioner.distributed import this_process
from captioner.infer.caption import Caption
from captioner.infer.captioner import Captioner
from captioner.infer.inputs import read_image

ESCAPES = str.maketrans({code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))})
"""Control characters, in names above all, are shown as \\x09: a line stays a line, and a terminal gets no commands."""

Key = TypeVar("Key")
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Captioned(Generic[Key]):
    """An image's caption, the size of the upright image in pixels, and what needs a person's eyes: {flag: detail}."""

    key: Key
    caption: Caption
    width: int
    height: int
    flags: dict[str, str]


@dataclass(frozen=True)
class Failure(Generic[Key]):
    """An image that could not be read: `error` is `ImageError.reason`, `message` the same for people."""

    key: Key
    image: str
    error: str
    message: str


@dataclass(frozen=True)
class _Waiting(Generic[Key]):
    key: Key
    source: ImageInput
    width: int
    height: int
    flags: dict[str, str]


def caption_images(
    captioner: Captioner,
    images: Iterable[tuple[Key, ImageInput]],
    options: GenerationOptions,
    *,
    batch_size: int,
    num_workers: int,
    min_confidence: float = 0.0,
    sheets: Sheets | None = None,
) -> Iterator[Captioned[Key] | Failure[Key]]:
    """Caption (key, image) pairs; captions come in the order of the images, failures as they are met.

    Captions below `min_confidence` are flagged `abstained`; `sheets` are drawn for all.

    Memory holds about three batches of preprocessed images, two of encoded ones, and one decoded image a worker,
    however many there are.
    """

    def prepare(pair: tuple[Key, ImageInput]) -> tuple[_Waiting[Key], np.ndarray] | Failure[Key]:
        key, source = pair
        try:
            image = read_image(source, captioner.preprocessing.min_size)
        except ImageError as error:
            return Failure(key, error.source, error.reason, error.message)
        width, height = image.info["size"]
        return _Waiting(key, source, width, height, photo_flags(image)), captioner.preprocessing(image)

    def finished(captions: list[Caption]) -> Iterator[Captioned[Key]]:
        for caption in captions:
            prepared = waiting.popleft()
            if sheets is not None:
                sheets.draw(captioner, prepared.source, caption)
            flags = prepared.flags | caption_flags(caption, min_confidence)
            yield Captioned(prepared.key, caption, prepared.width, prepared.height, flags)

    stream = captioner.stream(options)
    waiting: deque[_Waiting[Key]] = deque()  # for their captions, first come first served
    batch: list[np.ndarray] = []
    for result in map_ahead(prepare, images, num_workers, ahead=2 * batch_size + num_workers):
        if isinstance(result, Failure):
            yield result
            continue
        prepared, pixel_values = result
        waiting.append(prepared)
        batch.append(pixel_values)
        if len(batch) == batch_size:
            yield from finished(stream.add(batch))
            batch = []
    if batch:
        yield from finished(stream.add(batch))
    yield from finished(stream.finish())


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], num_workers: int, ahead: int
) -> Iterator[Result]:
    """`map` in threads, in order, with at most `ahead` items begun and not yet taken."""
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="decode")
    items = iter(items)
    try:
        pending: deque[Future[Result]] = deque(pool.submit(function, item) for item in islice(items, ahead))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(items, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def progress_bar(results_scroll_by: bool = False) -> Progress:
    """A bar on stderr where that is a terminal, and results do not go to the same one; the first process's alone."""
    visible = sys.stderr.isatty() and not results_scroll_by and this_process().rank == 0
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not visible, redirect_stdout=False)
