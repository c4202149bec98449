"""Label Studio's tasks: a model's captions as predictions to start from, people's as annotations.

They are for a labelling configuration with <Image name="image" value="$image"/> and
<TextArea name="caption" toName="image"/>.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from captioner.annotate.annotations import Annotation
from captioner.data.sources.foreign_rows import LOCAL_FILES
from captioner.files import whole_file


def to_label_studio(annotations: Iterable[Annotation], output: Path, images: str = LOCAL_FILES) -> None:
    """Write tasks whose images are at the URL `images` plus the image's path from the folder of `output`. By
    default Label Studio serves them itself, from LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT."""
    with whole_file(output) as file:
        file.write("[")
        for number, annotation in enumerate(annotations):
            file.write(",\n" if number else "\n")
            json.dump(_task(annotation, images + quote(annotation.name_from(output.parent))), file, ensure_ascii=False)
        file.write("\n]\n")


def _task(annotation: Annotation, url: str) -> dict[str, Any]:
    task: dict[str, Any] = {
        "data": {"image": url, "writer": annotation.writer, "verified": annotation.verified},
    }
    result = {
        "id": str(annotation.id),
        "from_name": "caption",
        "to_name": "image",
        "type": "textarea",
        "value": {"text": [annotation.caption]},
    }
    if annotation.verified:
        task["annotations"] = [{"result": [result], "was_cancelled": False, "ground_truth": False}]
    else:
        score = {} if annotation.confidence is None else {"score": annotation.confidence}
        task["predictions"] = [{"model_version": annotation.writer, "result": [result]} | score]
    return task
