"""Caption files into a table or an output file: `captioner annotate`.

Results for an output file go at once to journals beside it, from which a run that was killed goes on. Of a launch of
several processes each captions its share; the first makes one file of all their journals.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from captioner.annotate.formats import FORMATS, json_line, open_text
from captioner.annotate.pipeline import Captioned, Failure, caption_images, progress_bar
from captioner.errors import CaptionerError
from captioner.infer.captioner import Captioner
from captioner.infer.options import GenerationOptions
from captioner.infer.processes import Process

Record = dict[str, Any]
Images = Callable[[], Iterable[str]]
Places = dict[str, tuple[Path, int]]  # of the records of images: a journal, and where in it


class Summary(NamedTuple):
    """How many images have a caption now, and how many could not be read."""

    captioned: int
    failed: int


class Sink(Protocol):
    """Where results go as they come."""

    done: set[str]

    def write(self, record: Record) -> None: ...
    def fail(self, failure: Failure) -> None: ...
    def close(self) -> None: ...
    def finish(self, images: Images) -> Summary: ...


def annotate(
    captioner: Captioner,
    images: Images,
    options: GenerationOptions,
    sink: Sink,
    process: Process,
    *,
    total: int,
    batch_size: int,
    num_workers: int,
) -> Summary | None:
    """Caption into `sink` those of `images` (paths) that are this process's, `total` of them, but not what it has done.

    A file that cannot be read costs one `Failure`, never the run.

    Returns:
        How it went in all processes, to the first of them; None to the others.

    Raises:
        CaptionerError: another process has ended before its share was captioned.
    """
    process.meet()  # by now all have read what an earlier run left
    with progress_bar(isinstance(sink, Table) and sys.stdout.isatty()) as progress:
        task = progress.add_task("captioning", total=total)
        mine = filter(process.owns, images())
        todo = ((path, path) for path in _pass_over(mine, sink.done, lambda: progress.advance(task)))
        for result in caption_images(captioner, todo, options, batch_size=batch_size, num_workers=num_workers):
            if isinstance(result, Failure):
                sink.fail(result)
            else:
                sink.write(_record(result, captioner.name))
            progress.advance(task)
    sink.close()
    process.meet()
    return sink.finish(images) if process.rank == 0 else None


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
        self.captioned = self.failed = 0
        for stream in (sys.stdout, sys.stderr):  # names that are not valid text leave as the bytes they are
            stream.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]

    def write(self, record: Record) -> None:
        self.captioned += 1
        print(*(record[field].translate(self.ESCAPES) for field in ("image", "caption")), sep="\t", flush=True)

    def fail(self, failure: Failure) -> None:
        self.failed += 1
        print(f"{failure.image}: {failure.message}".translate(self.ESCAPES), file=sys.stderr, flush=True)

    def close(self) -> None:
        pass

    def finish(self, images: Images) -> Summary:
        return Summary(self.captioned, self.failed)


class OutputFile:
    """`x.jsonl` or `x.csv` with `x.errors.jsonl`, both whole or absent.

    Until `finish` the results are in the folder `x.jsonl.part`, where each process has a journal: a line with the run's
    settings, then a JSON record for each image, captioned or failed. What is there already, by however many processes
    of the same settings, is continued: `done` names the images captioned by then. Those that failed are tried again.
    """

    def __init__(self, path: Path, format_name: str, settings: Record, rank: int = 0) -> None:
        """Open or continue the journal of process `rank`.

        Raises:
            CaptionerError: the folder cannot be written, or the journals belong to a run with other settings.
        """
        self.path = path
        self.format_name = format_name
        self.errors_path = path.with_suffix(".errors.jsonl")
        self.folder = _journal_folder(path)
        journal = self.folder / f"{rank}.jsonl"
        try:
            self.folder.mkdir(exist_ok=True)
            self.done = self._recover(settings, journal)
            self.journal = open_text(journal, "a")
        except OSError as error:
            raise CaptionerError(f"{error.filename}: cannot be written: {error.strerror}") from error
        if self.journal.tell() == 0:
            self.write(settings)

    def write(self, record: Record) -> None:
        self.journal.write(json_line(record))
        self.journal.flush()

    def fail(self, failure: Failure) -> None:
        self.write(asdict(failure))

    def close(self) -> None:
        self.journal.close()

    def finish(self, images: Images) -> Summary:
        """Write captions and failures, each in the order of `images`, under other names; then rename.

        Every process has closed its journal by now. Memory holds the name of each image and the place of its record,
        about 200 bytes.

        Raises:
            CaptionerError: the files cannot be written, or the journals are gone: another run took them for its own.
        """
        whole, errors_whole = Path(f"{self.path}.tmp"), Path(f"{self.errors_path}.tmp")
        try:
            captions, failures = self._places()
            summary = Summary(len(captions), len(failures))
            with open_text(whole, "w") as file:
                FORMATS[self.format_name](self._records(images(), captions), file)
            if summary.failed:
                with open_text(errors_whole, "w") as file:
                    file.writelines(map(json_line, self._records(images(), failures)))
                os.replace(errors_whole, self.errors_path)
            else:
                self.errors_path.unlink(missing_ok=True)  # an earlier run's
            os.replace(whole, self.path)
        except FileNotFoundError as error:
            raise CaptionerError(f"{error.filename}: gone; has another run written {self.path}?") from error
        except OSError as error:
            raise CaptionerError(f"{error.filename or self.path}: cannot be written: {error.strerror}") from error
        shutil.rmtree(self.folder)
        return summary

    def _places(self) -> tuple[Places, Places]:
        """Of each image the last caption; of each that has none, the last failure."""
        captions: Places = {}
        failures: Places = {}
        for path in sorted(self.folder.iterdir()):
            for line in islice(_whole_lines(path), 1, None):
                places = failures if "error" in line.record else captions
                places[line.record["image"]] = path, line.start
        return captions, {image: place for image, place in failures.items() if image not in captions}

    def _records(self, images: Iterable[str], places: Places) -> Iterator[Record]:
        """The records of `images`, then of those that are no longer among them."""
        with ExitStack() as stack:
            journals = {path: stack.enter_context(open(path, "rb")) for path in self.folder.iterdir()}
            for image in chain(images, list(places)):
                if image in places:
                    path, start = places.pop(image)
                    journals[path].seek(start)
                    yield json.loads(journals[path].readline())

    def _recover(self, settings: Record, own: Path) -> set[str]:
        """Read what killed runs left, cut off the line that was being written in `own`, and name the images they had
        done."""
        done: set[str] = set()
        for path in self.folder.iterdir():
            end = 0
            for line in _whole_lines(path):
                if line.start > 0:
                    if "error" not in line.record:
                        done.add(line.record["image"])
                elif line.record != json.loads(json_line(settings)):
                    raise CaptionerError(
                        f"{self.folder}: left by a run with another model, precision or options; "
                        "finish it with those, or delete this folder to start again"
                    )
                end = line.end
            if path == own:
                os.truncate(path, end)
        return done


def precision_left(path: Path) -> str | None:
    """The precision of a run that stopped before it wrote the output file `path`; None where there is none.

    Raises:
        CaptionerError: its journals cannot be read.
    """
    try:
        for journal in _journal_folder(path).glob("*"):
            for line in _whole_lines(journal):
                return line.record.get("precision")
    except OSError as error:
        raise CaptionerError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return None


def _journal_folder(output: Path) -> Path:
    return Path(f"{output}.part")


class _Line(NamedTuple):
    record: Record
    start: int
    end: int


def _whole_lines(journal: Path) -> Iterator[_Line]:
    """The lines of a journal up to one that was being written."""
    with open(journal, "rb") as file:
        start = 0
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                return
            if not line.endswith(b"\n"):
                return
            yield _Line(record, start, start + len(line))
            start += len(line)
