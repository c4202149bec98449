"""Roboflow's multimodal jsonl: `image`, `prefix` (the question) and `suffix` (the answer)."""

from collections.abc import Iterable
from pathlib import Path

from captioner.annotate.annotations import Annotation
from captioner.annotate.formats.records import json_line
from captioner.files import whole_file

QUESTION = "Describe the image."


def to_roboflow(annotations: Iterable[Annotation], output: Path) -> None:
    with whole_file(output) as file:
        for annotation in annotations:
            record = {"image": annotation.name_from(output.parent), "prefix": QUESTION, "suffix": annotation.caption}
            file.write(json_line(record | {"writer": annotation.writer, "verified": annotation.verified}))
