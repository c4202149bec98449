"""A run over a project: caption what is new or has changed, and nothing else.

scan.py has entered the images by now. Here those that need it are read, in threads: the hash of a file tells whether it
is a renamed photo, a copy of another, or the same as before under a new time. What is left goes to the model. Each
result is a transaction, so that a run that is stopped at any instant goes on from there.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

import xxhash

from captioner.annotate.alt_text import SHAPES
from captioner.annotate.formats.records import alternatives_of, tags_of
from captioner.annotate.given_words import embedded_words, merge_words
from captioner.annotate.pipeline import Captioned, Failure, caption_images, map_ahead
from captioner.annotate.project import Project
from captioner.annotate.project_records import NewCaption, ProjectImage, Writer
from captioner.annotate.scan import CHUNK, encoded
from captioner.annotate.sheets import Sheets
from captioner.data.archives import ArchiveMember
from captioner.data.images import MAX_BYTES, ImageError
from captioner.decoding.options import GenerationOptions
from captioner.distributed import Process
from captioner.infer.caption import Caption
from captioner.infer.captioner import Captioner

BY_PERSON = "(words IS NOT NULL OR coalesce(verdict, '') IN ('accepted', 'edited'))"
_OUTDATED = "coalesce((SELECT run FROM captions WHERE id = suggestion), 0) < :since"
_WANTS_CAPTION = f"(NOT {BY_PERSON} AND iif(error IS NULL, suggestion IS NULL OR {_OUTDATED}, :retry))"
_TODO = f"seen = :run AND NOT missing AND (stale OR (hash IS NULL AND error IS NULL) OR {_WANTS_CAPTION})"


@dataclass(frozen=True)
class Run:
    """What a run is to do.

    Attributes:
        id: its number in `runs`; the images that it was given have it in `seen`.
        since: suggestions of runs before this one are made again; 0: those of none.
        retry: try the images again that could not be read before.
    """

    id: int
    since: int = 0
    retry: bool = False

    @property
    def parameters(self) -> dict[str, int]:
        return {"run": self.id, "since": self.since, "retry": self.retry}


def start_run(project: Project) -> int:
    """Begin a run, and give its number."""
    with project.transaction() as connection:
        return int(connection.execute("INSERT INTO runs (started, since) VALUES (?, 0)", (time.time(),)).lastrowid or 0)


def say_who(project: Project, run: int, writer: Writer, overwrite: bool) -> int:
    """Enter who captions in a run.

    Returns:
        With `overwrite`, the run whose predecessors' suggestions are made again: this one, or where this one goes on
        with an overwriting that was stopped, the run that began it. Else 0.
    """
    identifier = project.writer_id(writer)
    since = 0
    if overwrite:
        before = project.rows("SELECT * FROM runs WHERE since > 0 AND id < ? ORDER BY id DESC LIMIT 1", run)
        goes_on = before and before[0]["finished"] is None and before[0]["writer"] == identifier
        since = before[0]["since"] if goes_on else run
    with project.transaction() as connection:
        connection.execute("UPDATE runs SET writer = ?, since = ? WHERE id = ?", (identifier, since, run))
    return since


def finish_run(project: Project, run: int) -> None:
    with project.transaction() as connection:
        connection.execute("UPDATE runs SET finished = ? WHERE id = ?", (time.time(), run))


def release_words(project: Project, run: int) -> int:
    """Let the model's captions take the place of people's, among the images of a run. What people wrote is kept, and an
    undone decision can be brought back.

    Returns:
        How many images this concerns.
    """
    images = project.images(f"seen = ? AND NOT missing AND {BY_PERSON}", run)
    with project.transaction() as connection:
        for image in images:
            connection.execute("UPDATE images SET words = NULL WHERE id = ?", (image.id,))
            if image.verdict:
                project.withdraw(image.id, "--overwrite-human")
            project.settle(image.id)
    return len(images)


def count_todo(project: Project, run: Run) -> int:
    return int(project.rows(f"SELECT count(*) FROM images WHERE {_TODO}", run.parameters)[0][0])


def open_image(project: Project, image: ProjectImage) -> str | ArchiveMember:
    """An image of a project as `load_image` takes it."""
    path = project.absolute(image.path)
    return ArchiveMember(path, image.member, image.size) if image.member else path


def caption_todo(
    project: Project,
    run: Run,
    captioner: Captioner,
    options: GenerationOptions,
    process: Process,
    *,
    batch_size: int,
    num_workers: int,
    style: str,
    advance: Callable[[], object],
    min_confidence: float = 0.0,
    sheets: Sheets | None = None,
) -> None:
    """Caption those images of a run that need it and are this process's.

    Args:
        style: "caption", or "alt" for alternative texts.
        advance: is called for each image that is done.
    """
    work = _Work(project, run, advance)
    todo = map_ahead(work.look, work.todo(process), num_workers, ahead=2 * num_workers)
    images = ((look.image, open_image(project, look.image)) for look in todo if work.needs_model(look))
    ((writer,),) = project.rows("SELECT writer FROM runs WHERE id = ?", run.id)
    results = caption_images(
        captioner,
        images,
        options,
        batch_size=batch_size,
        num_workers=num_workers,
        min_confidence=min_confidence,
        sheets=sheets,
    )
    for result in results:
        if isinstance(result, Failure):
            _store_failure(project, result)
        else:
            _store_caption(project, result, writer, run.id, style)
        advance()


class _Look(NamedTuple):
    """What reading an image's file has shown; `hash` is None where it cannot be read."""

    image: ProjectImage
    hash: str | None
    words: str | None


