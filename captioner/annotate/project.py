"""`Project`: the one SQLite file that holds a collection's images, every caption ever made, and what people decided."""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args

import xxhash

from captioner.annotate.project_records import (
    Conflict,
    Decision,
    NewCaption,
    ProjectImage,
    StoredCaption,
    Verdict,
    Writer,
    stored_caption,
)
from captioner.annotate.schema import migrate
from captioner.data.caption_checks import caption_problem, one_line
from captioner.errors import CaptionerError

COUNTED_FLAGS = """flags JOIN images ON images.id = flags.image
    WHERE (flags.caption IN (0, images.suggestion, images.caption) OR flags.name IN ('conflict', 'two texts'))"""
"""The flags of photos and of the captions that count, as the end of an SQL query."""

BUSY_SECONDS = 60.0
"""How long a write waits for another process's, which takes milliseconds."""


class Project:
    """An open project file. It may be used from several threads; several processes may have it open.

    Each method that writes is one transaction: it is in the file when the method returns, and not at all if it raises.

    Attributes:
        path: the file.
        folder: its folder, from which the paths of images start.
    """

    def __init__(self, path: str | Path, *, create: bool = False, durable: bool = True, rehearse: bool = False) -> None:
        """Open a project.

        Args:
            create: make the file if it is not there.
            rehearse: work on a copy in memory; the file is neither made nor changed.
            durable: have each transaction on disk before going on (PRAGMA synchronous=FULL), as decisions of people
                deserve. False may lose the last transactions in a power failure, though never part of one: right for
                captions, which can be made again.

        Raises:
            CaptionerError: there is no such file, it cannot be opened, or is no project.
        """
        self.path = Path(path)
        self.folder = os.path.dirname(os.path.abspath(path))
        self._lock = threading.RLock()
        self._now = 0.0
        if not create and not self.path.is_file():
            raise CaptionerError(f"{path}: no such project; `captioner annotate PHOTOS -o {path}` makes one")
        with self._reporting():
            place = ":memory:" if rehearse else self.path
            self.connection = sqlite3.connect(
                place, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                if rehearse and self.path.is_file():
                    with closing(sqlite3.connect(self.path)) as source:
                        source.backup(self.connection)
                self.connection.row_factory = sqlite3.Row
                self.connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
                migrate(self.connection, str(path))
                self.connection.execute("PRAGMA journal_mode = WAL")
                self.connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            except BaseException:
                self.connection.close()
                raise

    def close(self) -> None:
        with self._lock:
            self.connection.close()

    def __enter__(self) -> "Project":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            reason = str(error)
            if "not a database" in reason:
                reason = "not a caption project (SQLite cannot read it)"
            elif "locked" in reason:
                reason = "another process keeps it locked"
            raise CaptionerError(f"{self.path}: {reason}") from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All statements of the block, or none. A block inside another belongs to the outer one.

        Decisions of one block have the same time, by which they are known as one act.

        Raises:
            CaptionerError: the file cannot be written.
        """
        with self._lock, self._reporting():
            if self.connection.in_transaction:
                yield self.connection
                return
            self.connection.execute("BEGIN IMMEDIATE")
            self._now = max(time.time(), self._now + 1e-6)
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:  # a full disk has rolled back already
                    self.connection.execute("ROLLBACK")
                raise

    def rows(self, query: str, *parameters: Any) -> list[sqlite3.Row]:
        """The rows of a SELECT, over the view `annotations` above all; `parameters` are values, or one mapping."""
        named = parameters[0] if parameters and isinstance(parameters[0], Mapping) else parameters
        with self._lock, self._reporting():
            return self.connection.execute(query, named).fetchall()

    # Images

    def relative(self, path: str) -> str:
        """A path as the project keeps it: from its folder, with /; absolute on another drive."""
        try:
            return os.path.relpath(path, self.folder).replace(os.sep, "/")
        except ValueError:  # Windows
            return os.path.abspath(path).replace(os.sep, "/")

    def absolute(self, path: str) -> str:
        """Where a path of the project is."""
        return os.path.normpath(os.path.join(self.folder, path))

    def image(self, image: int) -> ProjectImage:
        """Raises CaptionerError if there is no image of this id."""
        found = self.images("id = ?", image)
        if not found:
            raise CaptionerError(f"{self.path}: no image {image}")
        return found[0]

    def images(self, condition: str = "NOT missing ORDER BY id", *parameters: Any) -> list[ProjectImage]:
        """The images that an SQL condition over `images` selects; ORDER BY and LIMIT may follow it. Parameters as of
        `rows`."""
        columns = ", ".join(field.name for field in fields(ProjectImage))
        rows = self.rows(f"SELECT {columns} FROM images WHERE {condition}", *parameters)
        return [ProjectImage(*row) for row in rows]

    def note_file(self, image: int, path: Path) -> None:
        """Take an image's file as it is now for the one that was captioned: only its metadata has changed.

        Raises:
            CaptionerError: it cannot be read.
        """
        try:
            status, content = path.stat(), xxhash.xxh3_128_hexdigest(path.read_bytes())
        except OSError as error:
            raise CaptionerError(f"{path}: cannot be read: {error.strerror}") from error
        with self.transaction() as connection:
            values = (status.st_size, status.st_mtime_ns, content, image)
            connection.execute("UPDATE images SET size = ?, mtime = ?, hash = ?, stale = 0 WHERE id = ?", values)

    def assign(self, reviewer: str | None, share: int, shares: int) -> int:
        """Give a reviewer the share `share` of `shares` of all images, counted from 1; return how many those are."""
        if not 1 <= share <= shares:
            raise CaptionerError(f"share {share} of {shares}: give 1 to {shares}")
        with self.transaction() as connection:
            given = connection.execute(
                "UPDATE images SET reviewer = ? WHERE id % ? = ?", (reviewer, shares, share % shares)
            )
            return given.rowcount

    # Captions

    def captions(self, image: int) -> list[StoredCaption]:
        """Every caption that the image ever had, oldest first."""
        rows = self.rows(
            """SELECT captions.*, kind, name, version, options,
                (SELECT json_group_object(name, detail) FROM flags WHERE flags.caption = captions.id) AS flags
            FROM captions JOIN writers ON writers.id = writer WHERE image = ? ORDER BY captions.id""",
            image,
        )
        return [stored_caption(row) for row in rows]

    def writer_id(self, writer: Writer) -> int:
        values = (writer.kind, writer.name, writer.version, writer.options)
        with self.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO writers (kind, name, version, options) VALUES (?, ?, ?, ?)", values
            )
            condition = "kind = ? AND name = ? AND version = ? AND options = ?"
            found = connection.execute(f"SELECT id FROM writers WHERE {condition}", values).fetchone()
        return int(found["id"])

    def add_suggestion(self, image: int, caption: NewCaption, writer: int, run: int | None = None) -> int:
        """Store what a model says of an image; return the caption's id. A person's words stay in force."""
        with self.transaction() as connection:
            new = self._add_caption(image, caption, writer, run)
            connection.execute(
                "UPDATE images SET suggestion = ?, error = NULL, message = NULL WHERE id = ?", (new, image)
            )
            self.settle(image)
        return new

    def copy_suggestion(self, original: int, image: int, run: int | None = None) -> None:
        """Give an image the suggestion of another that shows the same."""
        with self.transaction() as connection:
            ((suggestion,),) = self.rows("SELECT suggestion FROM images WHERE id = ?", original)
            added = connection.execute(
                """INSERT INTO captions
                (image, text, style, writer, run, copied, made, confidence, tokens, words, alternatives, tags)
                SELECT ?, text, style, writer, ?, 1, made, confidence, tokens, words, alternatives, tags
                FROM captions WHERE id = ?""",
                (image, run, suggestion),
            )
            connection.execute(
                "INSERT INTO flags SELECT ?, ?, name, detail FROM flags WHERE image = ? AND caption = ?",
                (image, added.lastrowid, original, suggestion),
            )
            connection.execute("UPDATE images SET suggestion = ? WHERE id = ?", (added.lastrowid, image))
            self.settle(image)

    def add_words(self, image: int, text: str, writer: int, *, counts: bool = True) -> int:
        """Store what a person gave with the photo. If it `counts`, it is in force unless a reviewer has decided."""
        with self.transaction() as connection:
            new = self._add_caption(image, NewCaption(_checked(text)), writer, None)
            if counts:
                connection.execute("UPDATE images SET words = ? WHERE id = ?", (new, image))
                self.settle(image)
        return new

    def flag(self, image: int, name: str, detail: str = "", caption: int = 0) -> None:
        """Mark a photo, or one of its captions, as one to look at."""
        with self.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO flags VALUES (?, ?, ?, ?)", (image, caption, name, detail))

    def unflag(self, image: int, name: str) -> None:
        with self.transaction() as connection:
            connection.execute("DELETE FROM flags WHERE image = ? AND name = ?", (image, name))

    def flags(self, image: int) -> dict[str, str]:
        """Flags of the photo and of the captions that count, with their details."""
        rows = self.rows(f"SELECT name, detail FROM {COUNTED_FLAGS} AND images.id = ?", image)
        return {row["name"]: row["detail"] for row in rows}

    def _add_caption(self, image: int, new: NewCaption, writer: int, run: int | None) -> int:
        values = (new.text, new.style, writer, run, time.time(), new.confidence)
        lists = [json.dumps(value) if value else None for value in (new.tokens, new.words, new.alternatives, new.tags)]
        added = self.connection.execute(
            """INSERT INTO captions
            (image, text, style, writer, run, made, confidence, tokens, words, alternatives, tags)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
            (image, *values, *lists),
        )
        identifier = int(added.lastrowid or 0)
        for name, detail in (new.flags or {}).items():
            self.flag(image, name, detail, identifier)
        return identifier

    # Decisions

    def decide(
        self, image: int, version: int, verdict: Verdict, reviewer: str, text: str | None = None
    ) -> ProjectImage:
        """Accept, edit or reject the caption of an image.

        Args:
            version: of the image as the reviewer saw it.
            text: the reviewer's caption, for "edited". One equal to the caption that was shown accepts that.

        Raises:
            Conflict: the image has another version now; `text` is kept beside.
            CaptionerError: no text, no caption to judge, or one that cannot be used.
        """
        if verdict not in get_args(Verdict) or (verdict == "edited") != (text is not None):
            raise CaptionerError(f"a decision is accepted, rejected, or edited with a text; not {verdict!r}")
        text = None if text is None else _checked(text)
        with self.transaction() as connection:
            current = self.image(image)
            conflict = current.version != version
            shown = current.caption or current.words or current.suggestion
            same = "SELECT 1 FROM captions WHERE id = ? AND text = ?"
            if text is not None and not conflict and connection.execute(same, (shown, text)).fetchone():
                verdict, text = "accepted", None
            if text is not None:
                shown = self._add_caption(image, NewCaption(text), self.writer_id(Writer("person", reviewer)), None)
            if shown is None:
                raise CaptionerError(f"{current.name}: has no caption yet")
            if not conflict:
                self._append(image, version, "decide", verdict, shown, reviewer)
            elif text is not None:
                self.flag(image, "conflict", f"{reviewer} wrote at the same time: {text}", shown)
        if conflict:
            raise Conflict(current, shown if text is not None else None)
        return self.image(image)

    def withdraw(self, image: int, reviewer: str) -> None:
        """Take the decision on an image out of force, whichever it is; `undo` brings it back."""
        with self.transaction():
            self._append(image, self.image(image).version, "decide", None, None, reviewer)

    def undo(self, image: int, version: int, reviewer: str) -> ProjectImage:
        """Take back the last decision that is in force; any number of times, to the beginning. Raises as `decide`."""
        return self._step(image, version, reviewer, "undo")

    def redo(self, image: int, version: int, reviewer: str) -> ProjectImage:
        """Bring back the decision that was undone last, unless another was made since. Raises as `decide`."""
        return self._step(image, version, reviewer, "redo")

    def _step(self, image: int, version: int, reviewer: str, action: Literal["undo", "redo"]) -> ProjectImage:
        with self.transaction():
            current = self.image(image)
            if current.version != version:
                raise Conflict(current, None)
            made, undone = stacks(self.history(image))
            if not (made if action == "undo" else undone):
                raise CaptionerError(f"{current.name}: there is nothing to {action}")
            if action == "redo":
                restored: Decision | None = undone[-1]
            else:
                restored = made[-2] if len(made) > 1 else None
            verdict, caption = (restored.verdict, restored.caption) if restored else (None, None)
            self._append(image, version, action, verdict, caption, reviewer)
        return self.image(image)

    def history(self, image: int) -> list[Decision]:
        """All that reviewers did with an image, oldest first."""
        columns = ", ".join(field.name for field in fields(Decision))
        rows = self.rows(f"SELECT {columns} FROM decisions WHERE image = ? ORDER BY version", image)
        return [Decision(*row) for row in rows]

    def _append(
        self, image: int, version: int, action: str, verdict: Verdict | None, caption: int | None, reviewer: str
    ) -> None:
        self.connection.execute(
            """INSERT INTO decisions (image, version, action, verdict, caption, reviewer, decided)
            VALUES (?, ?, ?, ?, ?, ?, ?)""",
            (image, version + 1, action, verdict, caption, reviewer, self._now),
        )
        self.settle(image)

    def settle(self, image: int) -> None:
        """Work out which caption of an image counts: an accepted or edited one, else what a person gave with the
        photo, else the model's. A rejection lasts until another text is offered."""
        row = self.connection.execute(
            """SELECT coalesce(images.words, suggestion) AS offered, images.caption, images.verdict, images.version,
                decisions.verdict AS decided, decisions.caption AS about, decisions.version AS last,
                offer.made > decisions.decided AND offer.text <> rejected.text AS is_new
            FROM images LEFT JOIN decisions ON decisions.image = images.id
            LEFT JOIN captions AS offer ON offer.id = coalesce(images.words, suggestion)
            LEFT JOIN captions AS rejected ON rejected.id = decisions.caption
            WHERE images.id = ? ORDER BY decisions.version DESC LIMIT 1""",
            (image,),
        ).fetchone()
        verdict, caption = None, row["offered"]
        if row["decided"] in ("accepted", "edited"):
            verdict, caption = row["decided"], row["about"]
        elif row["decided"] == "rejected" and not row["is_new"]:
            verdict, caption = "rejected", None
        changed = (verdict, caption) != (row["verdict"], row["caption"])
        version = max(row["version"] + changed, row["last"] or 0)
        self.connection.execute(
            "UPDATE images SET verdict = ?, caption = ?, version = ? WHERE id = ?", (verdict, caption, version, image)
        )


def stacks(history: Iterable[Decision]) -> tuple[list[Decision], list[Decision]]:
    """The decisions that are in force or under one that is, and those that were undone, the last ones last."""
    made: list[Decision] = []
    undone: list[Decision] = []
    for decision in history:
        if decision.action == "undo":
            undone.append(made.pop())
        elif decision.action == "redo":
            made.append(undone.pop())
        else:
            made.append(decision)
            undone.clear()
    return made, undone


def _checked(text: str) -> str:
    """A person's caption on one line.

    Raises:
        CaptionerError: it is empty, too long or no text.
    """
    if problem := caption_problem(text):
        raise CaptionerError(problem)
    return one_line(text)
