"""Captions for requests: decodes their images in threads, and captions them in batches with those of others."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from captioner.data.images import ImageError, load_image
from captioner.decoding.options import GenerationOptions
from captioner.distributed import available_cores
from captioner.errors import CaptionerError
from captioner.infer.caption import Caption
from captioner.infer.captioner import Captioner
from captioner.infer.explain import Explanation
from captioner.serve import metrics
from captioner.serve.batching import Batcher, Closed, QueueFull, Request
from captioner.serve.errors import RequestError
from captioner.serve.schemas import Failed, Options
from captioner.serve.settings import Settings

WORDS = {"prefix", "banned_words", "forced_words"}
"""The options that are words, which the captioner turns into tokens."""


class Upload(NamedTuple):
    """An image of a request: what the client calls it, and its encoded bytes, a file, or why there is neither."""

    name: str
    data: bytes | Path | ImageError


class Kind(NamedTuple):
    """What images in one batch have in common: how they are captioned, and whether the captions are explained."""

    options: GenerationOptions
    is_explained: bool


class Prepared(NamedTuple):
    """An image on its way to the model: as the model takes it, and the photo itself if it is to be explained."""

    pixels: np.ndarray
    photo: Image.Image | None


class Described(NamedTuple):
    """A caption, the size of the upright image in pixels, and where the words come from if that was asked for."""

    caption: Caption
    width: int
    height: int
    explanation: Explanation | None = None


Computed = tuple[Caption, Explanation | None]


class Service:
    """A captioner shared by the requests of one process.

    Attributes:
        captioner: the model; it computes on one thread.
        batcher: collects images across requests.
        is_draining: the server is shutting down, and answers what it has accepted.
        body_bytes: bytes of request bodies that are held at the moment.
    """

    def __init__(self, captioner: Captioner, settings: Settings) -> None:
        self.captioner = captioner
        self.settings = settings
        self.batcher: Batcher[Prepared, Computed] = Batcher(self._compute, settings.batching, _observe_batch)
        self.is_draining = False
        self.body_bytes = 0
        self._decoders = ThreadPoolExecutor(min(8, available_cores()), thread_name_prefix="decode")

    def start(self) -> None:
        """Begin to work, on the event loop that is running."""
        self.batcher.start()

    async def close(self) -> None:
        """Finish what was admitted."""
        await self.batcher.close()
        self._decoders.shutdown()

    def generation_options(self, asked: Options) -> GenerationOptions:
        """Complete a request's options with the model's defaults.

        Raises:
            RequestError: they contradict one another.
        """
        given = asked.model_dump(include=Options.model_fields.keys() - WORDS, exclude_none=True)
        try:
            words = self.captioner.word_options(asked.prefix, asked.banned_words, asked.forced_words)
            return self.captioner.options(**given, **words)
        except CaptionerError as error:
            raise RequestError(400, "invalid_options", str(error)) from error

    async def caption(
        self, client: str, uploads: Sequence[Upload], asked: Options, is_explained: bool = False
    ) -> list[Described | Failed]:
        """Caption the images of a request, and explain the captions; an image that fails costs only itself.

        Raises:
            RequestError: too many images, options that contradict one another, no free places, or no answer in time.
        """
        limits = self.settings
        if len(uploads) > limits.max_images:
            message = f"{len(uploads)} images are over the limit of {limits.max_images} for a request"
            raise RequestError(413, "too_many_images", message)
        kind = Kind(self.generation_options(asked), is_explained)
        try:
            with self.batcher.admit(client, kind, len(uploads)) as request:
                async with asyncio.timeout(limits.request_seconds), asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._caption_one(request, upload)) for upload in uploads]
        except QueueFull as error:
            raise RequestError(429, "queue_full", str(error), error.retry_after) from error
        except Closed as error:
            raise RequestError(503, "shutting_down", str(error), 1) from error
        except TimeoutError as error:
            raise RequestError(503, "too_slow", f"no answer within {limits.request_seconds:g} s", 5) from error
        return [task.result() for task in tasks]

    async def _caption_one(self, request: "Request[Prepared, Computed]", upload: Upload) -> Described | Failed:
        loop = asyncio.get_running_loop()
        result: Described | Failed
        with metrics.images_in_progress.track_inprogress():
            try:
                photo = await loop.run_in_executor(self._decoders, self._read, upload)
                pixels = await loop.run_in_executor(self._decoders, self.captioner.preprocessing, photo)
                width, height = photo.info["size"]
                kept = photo if request.options.is_explained else None
                caption, explanation = await request.run(Prepared(pixels, kept))
                result = Described(caption, width, height, explanation)
            except ImageError as error:
                result = Failed(image=upload.name, error=error.reason, message=error.message)
            except CaptionerError as error:  # the model cannot do this, or no caption keeps all the rules
                result = Failed(image=upload.name, error="no_caption", message=str(error))
        metrics.images.labels(result.error if isinstance(result, Failed) else "captioned").inc()
        return result

    def _read(self, upload: Upload) -> Image.Image:
        """In a thread: decode an image, as large as the model needs it."""
        if isinstance(upload.data, ImageError):
            raise upload.data
        return load_image(upload.data, self.captioner.preprocessing.min_size, self.settings.max_pixels)

    def _compute(self, kind: Any, images: Sequence[Prepared]) -> list[Computed]:
        """In the batcher's thread: caption a batch, and explain each caption if that is asked for."""
        stream = self.captioner.stream(kind.options)
        captions = stream.add([image.pixels for image in images]) + stream.finish()
        if not kind.is_explained:
            return [(caption, None) for caption in captions]
        return [
            (caption, self.captioner.explain(image.photo, caption=caption))
            for caption, image in zip(captions, images, strict=True)
            if image.photo is not None
        ]


def _observe_batch(size: int, seconds: float) -> None:
    metrics.batch_size.observe(size)
    metrics.batch_seconds.observe(seconds)
