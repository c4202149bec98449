"""Files of captions -> captions by image id."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from captioner.errors import CaptionerError
from captioner.metrics.score import refuse_images

Captions = dict[str, list[str]]


def read_captions(path: Path, split: str | None = None) -> Captions:
    """Read the captions of each image, in the file's order of images. Ids are strings: 42 and "42" are one image.

    Layouts, told apart by what they contain:
    - COCO results: `[{"image_id": 42, "caption": "..."}, ...]`;
    - COCO captions: `{"annotations": [{"image_id": 42, "caption": "..."}, ...], ...}`;
    - Karpathy: `{"images": [{"filename": "...", "split": "test", "sentences": [{"raw": "..."}, ...]}, ...]}`; the id is
      `cocoid` where there is one, else the file name;
    - JSON lines: `{"image_id" or "image": ..., "caption": "..." or "captions": ["...", ...]}` a line.

    `split` keeps one split of a Karpathy file. Raises CaptionerError with the file and the place for anything else.
    """
    captions: Captions = {}
    rows = _rows(path, split)
    for where, row in rows:
        image, texts = _entry(where, row)
        captions.setdefault(image, []).extend(texts)
    if not captions:
        raise CaptionerError(f"{path}: no captions" + (f" in split {split!r}" if split else ""))
    return captions


def read_results(path: Path, split: str | None = None) -> dict[str, str]:
    """Read one generated caption per image; an image with none, or with several, is an error."""
    captions = read_captions(path, split)
    try:
        refuse_images("with more than one caption", (image for image, texts in captions.items() if len(texts) > 1))
        refuse_images("without a caption", (image for image, texts in captions.items() if not texts))
    except CaptionerError as error:
        raise CaptionerError(f"{path}: {error}") from None
    return {image: texts[0] for image, texts in captions.items()}


def by_file_name(hypotheses: dict[str, str], references: Captions) -> tuple[dict[str, str], Captions]:
    """Where no image id is common to both, but file names are, name images by file name: `photos/1.jpg` is `1.jpg`."""
    if hypotheses.keys() & references.keys():
        return hypotheses, references
    short = {PurePosixPath(image).name: text for image, text in hypotheses.items()}
    short_references = {PurePosixPath(image).name: texts for image, texts in references.items()}
    unambiguous = len(short) == len(hypotheses) and len(short_references) == len(references)
    return (
        (short, short_references)
        if unambiguous and short.keys() & short_references.keys()
        else (hypotheses, references)
    )


def _rows(path: Path, split: str | None) -> Iterator[tuple[str, Any]]:
    """The file's entries, each with the place to name in an error."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise CaptionerError(f"{path}: {reason}") from error
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        yield from _json_lines(path, text)
        return
    except RecursionError as error:
        raise CaptionerError(f"{path}: nested too deeply") from error
    if isinstance(content, list):
        yield from ((f"{path}: entry {i}", row) for i, row in enumerate(content))
    elif isinstance(content, dict) and isinstance(content.get("annotations"), list):
        yield from ((f"{path}: annotation {i}", row) for i, row in enumerate(content["annotations"]))
    elif isinstance(content, dict) and isinstance(content.get("images"), list):
        yield from _karpathy(path, content["images"], split)
    elif isinstance(content, dict) and ("image" in content or "image_id" in content):
        yield f"{path}:1", content
    else:
        raise CaptionerError(f"{path}: neither COCO results or captions, nor Karpathy's layout, nor JSON lines")


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise CaptionerError(f"{path}:{number}: not JSON: {str(error)[:100]}") from error


def _karpathy(path: Path, images: list[Any], split: str | None) -> Iterator[tuple[str, Any]]:
    splits: set[str] = set()
    for i, image in enumerate(images):
        where = f"{path}: image {i}"
        if not isinstance(image, dict) or not isinstance(image.get("sentences"), list):
            raise CaptionerError(f"{where}: no list of sentences")
        splits.add(str(image.get("split")))
        if split is None or image.get("split") == split:
            texts = [sentence.get("raw") if isinstance(sentence, dict) else sentence for sentence in image["sentences"]]
            yield where, {"image_id": image.get("cocoid", image.get("filename")), "captions": texts}
    if split is not None and split not in splits:
        raise CaptionerError(f"{path}: no split {split!r}; there are {', '.join(sorted(splits))}")


def _entry(where: str, row: Any) -> tuple[str, Iterable[str]]:
    if not isinstance(row, dict):
        raise CaptionerError(f"{where}: not an object")
    image = row.get("image_id", row.get("image"))
    if not isinstance(image, str | int) or isinstance(image, bool):
        raise CaptionerError(f"{where}: no image_id or image")
    texts = row["captions"] if "captions" in row else [row.get("caption")]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise CaptionerError(f"{where}: no caption that is text, for image {image}")
    return str(image), texts
