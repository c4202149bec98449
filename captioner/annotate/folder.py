"""Caption files into a table or an output file: `captioner annotate`.

Results for an output file go at once to a journal beside it, from which a run that was killed goes on.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from captioner.annotate.formats import FORMATS, json_line, open_text
from captioner.annotate.pipeline import Captioned, Failure, caption_images, progress_bar
from captioner.errors import CaptionerError
from captioner.infer.captioner import Captioner
from captioner.infer.options import GenerationOptions

Record = dict[str, Any]


class Summary(NamedTuple):
    """How many images have a caption now, and how many could not be read."""

    captioned: int
    failed: int


class Sink(Protocol):
    """Where results go as they come."""

    done: set[str]

    def write(self, record: Record) -> None: ...
    def fail(self, failure: Failure) -> None: ...
    def finish(self) -> None: ...


def annotate(
    captioner: Captioner,
    images: Iterable[str],
    options: GenerationOptions,
    sink: Sink,
    *,
    total: int,
    batch_size: int,
    num_workers: int,
) -> Summary:
    """Caption `images` (paths) into `sink`, passing over those it has already. `total` is their number.

    A file that cannot be read costs one `Failure`, never the run.
    """
    captioned = failed = 0
    with progress_bar(isinstance(sink, Table) and sys.stdout.isatty()) as progress:
        task = progress.add_task("captioning", total=total)
        todo = ((path, path) for path in _pass_over(images, sink.done, lambda: progress.advance(task)))
        for result in caption_images(captioner, todo, options, batch_size=batch_size, num_workers=num_workers):
            if isinstance(result, Failure):
                failed += 1
                sink.fail(result)
            else:
                captioned += 1
                sink.write(_record(result, captioner.name))
            progress.advance(task)
    sink.finish()
    return Summary(captioned + len(sink.done), failed)


def _record(result: Captioned[str], model: str) -> Record:
    caption = result.caption
    return {
        "image": result.key,
        "caption": caption.text,
        "confidence": round(caption.confidence, 4),
        "alternatives": [
            {"caption": other.text, "confidence": round(other.confidence, 4)} for other in caption.alternatives
        ],
        "tags": [{"tag": tag.text, "score": round(tag.score, 4)} for tag in caption.tags],
        "width": result.width,
        "height": result.height,
        "model": model,
    }


def _pass_over(images: Iterable[str], done: set[str], passed: Callable[[], None]) -> Iterator[str]:
    for image in images:
        if image in done:
            passed()
        else:
            yield image


def choose_format(path: Path, name: str | None) -> str:
    """The format to write `path` in: the one named, else by suffix.

    Raises:
        CaptionerError: an unknown format, or a place where no file can be written.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise CaptionerError(f"{path}: " + ("a folder" if path.is_dir() else f"there is no folder {path.parent}"))
    chosen = name or path.suffix.removeprefix(".").lower()
    if chosen not in FORMATS:
        raise CaptionerError(f"{path}: format {chosen!r} is unknown; choose one with --format: {', '.join(FORMATS)}")
    return chosen


class Table:
    """`path<TAB>caption` a line on stdout, failures on stderr.

    Control characters, in names above all, are written as \\x09: a line stays a line, and a terminal gets no commands.
    """

    ESCAPES = str.maketrans({code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))})

    def __init__(self) -> None:
        self.done: set[str] = set()
        for stream in (sys.stdout, sys.stderr):  # names that are not valid text leave as the bytes they are
            stream.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]

    def write(self, record: Record) -> None:
        print(*(record[field].translate(self.ESCAPES) for field in ("image", "caption")), sep="\t", flush=True)

    def fail(self, failure: Failure) -> None:
        print(f"{failure.image}: {failure.message}".translate(self.ESCAPES), file=sys.stderr, flush=True)

    def finish(self) -> None:
        pass


class OutputFile:
    """`x.jsonl` or `x.csv` with `x.errors.jsonl`, both whole or absent.

    Until `finish` the results are in the journal `x.jsonl.part`: a line with the run's settings, then one JSON record a
    line. A journal that is there already, with the same settings, is continued: `done` names its images. Images that
    failed are tried again, so the errors file starts anew.
    """

    def __init__(self, path: Path, format_name: str, model: str, options: GenerationOptions) -> None:
        """Open or continue the journal.

        Raises:
            CaptionerError: the folder cannot be written, or the journal belongs to a run with other settings.
        """
        self.path = path
        self.format_name = format_name
        self.errors_path = path.with_suffix(".errors.jsonl")
        self.journal_path = Path(f"{path}.part")
        self.errors_part = Path(f"{self.errors_path}.part")
        self.failed = 0
        settings = {"model": model, "options": asdict(options)}
        try:
            self.done = self._recover(settings)
            self.journal = open_text(self.journal_path, "a")
            self.errors = open_text(self.errors_part, "w")
        except OSError as error:
            raise CaptionerError(f"{error.filename}: cannot be written: {error.strerror}") from error
        if self.journal.tell() == 0:
            self.write(settings)

    def write(self, record: Record) -> None:
        self.journal.write(json_line(record))
        self.journal.flush()

    def fail(self, failure: Failure) -> None:
        self.failed += 1
        self.errors.write(json_line(asdict(failure)))
        self.errors.flush()

    def finish(self) -> None:
        """Write the output under another name, then rename."""
        self.journal.close()
        self.errors.close()
        whole = Path(f"{self.path}.tmp")
        with open_text(whole, "w") as file:
            FORMATS[self.format_name](self._records(), file)
        os.replace(whole, self.path)
        if self.failed:
            os.replace(self.errors_part, self.errors_path)
        else:
            self.errors_part.unlink()
            self.errors_path.unlink(missing_ok=True)  # an earlier run's
        self.journal_path.unlink()

    def _records(self) -> Iterator[Record]:
        with open(self.journal_path, encoding="utf-8", newline="\n") as lines:
            yield from map(json.loads, islice(lines, 1, None))

    def _recover(self, settings: dict[str, Any]) -> set[str]:
        """Read what a killed run left, cut off a line it was writing, and name the images it had done."""
        if not self.journal_path.exists():
            return set()
        done: set[str] = set()
        with open(self.journal_path, "r+b") as journal:
            whole = 0
            for number, line in enumerate(journal):
                try:
                    record = json.loads(line)
                except ValueError:
                    break
                if not line.endswith(b"\n"):
                    break
                if number > 0:
                    done.add(record["image"])
                elif record != json.loads(json_line(settings)):
                    raise CaptionerError(
                        f"{self.journal_path}: left by a run with another model or other options; "
                        "finish it with those, or delete it to start again"
                    )
                whole += len(line)
            journal.truncate(whole)
        return done
