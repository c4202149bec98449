"""The same three drawn photos in every layout of a data set, and a check of each mistake in one."""

import csv
import io
import json
import pickle
from pathlib import Path
from typing import Any

from loading import load, refusal, skipped
from PIL import Image

from captioner.data.images import load_image
from captioner.data.sources import Sample

CAPTIONS = {
    "a.jpg": ("a red square", "something red"),
    "b.jpg": ("a blue square",),
    "c.jpg": ("绿色的方块", "مربع أخضر"),
}
COLOURS = {"a.jpg": (255, 0, 0), "b.jpg": (0, 0, 255), "c.jpg": (0, 255, 0)}
ROWS = [(name, caption) for name, captions in CAPTIONS.items() for caption in captions]


def photo(name: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), COLOURS[name]).save(buffer, "PNG")
    return buffer.getvalue()


def write_karpathy(folder: Path, images: list[dict[str, Any]] | None = None) -> Path:
    if images is None:
        images = [
            {
                "filename": name,
                "filepath": "images",
                "cocoid": i,
                "split": split,
                "sentences": [{"raw": c} for c in said],
            }
            for i, ((name, said), split) in enumerate(zip(CAPTIONS.items(), ["train", "val", "restval"], strict=True))
        ]
    path = folder / "dataset_shapes.json"
    path.write_text(json.dumps({"images": images, "dataset": "shapes"}))
    return path


def write_coco(folder: Path, images: list[Any] | None = None, annotations: list[Any] | None = None) -> Path:
    names = list(CAPTIONS)
    tree = {
        "images": images or [{"id": 10 + i, "file_name": name} for i, name in enumerate(names)],
        "annotations": annotations
        or [{"id": k, "image_id": 10 + names.index(name), "caption": c} for k, (name, c) in enumerate(ROWS)],
    }
    path = folder / "captions_val2017.json"
    path.write_text(json.dumps(tree))
    return path


def write_csv(
    path: Path, rows: list[Any], delimiter: str = ",", header: tuple[str, ...] = ("image", "caption")
) -> Path:
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def table(**columns: list[Any]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict(columns)


def stored(names: list[str]) -> Any:
    """An image column that holds the files themselves, all by the same name, as some tables on the Hub do."""
    from datasets import Image as ImageFeature

    cells = [{"bytes": photo(name), "path": "image.png"} for name in names]
    return table(image=cells, caption=[caption for _, caption in ROWS]).cast_column("image", ImageFeature())


def check(samples: list[Sample], ids: list[str | int] | None = None) -> None:
    """The samples are the three photos, with their captions."""
    assert [sample.captions for sample in samples] == list(CAPTIONS.values())
    assert [sample.id for sample in samples] == (ids or list(CAPTIONS))
    assert [load_image(sample.image).getpixel((3, 3)) for sample in samples] == list(COLOURS.values())
    assert pickle.loads(pickle.dumps(samples)) == samples


def check_images(path: Path | str, ids: list[str | int], **options: Any) -> None:
    """With `captioned: false`, the source has the first photos, without captions."""
    samples = load(path, captioned=False, **options)
    assert [(s.id, s.captions) for s in samples] == [(i, ()) for i in ids]
    assert [load_image(s.image).getpixel((3, 3)) for s in samples] == list(COLOURS.values())[: len(ids)]


def problem(folder: Path, path: Path, where: str, reason: str, kept: int, **options: Any) -> None:
    """The mistake raises by default; else it is listed, and `kept` samples remain."""
    message = refusal(path, **options)
    assert where in message and reason in message, message
    samples, skips = skipped(path, **options)
    assert [(skip.where, reason in skip.reason) for skip in skips] == [(where, True)], skips
    assert len(samples) == kept