@dataclass
class _Work:
    project: Project
    run: Run
    advance: Callable[[], object]

    def todo(self, process: Process) -> Iterator[ProjectImage]:
        """The images that may need a caption, in the order of their ids; few are in memory at a time."""
        condition = f"{_TODO} AND id > :last AND id % :count = :rank ORDER BY id LIMIT {CHUNK}"
        where = self.run.parameters | {"count": process.count, "rank": process.rank, "last": 0}
        while images := self.project.images(condition, where):
            yield from images
            where["last"] = images[-1].id

    def look(self, image: ProjectImage) -> _Look:
        """Read an image's file for its hash and the words in it, unless that was done before. Runs in threads."""
        if image.hash and not image.stale:
            return _Look(image, image.hash, None)
        source = open_image(self.project, image)
        try:
            if isinstance(source, ArchiveMember):
                data = source.read()
            elif image.size > MAX_BYTES:
                return _Look(image, None, None)
            else:
                with open(source, "rb") as file:
                    data = file.read()
        except (OSError, ValueError, ImageError):
            return _Look(image, None, None)  # the model's reader will say why
        return _Look(image, xxhash.xxh3_128_hexdigest(data), embedded_words(data))

    def needs_model(self, look: _Look) -> bool:
        """Enter what was learnt from the file; say whether the image has to be captioned."""
        if look.hash is None:
            return True
        with self.project.transaction() as connection:
            image = look.image
            if image.hash != look.hash:
                self._forget(image)
            values = (look.hash, image.id)
            connection.execute("UPDATE images SET hash = ?, stale = 0 WHERE id = ?", values)
            merge_words(self.project, image.id, "embedded", look.words)
            image = self._renamed(image, look.hash) or image
            where = self.run.parameters | {"id": image.id, "hash": look.hash}
            wants = self.project.images(f"id = :id AND {_WANTS_CAPTION}", where)
            needs = bool(wants) and not self._has_original(where)
        if not needs:
            self.advance()
        return needs

    def _forget(self, image: ProjectImage) -> None:
        """The photo is new, or another one now: only what people said of the one before still counts."""
        self.project.connection.execute(
            """UPDATE images SET suggestion = NULL, width = NULL, height = NULL, phash = NULL, near = NULL,
            error = NULL, message = NULL WHERE id = ?""",
            (image.id,),
        )
        if image.hash is not None and (image.verdict or image.words):
            self.project.flag(image.id, "photo changed", "the file has changed since a person described it")
        self.project.settle(image.id)

    def _renamed(self, image: ProjectImage, content: str) -> ProjectImage | None:
        """If a new image is one that is missing elsewhere, let that one have its place."""
        if image.hash is not None or self.project.history(image.id):
            return None
        before = self.project.images("hash = ? AND missing ORDER BY id LIMIT 1", content)
        if not before:
            return None
        connection, old, new = self.project.connection, before[0].id, image.id
        words = [caption for caption in self.project.captions(new) if caption.writer.kind in ("sidecar", "embedded")]
        row = connection.execute("SELECT * FROM images WHERE id = ?", (new,)).fetchone()
        connection.execute("DELETE FROM flags WHERE image = ?", (new,))
        connection.execute("UPDATE images SET words = NULL, caption = NULL WHERE id = ?", (new,))
        connection.execute("DELETE FROM captions WHERE image = ?", (new,))
        connection.execute("DELETE FROM images WHERE id = ?", (new,))
        connection.execute(
            """UPDATE images SET path = CAST(? AS TEXT), member = CAST(? AS TEXT), size = ?, mtime = ?, sidecars = ?,
            seen = ?, missing = 0, stale = 0 WHERE id = ?""",
            (
                encoded(row["path"]),
                encoded(row["member"]),
                row["size"],
                row["mtime"],
                row["sidecars"],
                self.run.id,
                old,
            ),
        )
        for caption in words:
            merge_words(self.project, old, caption.writer.kind, caption.text)
        connection.execute("UPDATE runs SET renamed = renamed + 1 WHERE id = ?", (self.run.id,))
        return self.project.image(old)

    def _has_original(self, where: dict[str, object]) -> bool:
        """Is there another image with the same bytes, whose caption this one can have when the run is done?"""
        return bool(
            self.project.rows(
                f"""SELECT 1 FROM images WHERE hash = :hash AND id <> :id AND NOT missing AND (
                    suggestion IS NOT NULL AND NOT {_OUTDATED}
                    OR id < :id AND seen = :run AND error IS NULL AND NOT {BY_PERSON}) LIMIT 1""",
                where,
            )
        )


