"""Bring a project up to date with a command line's images: `captioner annotate PHOTOS -o album.captions`."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from captioner.annotate.near_duplicates import find_near_duplicates
from captioner.annotate.pipeline import ESCAPES, progress_bar
from captioner.annotate.project import Project
from captioner.annotate.runs import (
    BY_PERSON,
    Run,
    caption_todo,
    count_todo,
    finish_run,
    model_writer,
    release_words,
    say_who,
    share_captions,
    start_run,
)
from captioner.annotate.scan import scan
from captioner.annotate.sheets import Sheets
from captioner.data.archives import ArchiveMember
from captioner.decoding.options import GenerationOptions
from captioner.distributed import Process
from captioner.files import exclusive
from captioner.hub.find import digest
from captioner.infer.captioner import Captioner


@dataclass(frozen=True)
class Request:
    """What the user asks of a run besides captions for new and changed images.

    Attributes:
        overwrite: make the model's captions again.
        overwrite_human: let the model's captions take the place of people's.
        retry_errors: try the images again that could not be read.
        dry_run: only say what there is to do.
        near_duplicates: find photos that look alike.
        style: "caption", or "alt" for alternative texts.
    """

    overwrite: bool = False
    overwrite_human: bool = False
    retry_errors: bool = False
    dry_run: bool = False
    style: str = "caption"
    near_duplicates: bool = False


class Loaded(NamedTuple):
    """A model, and how it is to caption.

    Attributes:
        folders: the model's files, and those of its adapter.
        min_confidence: captions below it are marked.
        sheets: where heat maps are drawn, if they are.
    """

    captioner: Captioner
    options: GenerationOptions
    batch_size: int
    folders: list[Path]
    min_confidence: float = 0.0
    sheets: Sheets | None = None

    def version(self) -> str:
        """A digest of the model's files: two models of the same name may differ."""
        return "+".join(map(digest, self.folders))


FAILURES_SHOWN = 10

Images = Callable[[], Iterable[str | ArchiveMember]]

Load = Callable[[int, str | None], Loaded]
"""Loads the model for so many images, in the precision of the run that this one goes on with, if there is one."""


@dataclass(frozen=True)
class Summary:
    """What became of the images of a run, and what was wrong with those that failed, in this run or before.

    Attributes:
        images: how many the run was given.
        failures: names and faults of the first that failed.
        planned: of a dry run, how many would be read.
    """

    images: int
    captioned: int = 0
    copied: int = 0
    renamed: int = 0
    by_people: int = 0
    look_alikes: int = 0
    missing: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    planned: int | None = None

    def lines(self) -> Iterator[str]:
        """The summary for people."""
        failed = self.failed.total()
        if self.planned is not None:
            yield f"{self.images:,} images; {self.planned:,} to caption, less those that are copies or were renamed"
        else:
            rate = f" ({self.captioned / self.seconds:.1f} images/s)" if self.captioned and self.seconds else ""
            skipped = self.images - self.captioned - self.copied - failed
            yield f"{self.captioned:,} captioned{rate}, {skipped:,} skipped, {failed:,} failed"
        for what, count in (
            ("share the caption of another image", self.copied),
            ("renamed, captions kept", self.renamed),
            ("described by people, left alone", self.by_people),
            ("look like others (`captioner lint` lists them)", self.look_alikes),
            ("in the project and no longer there", self.missing),
            *((f"failed, {reason.replace('_', ' ')}", count) for reason, count in self.failed.most_common()),
        ):
            if count:
                yield f"  {what}: {count:,}"
        yield from (f"{name}: {message}" for name, message in self.failures)
        if failed > len(self.failures):
            yield f"... and {failed - len(self.failures):,} more"


