"""What the page asks of a project: which photos in which order, what to show of each, and how far the review is."""

import json
import os
import sqlite3
from collections import Counter
from itertools import pairwise
from typing import Any, Literal
from urllib.parse import quote, unquote_to_bytes

from pydantic import BaseModel, ConfigDict, Field

from captioner.annotate.project import COUNTED_FLAGS, Project
from captioner.review.thumbnails import stamp

NAME = "CASE member WHEN '' THEN path ELSE path || '/' || member END"
STATES = {
    "todo": "verdict IS NULL AND caption_id IS NOT NULL",
    "accepted": "verdict = 'accepted'",
    "edited": "verdict = 'edited'",
    "rejected": "verdict = 'rejected'",
    "uncaptioned": "verdict IS NULL AND caption_id IS NULL",
    "all": "TRUE",
}
SORTS = {
    "confidence": "confidence IS NULL, confidence, id",
    "-confidence": "confidence DESC, id",
    "flags": f"""(SELECT count(*) FROM {COUNTED_FLAGS} AND images.id = annotations.id) DESC,
        confidence IS NULL, confidence""",
    "name": "path, member",
    "newest": "mtime DESC, id",
    "oldest": "mtime, id",
    "decided": "decided DESC NULLS LAST, id",
    "near": "near IS NULL, near, path, member",
}
SHOWN = """coalesce(
    caption_id,
    (SELECT caption FROM decisions WHERE image = annotations.id ORDER BY version DESC LIMIT 1),
    words_id,
    suggestion_id
)"""
"""The caption to show: of a rejected photo, the one that was rejected."""

PAUSE = 120.0
"""Seconds between two decisions beyond which somebody was doing something else."""
RECENT = 60
"""Decisions that the remaining time is estimated from."""
MAX_CHANGES = 2000


class Selection(BaseModel):
    """Which photos, in which order; the page keeps it in its URL.

    `folder` is a folder's key from `folders`; `near` the number of a group of photos that look alike; `mine` leaves out
    other reviewers' shares; `unseen` those that this reviewer has decided.
    """

    model_config = ConfigDict(extra="forbid")
    state: Literal["todo", "accepted", "edited", "rejected", "uncaptioned", "all"] = "todo"
    sort: Literal["confidence", "-confidence", "flags", "name", "newest", "oldest", "decided", "near"] = "confidence"
    flag: str = Field("", max_length=200)
    folder: str = Field("", max_length=20_000)
    text: str = Field("", max_length=1000)
    near: int | None = Field(None, ge=0, lt=2**63)
    mine: bool = False
    unseen: bool = False
    least: float | None = Field(None, ge=0, le=1)


def prepare(project: Project) -> None:
    """Teach a project's connection to search."""
    project.connection.create_function("holds", -1, _holds, deterministic=True)


def _holds(words: str, *texts: bytes | None) -> bool:
    """Are all of these words in one of the texts? Case does not matter. Texts are bytes: names need not be UTF-8."""
    text = "\n".join((text or b"").decode("utf-8", "replace") for text in texts).casefold()
    return all(word in text for word in words.split("\n"))


def is_number(text: str) -> bool:
    """Is this a number that SQLite can hold?"""
    return text.isdecimal() and text.isascii() and len(text) < 19


def condition(selection: Selection, reviewer: str) -> tuple[str, list[object]]:
    """The selection as an SQL condition over `annotations`, and its parameters."""
    text = f"(SELECT CAST(text AS BLOB) FROM captions WHERE id = {SHOWN})"
    words = "\n".join(selection.text.casefold().split())
    folder = unquote_to_bytes(selection.folder) + b"/"
    parts: list[tuple[bool, str, list[object]]] = [
        (True, STATES[selection.state], []),
        (bool(selection.flag), f"id IN (SELECT flags.image FROM {COUNTED_FLAGS} AND name = ?)", [selection.flag]),
        (bool(selection.folder), f"substr(CAST({NAME} AS BLOB), 1, ?) = ?", [len(folder), folder]),
        (bool(words), f"holds(?, CAST({NAME} AS BLOB), CAST(tags AS BLOB), {text})", [words]),
        (selection.near is not None, "near = ?", [selection.near]),
        (selection.least is not None, "confidence >= ?", [selection.least]),
        (selection.mine, "(reviewer IS NULL OR reviewer = ?)", [reviewer]),
        (selection.unseen, "id NOT IN (SELECT image FROM decisions WHERE reviewer = ?)", [reviewer]),
    ]
    chosen = [(condition, values) for is_asked, condition, values in parts if is_asked]
    return " AND ".join(part for part, _ in chosen), [value for _, values in chosen for value in values]


def selected(project: Project, selection: Selection, reviewer: str) -> list[tuple[int, int]]:
    """(id, version) of each photo of a selection, in its order."""
    where, values = condition(selection, reviewer)
    query = f"SELECT id, version FROM annotations WHERE {where} ORDER BY {SORTS[selection.sort]}"
    return [(row["id"], row["version"]) for row in project.rows(query, *values)]