def share_captions(project: Project, run: Run) -> None:
    """Give copies of an image the caption of the one that was captioned, or what was wrong with it."""
    copies = project.rows(f"SELECT id, hash FROM images WHERE {_TODO} AND hash IS NOT NULL", run.parameters)
    for copy in copies:
        where = run.parameters | {"id": copy["id"], "hash": copy["hash"]}
        same = "hash = :hash AND id <> :id AND NOT missing"
        original = project.images(f"{same} AND suggestion IS NOT NULL AND NOT {_OUTDATED} ORDER BY id LIMIT 1", where)
        broken = project.images(f"{same} AND error IS NOT NULL ORDER BY id LIMIT 1", where)
        with project.transaction() as connection:
            if original:
                values = (original[0].width, original[0].height, copy["id"])
                connection.execute("UPDATE images SET width = ?, height = ?, error = NULL WHERE id = ?", values)
                project.copy_suggestion(original[0].id, copy["id"], run.id)
            elif broken:
                why = (broken[0].error, broken[0].message, copy["id"])
                connection.execute("UPDATE images SET error = ?, message = ? WHERE id = ?", why)


def new_caption(caption: Caption, style: str, flags: Mapping[str, str]) -> NewCaption:
    """A model's caption as the project keeps it."""
    shape = SHAPES[style]
    return NewCaption(
        text=shape(caption.text),
        style=style,
        confidence=caption.confidence,
        tokens=[(token.text, round(token.log_prob, 4)) for token in caption.tokens],
        alternatives=alternatives_of(caption, shape),
        tags=tags_of(caption),
        words=[(word.text, round(word.confidence, 4)) for word in caption.words],
        flags=flags,
    )


def model_writer(captioner: Captioner, digest: str, options: GenerationOptions) -> Writer:
    settings = {"precision": captioner.precision, **asdict(options)}
    return Writer("model", captioner.name, digest, json.dumps(settings, sort_keys=True))


def _store_caption(project: Project, result: Captioned[ProjectImage], writer: int, run: int, style: str) -> None:
    image = result.key.id
    with project.transaction() as connection:
        values = (result.width, result.height, image)
        connection.execute("UPDATE images SET width = ?, height = ? WHERE id = ?", values)
        project.add_suggestion(image, new_caption(result.caption, style, result.flags), writer, run)


def _store_failure(project: Project, failure: Failure[ProjectImage]) -> None:
    values = (failure.error, failure.message, failure.key.id)
    with project.transaction() as connection:
        connection.execute("UPDATE images SET error = ?, message = ?, stale = 0 WHERE id = ?", values)
