"""Caption files into a table, a stream or an output file: `captioner annotate`.

Results for an output file go at once to journals beside it, from which a run that was killed goes on. Of a launch of
several processes each captions its share; the first makes one file of all their journals.
"""

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO

from captioner.annotate.alt_text import SHAPES
from captioner.annotate.formats.records import FORMATS, Record, Write, alternatives_of, json_line, tags_of
from captioner.annotate.pipeline import ESCAPES, Captioned, Failure, caption_images, progress_bar
from captioner.annotate.sheets import Sheets
from captioner.data.archives import ArchiveMember
from captioner.data.images import IMAGE_EXTENSIONS
from captioner.decoding.options import GenerationOptions
from captioner.distributed import Process
from captioner.errors import CaptionerError
from captioner.files import check_file, is_plain, open_stream, open_text, reporting, sync, whole_file
from captioner.infer.captioner import Captioner

Images = Callable[[], Iterable[str | ArchiveMember]]


class Summary(NamedTuple):
    """How many images have a caption now, and how many could not be read."""

    captioned: int
    failed: int


class Seen(NamedTuple):
    """A file as it was before it was read: its `state` is another when it has been written since."""

    image: str | ArchiveMember
    state: str


class Sink(Protocol):
    """Where results go as they come. `done` are the images that have a caption from before, as they were then."""

    done: dict[str, str]
    is_terminal: bool

    def write(self, record: Record) -> None: ...
    def fail(self, failure: Failure[Seen]) -> None: ...
    def close(self) -> None: ...
    def finish(self, images: Images) -> Summary: ...


def annotate(
    captioner: Captioner,
    images: Images,
    options: GenerationOptions,
    sink: Sink,
    process: Process,
    *,
    style: str,
    total: int,
    batch_size: int,
    num_workers: int,
    min_confidence: float = 0.0,
    sheets: Sheets | None = None,
) -> Summary | None:
    """Caption into `sink` those of `images` that are this process's, `total` of them, but not what it has done.

    A file that cannot be read costs one `Failure`, never the run.

    Returns:
        How it went in all processes, to the first of them; None to the others.

    Raises:
        CaptionerError: another process has ended before its share was captioned; `sink` cannot be written to.
    """
    process.barrier()  # by now all have read what an earlier run left
    try:
        with progress_bar(sink.is_terminal) as progress:
            task = progress.add_task("captioning", total=total)
            mine = (_look_at(image) for image in images() if process.owns(str(image)))
            todo = ((seen, seen.image) for seen in _pass_over(mine, sink.done, lambda: progress.advance(task)))
            results = caption_images(
                captioner,
                todo,
                options,
                batch_size=batch_size,
                num_workers=num_workers,
                min_confidence=min_confidence,
                sheets=sheets,
            )
            for result in results:
                if isinstance(result, Failure):
                    sink.fail(result)
                else:
                    sink.write(_record(result, captioner.name, style))
                progress.advance(task)
    finally:
        sink.close()
    process.barrier()
    return sink.finish(images) if process.rank == 0 else None


def _look_at(image: str | ArchiveMember) -> Seen:
    """Size and times tell whether a file has changed; the time of the last change of any kind cannot be set back."""
    try:
        status = os.stat(image.archive if isinstance(image, ArchiveMember) else image)
    except (OSError, ValueError):
        return Seen(image, "")
    return Seen(image, f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}")


def _pass_over(images: Iterable[Seen], done: dict[str, str], passed: Callable[[], None]) -> Iterator[Seen]:
    for image in images:
        if done.get(str(image.image)) == image.state:
            passed()
        else:
            yield image


def _record(result: Captioned[Seen], model: str, style: str) -> Record:
    """What formats write, and the state of the file, for journals."""
    caption, shape = result.caption, SHAPES[style]
    return {
        "image": str(result.key.image),
        "caption": shape(caption.text),
        "confidence": round(caption.confidence, 4),
        "alternatives": alternatives_of(caption, shape),
        "tags": tags_of(caption),
        "width": result.width,
        "height": result.height,
        "model": model,
        "words": [{"word": word.text, "confidence": round(word.confidence, 4)} for word in caption.words],
        "flags": result.flags,
        "abstained": "abstained" in result.flags,
        "state": result.key.state,
    }


