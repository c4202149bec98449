"""COCO's JSON: a data set of images and captions, or the result file that its scorers take."""

import json
from collections.abc import Iterable
from pathlib import Path

from captioner.annotate.annotations import Annotation
from captioner.files import whole_file


def to_coco(annotations: Iterable[Annotation], output: Path) -> None:
    images, captions = [], []
    for annotation in annotations:
        name = annotation.name_from(output.parent)
        images.append(
            {
                "id": annotation.id,
                "file_name": name,
                "width": annotation.width,
                "height": annotation.height,
                "license": 0,
            }
        )
        captions.append({"id": annotation.id, "image_id": annotation.id} | _said(annotation))
    tree = {"info": {"description": "captions"}, "licenses": [], "images": images, "annotations": captions}
    with whole_file(output) as file:
        json.dump(tree, file, ensure_ascii=False)


def to_coco_results(annotations: Iterable[Annotation], output: Path) -> None:
    """`image_id` is the image's number in the project, as `to_coco` writes it."""
    results = [
        {"image_id": annotation.id, "file_name": annotation.name_from(output.parent)} | _said(annotation)
        for annotation in annotations
    ]
    with whole_file(output) as file:
        json.dump(results, file, ensure_ascii=False)


def _said(annotation: Annotation) -> dict[str, object]:
    return {"caption": annotation.caption, "writer": annotation.writer, "verified": annotation.verified}
