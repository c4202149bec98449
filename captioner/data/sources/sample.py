"""What all layouts share: samples, skips, and the checks of captions and labels."""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from PIL import Image

from captioner.data.archives import ArchiveMember
from captioner.data.caption_checks import caption_problem, one_line
from captioner.data.sources.stored_images import ShardMember, StoredImage
from captioner.errors import CaptionerError

Report = Callable[[str, str], None]  # (where, reason): raises, or records a skip


class SourceError(CaptionerError):
    """A fault that a field of `SourceConfig` can work around; `remedy` tells users of a recipe how."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


MAX_WEIGHT = 1000


@dataclass(frozen=True, slots=True)
class Sample:
    """An image with its captions and labels.

    Attributes:
        id: the layout's own id, else the image's name in the source, else the row's number.
        image: an input for `load_image`.
        captions: as written, with white space collapsed; at least one, unless `captioned` is false.
        labels: class names or tags, from `label_column`.
        weight: what its captions count in the captioning loss beside others, from a column `sample_weight`.
    """

    id: str | int
    image: str | bytes | Image.Image | StoredImage | ShardMember | ArchiveMember
    captions: tuple[str, ...]
    labels: tuple[str, ...] = ()
    weight: float = 1.0


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
        if problem := caption_problem(caption):
            report(where, problem)
        else:
            good.append(one_line(caption))
    return tuple(good)


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


def usable_weight(value: object, where: str, report: Report) -> float:
    """Return a row's weight; 1 if it has none, or reports one that cannot be used."""
    if value is None or value == "":
        return 1.0
    try:
        weight = float(value) if isinstance(value, int | float | str) else 0.0
    except ValueError:
        weight = 0.0
    if not 0 < weight <= MAX_WEIGHT:  # NaN too
        report(where, f"sample_weight is not a number above 0 and up to {MAX_WEIGHT}: {value!r:.60}")
        return 1.0
    return weight


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a suffix for an error message that suggests the most similar name, or ""."""
    near = difflib.get_close_matches(name, list(names), 1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