def choose_format(path: Path, name: str | None) -> str:
    """The format to write `path` in: the one named, else by suffix.

    Raises:
        CaptionerError: an unknown format, or a place where no file can be written.
    """
    check_file(path)
    chosen = name or path.suffix.removeprefix(".").lower()
    if chosen not in FORMATS:
        raise CaptionerError(f"{path}: format {chosen!r} is unknown; choose one with --format: {', '.join(FORMATS)}")
    if is_plain(path):
        if path.exists() and path.suffix.lower() in IMAGE_EXTENSIONS:
            raise CaptionerError(f"{path}: an image; -o names the file to write")
        if path.name.endswith(ERRORS):
            raise CaptionerError(f"{path}: the name of another run's errors file; choose another")
        check_file(_errors_path(path))
    return chosen


class Stream:
    """Records go to a stream as they come, failures to stderr."""

    def __init__(self, name: str, file: TextIO, write: Write) -> None:
        self.name = name
        self.file = file
        self.write_record = write
        self.done: dict[str, str] = {}
        self.is_terminal = file.isatty()
        self.captioned = self.failed = 0

    def write(self, record: Record) -> None:
        self.captioned += 1
        with reporting(self.name):
            self.write_record(record)
            self.file.flush()

    def fail(self, failure: Failure[Seen]) -> None:
        self.failed += 1
        print(f"{failure.image}: {failure.message}".translate(ESCAPES), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.file is not sys.stdout:
            with reporting(self.name):
                self.file.close()

    def finish(self, images: Images) -> Summary:
        return Summary(self.captioned, self.failed)


def table() -> Stream:
    """`path<TAB>caption` a line on stdout; abstained captions have a third column that says so."""

    def write(record: Record) -> None:
        mark = ["abstained"] if record["abstained"] else []
        print(*(record[field].translate(ESCAPES) for field in ("image", "caption")), *mark, sep="\t")

    return Stream("stdout", sys.stdout, write)


def stream_to(path: Path, format_name: str) -> Stream:
    """Records in a format, to a device, a pipe, or what stdout goes to: there they cannot be taken back or sorted.

    Raises:
        CaptionerError: it cannot be written to.
    """
    with reporting(path):
        file = open_stream(path)
        return Stream(str(path), file, FORMATS[format_name](file))


ERRORS = ".errors.jsonl"


HEADER = {"settings", "inputs", "folder", "started"}
"""The first line of a run in a journal: all that captions depend on besides the image, `inputs_of` its command line,
the folder that relative paths start from, and the time in nanoseconds."""


def inputs_of(paths: Iterable[str]) -> str:
    """A digest of the paths of a command line."""
    return hashlib.sha256(b"\0".join(os.fsencode(os.path.abspath(path)) for path in paths)).hexdigest()


class OutputFile:
    """`x.jsonl` with `x.errors.jsonl`, or `x` of any other name with `x.errors.jsonl`, both whole or absent.

    Until `finish` the results are in the folder `x.jsonl.part`, where each process has a journal: a line that says what
    run it is, then a JSON record for each image, captioned or failed. The next run goes on from them, by however many
    processes either is, with the captions that it would write itself: under the same settings, of images that its own
    inputs name and that have not changed. Images that failed are tried again.
    """

    def __init__(self, path: Path, format_name: str, settings: Record, inputs: str, process: Process) -> None:
        """Open or continue the journal of this process.

        Raises:
            CaptionerError: the folder cannot be written, or a run with the same inputs and other settings was stopped.
        """
        self.path = path
        self.format_name = format_name
        header = {"settings": settings, "inputs": inputs, "folder": os.getcwd(), "started": time.time_ns()}
        self.header: Record = json.loads(json_line(header))  # as it will be read
        self.process = process
        self.is_terminal = False
        self.errors_path = _errors_path(path)
        self.folder = _journal_folder(path)
        journal = self.folder / f"{process.rank}.jsonl"
        with reporting(self.folder):
            self.folder.mkdir(exist_ok=True)
            places, _ = self._places()
            self.done = {image: place.state for image, place in places.items() if place.state and not place.failed}
            if journal.exists():  # without the line that was being written when the run before was killed
                os.truncate(journal, max((line.end for line in _whole_lines(journal)), default=0))
            self.journal = open_text(journal, "a")
        self.write(self.header)

    def write(self, record: Record) -> None:
        with reporting(self.journal.name):
            self.journal.write(json_line(record))
            self.journal.flush()

    def fail(self, failure: Failure[Seen]) -> None:
        self.write({"image": failure.image, "error": failure.error, "message": failure.message})

    def close(self) -> None:
        with reporting(self.journal.name), self.journal:
            sync(self.journal)  # whoever is told that the run can go on from here has it on disk

    def finish(self, images: Images) -> Summary:
        """Write captions and failures, each in the order of `images`, and remove the journals.

        Every process has closed its journal by now. What this run captioned of images that are no longer there comes
        last; what earlier runs captioned of images that are none of `images` is left out. Memory holds the name of each
        image and the place of its record, about 400 bytes.

        Raises:
            CaptionerError: the files cannot be written, or the journals are gone: another run took them for its own.
        """
        try:
            places, begun = self._places()
        except FileNotFoundError as error:
            raise CaptionerError(f"{error.filename}: gone; has another run written {self.path}?") from error
        found = [place for image in images() if (place := places.pop(str(image), None))]
        found += [place for place in places.values() if place.start > begun.get(place.journal, place.start)]
        captions = [place for place in found if not place.failed]
        failures = [place for place in found if place.failed]
        with whole_file(self.path) as file:
            write = FORMATS[self.format_name](file)
            for record in _records(captions):
                write(record)
            self._write_errors(failures)
        with suppress(OSError):  # there is something else in the folder, or it is a link
            for journal in _journals(self.folder):
                journal.unlink()
            self.folder.rmdir()
        return Summary(len(captions), len(failures))

    def _write_errors(self, failures: list["_Place"]) -> None:
        with reporting(self.errors_path):
            is_link = self.errors_path.is_symlink() or not is_plain(self.errors_path)  # which is the user's own
            if failures or is_link:
                with whole_file(self.errors_path) as file:
                    file.writelines(map(json_line, _records(failures)))
            else:
                self.errors_path.unlink(missing_ok=True)  # an earlier run's

    def _places(self) -> tuple[dict[str, "_Place"], dict[Path, int]]:
        """The last result of each image that counts for this run, and where in each journal of its processes the last
        run begins: this one, once they have all begun.

        Raises:
            CaptionerError: a run with the same inputs has other settings.
        """
        sections = list(_sections(self.folder))
        begun = {section.journal: section.start for section in sections if section.rank < self.process.count}
        places: dict[str, _Place] = {}
        for section in sorted(sections, key=lambda section: section.header["started"]):
            if section.header["settings"] == self.header["settings"]:
                is_here = section.header["folder"] == self.header["folder"]
                places |= {image: place for image, place in section.places.items() if is_here or os.path.isabs(image)}
            elif section.header["inputs"] == self.header["inputs"]:
                raise CaptionerError(
                    f"{self.folder}: left by a run with another model, precision or options; "
                    "finish it with those, or delete this folder to start again"
                )
        return places, begun


def precision_left(path: Path, inputs: str) -> str | None:
    """The precision of a run with these inputs that stopped before it wrote the output file `path`; None where there is
    none.

    Raises:
        CaptionerError: its journals cannot be read.
    """
    folder = _journal_folder(path)
    with reporting(folder):
        for section in _sections(folder) if folder.is_dir() else ():
            if section.header["inputs"] == inputs:
                precision: str | None = section.header["settings"].get("precision")
                return precision
    return None


def _errors_path(output: Path) -> Path:
    return output.with_name(output.name.removesuffix(".jsonl") + ERRORS)


def _journal_folder(output: Path) -> Path:
    return Path(f"{output}.part")


def _journals(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"\d+\.jsonl", path.name))


