"""FiftyOne's labels.json (FiftyOneImageClassificationDataset): an image's caption is its label, the rest attributes."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from captioner.annotate.annotations import Annotation
from captioner.files import whole_file


def to_fiftyone(annotations: Iterable[Annotation], output: Path) -> None:
    """Images have the names that FiftyOne gives them: paths from the folder of `output`, without the extension."""
    labels: dict[str, Any] = {}
    for annotation in annotations:
        name = annotation.name_from(output.parent)
        labels[os.path.splitext(name)[0]] = {
            "label": annotation.caption,
            "confidence": annotation.confidence,
            "attributes": {"writer": annotation.writer, "verified": annotation.verified, "file_name": name},
        }
    with whole_file(output) as file:
        json.dump({"classes": None, "labels": labels}, file, ensure_ascii=False)
