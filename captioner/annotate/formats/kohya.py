"""The metadata JSON of kohya's sd-scripts (`in_json`): {image: {"caption": ..., "tags": "a, b"}}."""

import json
from collections.abc import Iterable
from pathlib import Path

from captioner.annotate.annotations import Annotation
from captioner.files import whole_file


def to_kohya(annotations: Iterable[Annotation], output: Path) -> None:
    """Images have their full paths, which sd-scripts takes without an `image_dir`."""
    entries = {}
    for annotation in annotations:
        tags = ", ".join(str(tag["tag"]) for tag in annotation.tags)
        entries[annotation.name] = (
            {"caption": annotation.caption}
            | ({"tags": tags} if tags else {})
            | {"writer": annotation.writer, "verified": annotation.verified}
        )
    with whole_file(output) as file:
        json.dump(entries, file, ensure_ascii=False, indent=1)
