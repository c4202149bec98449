"""The images that captioning takes, read and preprocessed in batches."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import cast

import numpy as np
from PIL import Image

from captioner.data.arrays import Array
from captioner.data.images import ImageError, ImageInput, is_url, load_image
from captioner.errors import CaptionerError
from captioner.infer.backend import Preprocess
from captioner.infer.urls import fetch_image

_log = logging.getLogger(__name__)


def as_several(images: ImageInput | Iterable[ImageInput]) -> Iterable[ImageInput] | None:
    """Return the images of an iterable or of an array with one dimension more than an image's; None for a single image
    or for something that cannot be one."""
    if isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | Image.Image | Mapping):
        return None
    if hasattr(images, "read"):  # files are iterable too
        return None
    if isinstance(images, Array) and getattr(images, "ndim", 0) in (0, 2, 3):
        return None
    return cast("Iterable[ImageInput]", images) if hasattr(images, "__iter__") else None


def read_image(source: ImageInput, min_size: int) -> Image.Image:
    """`load_image`, with a warning logged for a fault that leaves the picture whole."""
    image = load_image(source, min_size)
    if warning := image.info.get("warning"):
        _log.warning("%s", "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in warning))
    return image


def image_batches(
    images: Iterable[ImageInput], preprocessing: Preprocess, batch_size: int, fetch_urls: bool = False
) -> Iterator[list[np.ndarray]]:
    """Read and preprocess images, `batch_size` at a time; with `fetch_urls`, strings that are URLs are downloaded.

    Raises:
        CaptionerError: `batch_size` is below 1.
        ImageError: an image cannot be read; raised when its turn comes.
    """
    if batch_size < 1:
        raise CaptionerError(f"batch_size must be at least 1; it is {batch_size}")
    prepared = (_prepared(image, number, preprocessing, fetch_urls) for number, image in enumerate(images))
    return iter(lambda: list(islice(prepared, batch_size)), [])


def _prepared(image: ImageInput, number: int, preprocessing: Preprocess, fetch_urls: bool) -> np.ndarray:
    try:
        source = fetch_image(image) if fetch_urls and isinstance(image, str) and is_url(image) else image
        return preprocessing(read_image(source, preprocessing.min_size))
    except ImageError as error:
        if isinstance(image, str | os.PathLike):
            raise
        raise ImageError(f"images[{number}], {error.source}", error.reason, error.message) from error