def update(
    path: Path,
    images: Images,
    request: Request,
    load: Load,
    process: Process,
    num_workers: int,
) -> Summary | None:
    """Caption into the project `path`, which is made if it is not there, what it lacks of `images`.

    The model is only loaded if there is something to caption.

    Returns:
        How it went in all processes, to the first of them; None to the others.

    Raises:
        CaptionerError: another run is at work on the project, or it cannot be written.
    """
    if request.dry_run:
        return _plan(path, images, request) if process.rank == 0 else None
    with ExitStack() as stack:
        if process.rank == 0:
            stack.enter_context(exclusive(path))
            project = stack.enter_context(Project(path, create=True, durable=False))
            summary = _begin(project, images, request)
        process.barrier()  # by now the images are in the project
        if process.rank:
            project = stack.enter_context(Project(path, durable=False))
        ((run,),) = project.rows("SELECT max(id) FROM runs")
        seconds = _caption(project, Run(run, retry=request.retry_errors), request, load, process, num_workers)
        process.barrier()
        if process.rank:
            return None
        share_captions(project, _stored_run(project, run, request))
        if request.near_duplicates:
            find_near_duplicates(project, run, num_workers)
        finish_run(project, run)
        return _count(project, run, summary, seconds)


def _plan(path: Path, images: Images, request: Request) -> Summary:
    with Project(path, create=True, rehearse=True) as project:
        summary = _begin(project, images, request)
        ((run,),) = project.rows("SELECT max(id) FROM runs")
        planned = count_todo(project, Run(run, run if request.overwrite else 0, request.retry_errors))
        return replace(_count(project, run, summary, 0.0), planned=planned)


def _begin(project: Project, images: Images, request: Request) -> Summary:
    run = start_run(project)
    summary = Summary(images=scan(project, images(), run))
    if request.overwrite_human:
        release_words(project, run)
    return summary


def _caption(project: Project, run: Run, request: Request, load: Load, process: Process, num_workers: int) -> float:
    """Caption this process's share; return how many seconds that took, loading aside."""
    count = count_todo(project, run)
    if not count and not request.overwrite:
        return 0.0
    loaded = load(count, _stopped_precision(project, run.id))
    if process.rank == 0:
        writer = model_writer(loaded.captioner, loaded.version(), loaded.options)
        say_who(project, run.id, writer, request.overwrite)
    process.barrier()
    run = _stored_run(project, run.id, request)
    began = time.monotonic()
    with progress_bar() as progress:
        task = progress.add_task("captioning", total=-(-count_todo(project, run) // process.count))
        caption_todo(
            project,
            run,
            loaded.captioner,
            loaded.options,
            process,
            batch_size=loaded.batch_size,
            num_workers=num_workers,
            style=request.style,
            min_confidence=loaded.min_confidence,
            sheets=loaded.sheets,
            advance=lambda: progress.advance(task),
        )
    return time.monotonic() - began


def _stored_run(project: Project, run: int, request: Request) -> Run:
    ((since,),) = project.rows("SELECT since FROM runs WHERE id = ?", run)
    return Run(run, since, request.retry_errors)


def _stopped_precision(project: Project, run: int) -> str | None:
    """The precision of the run before, if that one was stopped."""
    rows = project.rows(
        """SELECT finished, options FROM runs LEFT JOIN writers ON writers.id = writer
        WHERE runs.id < ? ORDER BY runs.id DESC LIMIT 1""",
        run,
    )
    if not rows or rows[0]["finished"] is not None or rows[0]["options"] is None:
        return None
    precision: str = json.loads(rows[0]["options"])["precision"]
    return precision


def _count(project: Project, run: int, summary: Summary, seconds: float) -> Summary:
    """Complete a summary from what the project says of the run."""

    def number(query: str) -> int:
        return int(project.rows(f"SELECT count(*) FROM {query}", {"run": run})[0][0])

    broken = "seen = ? AND NOT missing AND error IS NOT NULL"
    failed = project.rows(f"SELECT error, count(*) FROM images WHERE {broken} GROUP BY error", run)
    first = project.images(f"{broken} ORDER BY id LIMIT {FAILURES_SHOWN}", run)
    ((renamed,),) = project.rows("SELECT renamed FROM runs WHERE id = ?", run)
    return replace(
        summary,
        captioned=number("captions WHERE run = :run AND NOT copied"),
        copied=number("captions WHERE run = :run AND copied"),
        renamed=renamed,
        by_people=number(f"images WHERE seen = :run AND NOT missing AND {BY_PERSON}"),
        look_alikes=number("images WHERE seen = :run AND NOT missing AND near IS NOT NULL"),
        missing=number("images WHERE missing"),
        failed=Counter(dict(map(tuple, failed))),
        failures=[(image.name.translate(ESCAPES), image.message or "") for image in first],
        seconds=seconds,
    )