class _Place(NamedTuple):
    """Where the record of an image is, and what it says."""

    journal: Path
    start: int
    state: str
    failed: bool


class _Section(NamedTuple):
    """What one run wrote into the journal of a process."""

    journal: Path
    rank: int
    start: int
    header: Record
    places: dict[str, _Place]


def _sections(folder: Path) -> Iterator[_Section]:
    for journal in _journals(folder):
        section: _Section | None = None
        for line in _whole_lines(journal):
            if line.record.keys() >= HEADER:
                if section:
                    yield section
                section = _Section(journal, int(journal.stem), line.start, line.record, {})
            elif section:
                state, failed = line.record.get("state", ""), "error" in line.record
                section.places[line.record["image"]] = _Place(journal, line.start, state, failed)
        if section:
            yield section


def _records(places: Iterable[_Place]) -> Iterator[Record]:
    with ExitStack() as stack:
        journals: dict[Path, Any] = {}
        for place in places:
            if place.journal not in journals:
                journals[place.journal] = stack.enter_context(open(place.journal, "rb"))
            journals[place.journal].seek(place.start)
            yield json.loads(journals[place.journal].readline())


class _Line(NamedTuple):
    record: Record
    start: int
    end: int


def _whole_lines(journal: Path) -> Iterator[_Line]:
    """The lines of a journal up to one that was being written, or that a crash of the machine has damaged."""
    with open(journal, "rb") as file:
        start = 0
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                return
            if not line.endswith(b"\n") or not isinstance(record, dict):
                return
            if not (record.keys() >= HEADER or isinstance(record.get("image"), str)):
                return
            yield _Line(record, start, start + len(line))
            start += len(line)
