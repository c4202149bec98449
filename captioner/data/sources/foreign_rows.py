"""Rows in the columns of other programs: those of jsonl files, and of JSON files that are lists or tables of images."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from captioner.config import SourceConfig
from captioner.data.sources.rows import Row

LOCAL_FILES = "/data/local-files/?d="
"""How Label Studio's URLs of files on its own machine start."""


def our_columns(row: dict[str, Any], config: SourceConfig) -> dict[str, Any]:
    """Give a row of a jsonl file our columns, if it is in one of these layouts and lacks them:

    Localized Narratives (Pont-Tuset et al. 2020): `image_id`, whose image is IMAGE_ID.jpg, and `caption`
    Roboflow's multimodal jsonl: `image`, `prefix` and `suffix`, which is the caption
    `datasets`' imagefolder for image generators: `file_name` and `text`
    """
    image, caption = config.image_column, config.caption_column
    if image not in row and "file_name" not in row and {"image_id", "dataset_id"} <= row.keys():
        row = row | {image: f"{row['image_id']}.jpg"}
    if caption not in row and {"prefix", "suffix"} <= row.keys():
        row = row | {caption: row["suffix"]}
    if caption not in row and {"file_name", "text"} <= row.keys():
        row = row | {caption: row["text"]}
    return row


def json_rows(tree: Any, path: str, config: SourceConfig) -> Iterator[Row] | None:
    """Yield the rows of a JSON file in one of these layouts; None for any other:

    Label Studio's tasks      [{"data": {"image": URL}, "annotations": [...], "predictions": [...]}]
    Visual Genome's regions   [{"id": 1, "regions": [{"phrase": ...}]}]; the image is ID.jpg
    COCO results, with names  [{"file_name": ..., "caption": ...}]
    FiftyOne's labels         {"labels": {NAME: {"label": ..., "attributes": {"file_name": ...}}}}
    kohya's metadata          {IMAGE: {"caption": ..., "tags": "a, b"}}
    """
    if isinstance(tree, list) and tree and all(isinstance(entry, dict) for entry in tree):
        for field, read in (("data", _label_studio), ("regions", _visual_genome), ("file_name", _named)):
            if field in tree[0]:
                return _rows((read(entry) for entry in tree), path, config)
    if isinstance(tree, dict) and isinstance(tree.get("labels"), dict):
        return _rows((_fiftyone(name, label) for name, label in tree["labels"].items()), path, config)
    entries = list(tree.values()) if isinstance(tree, dict) else []
    if entries and all(isinstance(entry, dict) and entry.keys() & {"caption", "tags"} for entry in entries):
        return _rows((_kohya(name, entry) for name, entry in tree.items()), path, config)
    return None


Found = tuple[Any, Any, Any]
"""The image's name, a caption or captions, labels: as they are in the file, to be checked with all others."""


def _rows(found: Iterator[Found], path: str, config: SourceConfig) -> Iterator[Row]:
    for number, (image, captions, labels) in enumerate(found):
        row = {config.image_column: image, config.caption_column: captions}
        yield f"{path}: entry {number}", row | ({config.label_column: labels} if config.label_column else {})


def _named(entry: dict[str, Any]) -> Found:
    return entry.get("file_name"), entry.get("caption"), entry.get("labels")


def _kohya(name: str, entry: dict[str, Any]) -> Found:
    tags = [tag.strip() for tag in str(entry.get("tags") or "").split(",") if tag.strip()]
    return name, entry.get("caption", entry.get("tags")), tags


def _fiftyone(name: str, label: Any) -> Found:
    fields = label if isinstance(label, dict) else {"label": label}
    attributes = fields.get("attributes")
    attributes = attributes if isinstance(attributes, dict) else {}
    return attributes.get("file_name", name), fields.get("label"), None


def _visual_genome(entry: dict[str, Any]) -> Found:
    regions = entry.get("regions")
    phrases = [region.get("phrase") for region in regions if isinstance(region, dict)] if regions else []
    return f"{entry.get('id', entry.get('image_id'))}.jpg", phrases, None


def _label_studio(entry: dict[str, Any]) -> Found:
    data = entry["data"] if isinstance(entry["data"], dict) else {}
    url = data.get("image")
    if isinstance(url, str) and url.startswith(LOCAL_FILES):
        url = unquote(url.removeprefix(LOCAL_FILES))
    said = _texts(entry.get("annotations")) or _texts(entry.get("predictions"))
    return url, said, None


def _texts(results: Any) -> list[Any]:
    """The texts of the last annotation or prediction that has any."""
    for result in reversed(results if isinstance(results, list) else []):
        regions = result.get("result") if isinstance(result, dict) and not result.get("was_cancelled") else None
        texts: list[Any] = []
        for region in regions if isinstance(regions, list) else []:
            value = region.get("value") if isinstance(region, dict) and region.get("type") == "textarea" else None
            text = value.get("text") if isinstance(value, dict) else None
            texts += text if isinstance(text, list) else [text] if text else []
        if texts:
            return texts
    return []
