"""What all layouts share: samples, skips, and the checks of captions and labels."""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from PIL import Image

from captioner.data.captions import has_words
from captioner.data.sources.stored_images import ShardMember, StoredImage
from captioner.data.sources.text_files import encoding_problem
from captioner.errors import CaptionerError

MAX_CAPTION_CHARACTERS = 10_000

Report = Callable[[str, str], None]  # (where, reason): raises, or records a skip


class SourceError(CaptionerError):
    """A fault that a field of `SourceConfig` can work around; `remedy` tells users of a recipe how."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Sample:
    """An image with its captions and labels.

    Attributes:
        id: the layout's own id, else the image's name in the source, else the row's number.
        image: an input for `load_image`.
        captions: as written, with white space collapsed; at least one, unless `captioned` is false.
        labels: class names or tags, from `label_column`.
    """

    id: str | int
    image: str | bytes | Image.Image | StoredImage | ShardMember
    captions: tuple[str, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Skip:
    """Something that was left out: where (file and row) and why."""

    where: str
    reason: str


def usable_captions(values: object, where: str, report: Report) -> tuple[str, ...]:
    """Return the usable captions and report the others."""
    captions = values if isinstance(values, list | tuple) else [values]
    if not captions:
        report(where, "the image has no caption")
    good = []
    for caption in captions:
        text = " ".join(caption.split()) if isinstance(caption, str) else ""
        if problem := _caption_problem(caption, text):
            report(where, problem)
        else:
            good.append(text)
    return tuple(good)


def _caption_problem(caption: object, text: str) -> str | None:
    if caption is not None and not isinstance(caption, str):
        return f"the caption is not text: {caption!r:.60}"
    if not text:
        return "the caption is empty"
    if len(text) > MAX_CAPTION_CHARACTERS:
        return f"the caption has {len(text):,} characters, over the limit of {MAX_CAPTION_CHARACTERS:,}"
    if "\0" in text:
        return f"the caption holds a NUL character: {text!r:.60}"
    if problem := encoding_problem(text):
        return f"the caption is {problem}"
    return None if has_words(text) else f"the caption holds no word: {text!r:.60}"


def usable_labels(values: object, where: str, report: Report) -> tuple[str, ...]:
    """Return the distinct labels, and report those that are not text or numbers."""
    labels = values if isinstance(values, list | tuple) else [] if values is None else [values]
    good: dict[str, None] = {}
    for label in labels:
        if isinstance(label, str | int):
            good[str(label).strip()] = None
        else:
            report(where, f"the label is not text: {label!r:.60}")
    good.pop("", None)
    return tuple(good)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a suffix for an error message that suggests the most similar name, or ""."""
    near = difflib.get_close_matches(name, list(names), 1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