def cards(project: Project, images: list[int]) -> list[dict[str, Any]]:
    """All that the page shows of these photos; those that are gone are left out."""
    wanted = json.dumps(images)
    rows = project.rows(
        f"""SELECT annotations.*, {NAME} AS name, shown.id AS shown_id, shown.text AS text,
            shown.confidence AS sure, shown.words AS shown_words, suggestion.text AS suggestion,
            suggestion.alternatives AS others, suggestion.tags AS seen_tags, kind, writers.name AS author
        FROM annotations
        LEFT JOIN captions AS shown ON shown.id = {SHOWN}
        LEFT JOIN captions AS suggestion ON suggestion.id = suggestion_id
        LEFT JOIN writers ON writers.id = shown.writer
        WHERE annotations.id IN (SELECT value FROM json_each(?))""",
        wanted,
    )
    flags: dict[int, dict[str, str]] = {}
    for row in project.rows(
        f"SELECT flags.image, name, detail FROM {COUNTED_FLAGS} AND flags.image IN (SELECT value FROM json_each(?))",
        wanted,
    ):
        flags.setdefault(row["image"], {})[row["name"]] = row["detail"]
    found = {row["id"]: _card(row, flags.get(row["id"], {})) for row in rows}
    return [found[image] for image in images if image in found]


def _card(row: sqlite3.Row, flags: dict[str, str]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "version": row["version"],
        "name": row["name"],
        "stamp": stamp(row["size"], row["mtime"]),
        "width": row["width"],
        "height": row["height"],
        "verdict": row["verdict"],
        "caption_id": row["shown_id"],
        "text": row["text"],
        "confidence": row["sure"],
        "words": json.loads(row["shown_words"] or "[]"),
        "author": {"kind": row["kind"], "name": row["author"]} if row["kind"] else None,
        "suggestion": row["suggestion"],
        "alternatives": json.loads(row["others"] or "[]"),
        "tags": json.loads(row["seen_tags"] or "[]"),
        "flags": flags,
        "near": row["near"],
        "share": row["reviewer"],
        "decided_by": row["decided_by"],
        "decided": row["decided"],
        "error": row["message"] or row["error"],
    }


def history(project: Project, image: int) -> list[dict[str, Any]]:
    """What people did with a photo, oldest first, with the caption that each act was about."""
    rows = project.rows(
        """SELECT decisions.version, action, verdict, reviewer, decided, text FROM decisions
        LEFT JOIN captions ON captions.id = decisions.caption WHERE decisions.image = ? ORDER BY decisions.version""",
        image,
    )
    return [dict(row) for row in rows]


def folders(project: Project) -> list[dict[str, Any]]:
    """Folders with photos: a key, a name, and how many photos are in them and below."""
    counts: Counter[str] = Counter()
    for (name,) in project.rows(f"SELECT {NAME} FROM annotations"):
        folder = os.path.dirname(name)
        while folder and folder != "/":
            counts[folder] += 1
            folder = os.path.dirname(folder)
    keys = {folder: quote(folder.encode("utf-8", "surrogateescape")) for folder in counts}
    return [{"key": keys[folder], "name": folder, "count": counts[folder]} for folder in sorted(counts)]


def flag_counts(project: Project) -> list[dict[str, Any]]:
    counts = f"SELECT name, count(DISTINCT images.id) AS count FROM {COUNTED_FLAGS} AND NOT missing"
    rows = project.rows(f"{counts} GROUP BY name ORDER BY name")
    return [dict(row) for row in rows]


def progress(project: Project, reviewer: str) -> dict[str, Any]:
    """How many photos have which verdict, in all and in the reviewer's share, and how many seconds are left for the
    rest at the reviewer's pace; None before there is one."""
    rows = project.rows(
        """SELECT coalesce(verdict, CASE WHEN caption IS NULL THEN 'uncaptioned' ELSE 'todo' END) AS state,
            count(*) AS count, sum(reviewer IS NULL OR reviewer = ?) AS mine
        FROM images WHERE NOT missing GROUP BY state""",
        reviewer,
    )
    whole = {row["state"]: row["count"] for row in rows}
    mine = {row["state"]: row["mine"] for row in rows}
    pace = seconds_each(project, reviewer)
    return {"all": whole, "mine": mine, "seconds": None if pace is None else pace * mine.get("todo", 0)}


def seconds_each(project: Project, reviewer: str) -> float | None:
    """Seconds that this reviewer takes for a photo, by the latest decisions; None before there are some."""
    rows = project.rows(
        "SELECT decided FROM decisions WHERE reviewer = ? AND action = 'decide' ORDER BY id DESC LIMIT ?",
        reviewer,
        RECENT,
    )
    times = [row["decided"] for row in rows]
    gaps = [later - earlier for later, earlier in pairwise(times) if later - earlier < PAUSE]
    return sum(gaps) / len(gaps) if len(gaps) >= 3 else None


def changes(project: Project, since: str) -> dict[str, Any]:
    """Photos that got a decision or a caption since a moment that an earlier answer named; None of too many."""
    ((decision, caption),) = project.rows(
        "SELECT (SELECT coalesce(max(id), 0) FROM decisions), (SELECT coalesce(max(id), 0) FROM captions)"
    )
    now = f"{decision}-{caption}"
    if since == now:
        return {"now": now, "images": []}
    before = [int(part) for part in since.split("-") if is_number(part)]
    if len(before) != 2:
        return {"now": now, "images": None}
    rows = project.rows(
        """SELECT image FROM decisions WHERE id > ? UNION SELECT image FROM captions WHERE id > ? LIMIT ?""",
        *before,
        MAX_CHANGES + 1,
    )
    return {"now": now, "images": None if len(rows) > MAX_CHANGES else [row["image"] for row in rows]}
