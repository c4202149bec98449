"""Prepare the data that configs/everyday*.yaml use besides captioned photos.

    python examples/everyday_data.py words OUT/words.txt TEXT.gz...
    python examples/everyday_data.py tags OUT/tagged.jsonl objects.json
    python examples/everyday_data.py pseudo OUT/pseudo.jsonl OUT/tagged.jsonl captions.jsonl

`words` joins files of captions without photos and drops duplicates. `tags` turns {photo: names of its objects} into a
table. `pseudo` takes the captions that a model gave the tagged photos (`infer.py photos/ -o captions.jsonl`) and keeps
those that name an object of their photo.
"""

import gzip
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

OTHER_NAMES = {
    "person": "man woman boy girl child kid baby player people men women children guy lady skier surfer rider",
    "bicycle": "bike bikes",
    "motorcycle": "motorbike",
    "airplane": "plane jet",
    "couch": "sofa",
    "tv": "television",
    "cell phone": "phone",
    "laptop": "computer",
    "dining table": "table",
    "potted plant": "plant",
    "sports ball": "ball",
    "baseball bat": "bat",
    "tennis racket": "racket racquet",
    "donut": "doughnut donuts",
    "sheep": "lamb lambs",
    "cow": "cattle bull",
    "bear": "bears",
    "teddy bear": "teddy stuffed",
    "traffic light": "light",
    "wine glass": "glass wine",
}
"""Other words that captions use for the objects of COCO's 80 classes."""

app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def words(output: Path, texts: list[Path]) -> None:
    """Join files of captions, each caption once."""
    lines = (line.strip() for text in texts for line in gzip.decompress(text.read_bytes()).decode().split("\n"))
    _write(output, dict.fromkeys(line for line in lines if line))


@app.command()
def tags(output: Path, objects: Path) -> None:
    """Write {photo: names} as a table of photos and objects."""
    names: dict[str, list[str]] = json.loads(objects.read_text(encoding="utf-8"))
    _write(output, (json.dumps({"image": photo, "objects": of_photo}) for photo, of_photo in names.items()))


@app.command()
def pseudo(
    output: Path,
    tagged: Path,
    captions: Path,
    min_confidence: Annotated[float, typer.Option(help="Leave out captions below this confidence.")] = 0.0,
) -> None:
    """Keep the captions that name an object of their photo."""
    objects = {row["image"]: row["objects"] for row in _rows(tagged)}
    kept = [
        {"image": Path(row["image"]).name, "caption": row["caption"]}
        for row in _rows(captions)
        if row["confidence"] >= min_confidence and names_one(row["caption"], objects[Path(row["image"]).name])
    ]
    _write(output, map(json.dumps, kept))
    print(f"{len(kept)} of {len(objects)} photos have a caption that names one of their objects")


def names_one(caption: str, objects: Iterable[str]) -> bool:
    """Whether a caption uses the name of an object, in the singular or plural, or another word for it."""
    found = [name for of_object in objects for name in (of_object, *OTHER_NAMES.get(of_object, "").split())]
    return any(re.search(rf"\b{re.escape(name)}(s|es)?\b", caption) for name in found)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    app()
