"""Lists captions that break accessibility practice: `captioner lint`."""

import os
import re
import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from captioner.annotate.alt_text import MAX_CHARACTERS, STATES_THE_OBVIOUS
from captioner.annotate.annotations import annotations
from captioner.annotate.project import Project
from captioner.data.images import IMAGE_EXTENSIONS

_CAMERA_NAME = re.compile(r"(img|dsc|dscn|dcim|pxl|screenshot|photo|image|scan)[ _-]?\d[\w ._-]*", re.IGNORECASE)
_PLACEHOLDER = re.compile(
    r"(an? )?(alt( text)?|caption|image|photo(graph)?|picture|untitled|todo|n/?a|none)", re.IGNORECASE
)
_END = (".", "!", "?", "…", "。", "！", "？")


class Problem(NamedTuple):
    """What is wrong with an image's caption: a rule's name, and the particulars."""

    image: str
    rule: str
    detail: str


def lint(project: Project, max_characters: int = MAX_CHARACTERS) -> Iterator[Problem]:
    """Yield every problem of the captions that count.

    Rules: too-long, file-name, placeholder, states-the-obvious ("a picture of"), capitals, no-sentence (alternative
    texts only), no-caption, same-text (different photos with one caption), look-alikes (photos that look alike with
    different captions).
    """
    styles = {
        row["id"]: row["style"] for row in project.rows("SELECT id, style FROM annotations WHERE style <> 'caption'")
    }
    for annotation in annotations(project):
        name = annotation.place
        for rule, detail in _of_text(annotation.caption, name, styles.get(annotation.id, "caption"), max_characters):
            yield Problem(name, rule, detail)
    for row in project.rows("SELECT path, member, verdict, message FROM annotations WHERE caption IS NULL ORDER BY id"):
        yield Problem(_name(row), "no-caption", row["message"] or row["verdict"] or "not captioned yet")
    yield from _same_text(project)
    yield from _look_alikes(project)


def _of_text(text: str, image: str, style: str, max_characters: int) -> Iterator[tuple[str, str]]:
    bare = text.strip(" .")
    stem, extension = os.path.splitext(os.path.basename(image))
    if len(text) > max_characters:
        yield "too-long", f"{len(text)} characters; screen readers cut after about {max_characters}"
    is_file = os.path.splitext(bare)[1].lower() in IMAGE_EXTENSIONS
    if is_file or bare.lower() in (stem.lower(), (stem + extension).lower()) or _CAMERA_NAME.fullmatch(bare):
        yield "file-name", f"{text!r} is a file's name"
    if _PLACEHOLDER.fullmatch(bare):
        yield "placeholder", f"{text!r} says nothing of the picture"
    if found := STATES_THE_OBVIOUS.match(text):
        yield "states-the-obvious", f"starts with {found[0].strip()!r}; a screen reader says that it is an image"
    if len(text) > 10 and text.isupper():
        yield "capitals", "some screen readers spell capitals letter by letter"
    if style == "alt" and not (text[:1] == text[:1].upper() and text.endswith(_END)):
        yield "no-sentence", "an alternative text starts with a capital and ends with a full stop"


def _same_text(project: Project) -> Iterator[Problem]:
    for group in project.rows(
        """SELECT caption, count(DISTINCT coalesce(near, -id)) AS photos FROM annotations
        WHERE caption IS NOT NULL GROUP BY caption HAVING count(DISTINCT hash) > 1 AND photos > 1 ORDER BY min(id)"""
    ):
        rows = project.rows("SELECT path, member FROM annotations WHERE caption = ? ORDER BY id", group["caption"])
        for row in rows:
            yield Problem(_name(row), "same-text", f"{len(rows)} photos have the text {group['caption']!r:.60}")


def _look_alikes(project: Project) -> Iterator[Problem]:
    for row in project.rows(
        """SELECT path, member, near, caption FROM annotations WHERE near IN (
            SELECT near FROM annotations WHERE near IS NOT NULL AND caption IS NOT NULL
            GROUP BY near HAVING count(DISTINCT caption) > 1) ORDER BY near, id"""
    ):
        yield Problem(_name(row), "look-alikes", f"group {row['near']}: {row['caption'] or ''!r:.60}")


def _name(row: sqlite3.Row) -> str:
    return f"{row['path']}/{row['member']}" if row["member"] else str(row["path"])
