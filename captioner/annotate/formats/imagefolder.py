"""The imagefolder of `datasets`: images, and metadata.jsonl with `file_name` and `text`."""

from collections.abc import Iterable
from pathlib import Path

from captioner.annotate.annotations import Annotation, Report, with_bytes
from captioner.annotate.formats.records import json_line
from captioner.files import new_folder, open_text


def to_imagefolder(annotations: Iterable[Annotation], output: Path, report: Report) -> None:
    """Copy the images into a new folder, under the names that they have in the project."""
    with new_folder(output) as folder, open_text(folder / "metadata.jsonl", "x") as metadata:
        for annotation, data in with_bytes(annotations, report):
            copy = folder / annotation.place
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(data)
            record = annotation.record(output)
            del record["image"], record["caption"]
            metadata.write(json_line({"file_name": annotation.place, "text": annotation.caption} | record))
