"""Annotation on a cluster: a Ray Data pipeline that reads images, captions them and writes parquet.

    source = captioner.ray.read("s3://bucket/photos/")
    captioner.ray.annotate(source, "s3://bucket/captions", workers=64, gpus=1)

Nothing is shuffled: images stream from the readers through the workers, each with its model, to the files. The ids of
each file's images are noted in a checkpoint beside the output, in two phases; a job that was killed goes on with the
images that no finished file has.
"""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from captioner.annotate.formats.records import alternatives_of, tags_of
from captioner.annotate.pipeline import Captioned, caption_images
from captioner.data.images import IMAGE_EXTENSIONS
from captioner.errors import CaptionerError
from captioner.infer.captioner import Captioner

if TYPE_CHECKING:
    from ray.data import Dataset

BATCHES = 8
"""Batches of the model in a batch of Ray's: the decoder stays full between them."""


class Source(NamedTuple):
    """Images to caption.

    Attributes:
        rows: with an id, unique, and an encoded image.
        id_column: of `rows`, as it is read; the output has it too.
        image_column: of `rows`; None for tar shards, where it is the member whose name ends as an image's.
    """

    rows: "Dataset"
    id_column: str
    image_column: str | None


def ray_data() -> Any:
    """The module `ray.data`.

    Raises:
        CaptionerError: Ray is not installed.
    """
    try:
        import ray.data
        import ray.data.checkpoint
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "ray":
            raise
        raise CaptionerError("annotation on a cluster needs Ray: pip install 'captioner[ray]'") from error
    return ray.data


def read(path: str) -> Source:
    """Read a folder of images, with its subfolders, tar shards (a path that ends in `.tar`) or tables (`.parquet`, with
    columns `id` and `bytes`), locally or in object storage (`s3://`, `gs://`). Globs name several files.

    Ids of images in a folder are their paths, ids of those in shards their keys.
    """
    data = ray_data()
    if path.endswith(".parquet"):
        return Source(data.read_parquet(path), "id", "bytes")
    if path.endswith(".tar"):
        return Source(data.read_webdataset(path, decoder=None), "__key__", None)
    suffixes = [suffix.removeprefix(".") for suffix in sorted(IMAGE_EXTENSIONS)]
    rows = data.read_binary_files(path, include_paths=True, file_extensions=suffixes)
    return Source(rows, "path", "bytes")


def annotate(
    source: Source,
    output: str,
    *,
    model: str | None = None,
    workers: int | tuple[int, int] = 1,
    gpus: float = 0,
    cpus: float = 1,
    batch_size: int = 16,
    **options: Any,
) -> None:
    """Caption images into parquet files; call it again with the same `output` to go on after an interruption.

    Args:
        output: a folder that all workers reach. Its files have the id column, `caption`, `confidence`, `alternatives`
            and `tags` (JSON), `width`, `height`, `model`, and for an image that cannot be read `error` and `message`.
        model: as in `Captioner.from_pretrained`; all workers must reach it.
        workers: how many, or the least and the most.
        gpus, cpus: that each worker takes.
        batch_size: images captioned at once.
        options: as in `Captioner.__call__`.
    """
    checkpoint = f"{output.rstrip('/')}.checkpoint"
    source.rows.context.checkpoint_config = ray_data().checkpoint.CheckpointConfig(
        id_column=source.id_column, checkpoint_path=checkpoint, delete_checkpoint_on_success=False
    )
    captions = source.rows.map_batches(
        Annotator,
        fn_constructor_args=(model, source.id_column, source.image_column, batch_size, options),
        batch_size=BATCHES * batch_size,
        concurrency=workers,
        num_gpus=gpus,
        num_cpus=cpus,
    )
    captions.write_parquet(output)


def annotate_path(path: str, output: str, **options: Any) -> None:
    """`annotate` what is at a path, with a worker for each GPU of the cluster, or for each core but one if it has none.

    `RAY_ADDRESS` names the cluster; without it, this machine is one.
    """
    source = read(path)
    import ray

    resources = ray.cluster_resources()
    gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    annotate(source, output, workers=gpus or max(1, cores - 1), gpus=1 if gpus else 0, **options)


class Annotator:
    """A worker: it loads the model once, and captions batch after batch."""

    def __init__(
        self, model: str | None, id_column: str, image_column: str | None, batch_size: int, options: dict[str, Any]
    ) -> None:
        self.captioner = Captioner.from_pretrained(model)
        self.id_column = id_column
        self.image_column = image_column
        self.batch_size = batch_size
        given = dict(options)
        words = (given.pop("prefix", ""), given.pop("banned_words", ()), given.pop("forced_words", ()))
        self.options = self.captioner.options(**given, **self.captioner.word_options(*words))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        ids = list(batch[self.id_column])
        images = zip(ids, self._images(batch), strict=True)
        found = caption_images(self.captioner, images, self.options, batch_size=self.batch_size, num_workers=2)
        columns: dict[str, list[Any]] = {self.id_column: []} | {name: [] for name in COLUMNS}
        for result in found:
            columns[self.id_column].append(result.key)
            for name, value in zip(COLUMNS, self._values(result), strict=True):
                columns[name].append(value)
        return columns

    def _images(self, batch: dict[str, np.ndarray]) -> Iterator[bytes]:
        names = [self.image_column] if self.image_column else [name for name in batch if is_image_name(name)]
        for members in zip(*(batch[name] for name in names), strict=True):
            yield next((bytes(data) for data in members if data is not None), b"")

    def _values(self, result: Any) -> tuple[Any, ...]:
        """The values of `COLUMNS` for an image."""
        if not isinstance(result, Captioned):
            return (None, None, None, None, None, None, self.captioner.name, result.error, result.message)
        caption = result.caption
        return (
            caption.text,
            round(caption.confidence, 4),
            json.dumps(alternatives_of(caption)),
            json.dumps(tags_of(caption)),
            result.width,
            result.height,
            self.captioner.name,
            None,
            None,
        )


COLUMNS = ("caption", "confidence", "alternatives", "tags", "width", "height", "model", "error", "message")


def is_image_name(member: str) -> bool:
    """Does a shard's member hold an image: `jpg`, `rgb.png`?"""
    return f".{member.rpartition('.')[2].lower()}" in IMAGE_EXTENSIONS
