"""Write a project's captions in the format of another program: `captioner write`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from captioner.annotate.annotations import Annotation, Report, annotations
from captioner.annotate.formats.coco import to_coco, to_coco_results
from captioner.annotate.formats.fiftyone import to_fiftyone
from captioner.annotate.formats.hf_dataset import push_dataset, to_dataset
from captioner.annotate.formats.imagefolder import to_imagefolder
from captioner.annotate.formats.kohya import to_kohya
from captioner.annotate.formats.label_studio import LOCAL_FILES, to_label_studio
from captioner.annotate.formats.roboflow import to_roboflow
from captioner.annotate.formats.sidecars import SidecarOptions, to_sidecars
from captioner.annotate.formats.tables import to_csv, to_jsonl, to_parquet
from captioner.annotate.formats.tar_shards import SHARD_BYTES, to_webdataset
from captioner.annotate.formats.xmp import to_embedded, to_xmp
from captioner.annotate.project import Project
from captioner.errors import CaptionerError

FILES: dict[str, Callable[[Iterable[Annotation], Path], None]] = {
    "jsonl": to_jsonl,
    "csv": to_csv,
    "parquet": to_parquet,
    "coco": to_coco,
    "coco-results": to_coco_results,
    "kohya": to_kohya,
    "fiftyone": to_fiftyone,
    "roboflow": to_roboflow,
}
FOLDERS: dict[str, Callable[[Iterable[Annotation], Path, Report], None]] = {
    "imagefolder": to_imagefolder,
    "hf": to_dataset,
}
FORMATS = (*FILES, "label-studio", *FOLDERS, "webdataset", "txt", "caption", "xmp", "embedded")


@dataclass(frozen=True)
class WriteOptions:
    """Options of single formats; `captioner write --help` describes them."""

    verified: bool = False
    before: str = ""
    after: str = ""
    tags: bool = False
    overwrite_human: bool = False
    shard_bytes: int = SHARD_BYTES
    image_url: str = LOCAL_FILES
    push: str | None = None


def write_project(project: Project, name: str, output: Path | None, report: Report, options: WriteOptions) -> int:
    """Write every image's caption in the format `name`.

    Args:
        output: the file or the new folder; None only for formats that go beside the images, and for pushing.
        report: is told of each image that is left out, and why.

    Returns:
        How many captions there were.

    Raises:
        CaptionerError: it cannot be written, or there is nothing to write.
    """
    count = 0

    def counted() -> Iterable[Annotation]:
        nonlocal count
        for annotation in annotations(project, verified=options.verified):
            count += 1
            yield annotation

    if next(annotations(project, verified=options.verified), None) is None:
        raise CaptionerError(f"{project.path}: has no {'verified ' if options.verified else ''}captions to write")
    if name in ("txt", "caption"):
        sidecar = SidecarOptions(f".{name}", options.before, options.after, options.tags, options.overwrite_human)
        to_sidecars(counted(), output, report, sidecar)
    elif name == "xmp":
        to_xmp(counted(), output, report, options.overwrite_human)
    elif name == "embedded":
        to_embedded(counted(), output, report, options.overwrite_human, project)
    elif name == "hf" and options.push:
        push_dataset(counted(), options.push, report)
    elif output is None:
        raise CaptionerError(f"--format {name} needs an output: -o OUT")
    elif name == "label-studio":
        to_label_studio(counted(), output, options.image_url)
    elif name == "webdataset":
        to_webdataset(counted(), output, report, options.shard_bytes)
    elif name in FOLDERS:
        FOLDERS[name](counted(), output, report)
    else:
        FILES[name](counted(), output)
    return count
