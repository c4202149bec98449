"""`captioner annotate`: caption images."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from captioner.cli.shared import (
    Adapter,
    Backend,
    BatchSize,
    Device,
    LengthPenalty,
    MaxNewTokens,
    MinNewTokens,
    Model,
    NeutralPeople,
    NoRepeatNgramSize,
    NumBeams,
    Precision,
    Prompt,
    TrustRemoteCode,
    Workers,
    check_launch,
    default_workers,
    given_options,
    load_captioner,
)
from captioner.errors import CaptionerError
from captioner.files import is_plain

if TYPE_CHECKING:
    from captioner.annotate.update import Images, Load, Loaded, Request
    from captioner.data.archives import ArchiveMember
    from captioner.distributed import Process
    from captioner.infer.captioner import Captioner

WORDS = ("prefix", "banned_words", "forced_words")
PROJECT = ".captions"
"""The suffix of project files."""


def annotate(
    paths: Annotated[
        list[str] | None, typer.Argument(help="Images, folders (with subfolders), globs, .zip and .tar archives.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="A project (x.captions) to make or continue, or a file for records; default: print path and caption.",
        ),
    ] = None,
    output_format: Annotated[str | None, typer.Option("--format", help="jsonl or csv; default: by suffix.")] = None,
    files_from: Annotated[
        str | None,
        typer.Option(help="Also caption the images listed in this file, one a line or ended by NULs; - for stdin."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Projects: make the model's captions again; people's words stay.")
    ] = False,
    overwrite_human: Annotated[
        bool,
        typer.Option("--overwrite-human", help="Projects: let the model's captions take the place of people's words."),
    ] = False,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Projects: try the images again that could not be read.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Projects: say what there is to do, and do nothing.")
    ] = False,
    near_duplicates: Annotated[
        bool, typer.Option("--near-duplicates", help="Projects: find photos that look alike; they share a suggestion.")
    ] = False,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(
            help="ray: on a Ray cluster, from a folder, .tar or .parquet files into a folder of parquet (-o)."
        ),
    ] = "local",
    style: Annotated[
        Literal["caption", "alt"], typer.Option(help="alt: alternative texts of at most 125 characters.")
    ] = "caption",
    model: Model = None,
    adapter: Adapter = None,
    prompt: Prompt = None,
    trust_remote_code: TrustRemoteCode = False,
    device: Device = "auto",
    precision: Precision = "auto",
    backend: Backend = "auto",
    batch_size: BatchSize = None,
    num_workers: Workers = None,
    num_beams: NumBeams = None,
    max_new_tokens: MaxNewTokens = None,
    min_new_tokens: MinNewTokens = None,
    no_repeat_ngram_size: NoRepeatNgramSize = None,
    length_penalty: LengthPenalty = None,
    prefix: Annotated[str, typer.Option(help="Start every caption with this, such as 'a photo of'.")] = "",
    banned_word: Annotated[
        list[str] | None, typer.Option(help="A word or phrase that no caption may use; repeatable.")
    ] = None,
    forced_word: Annotated[
        list[str] | None, typer.Option(help="A word or phrase that every caption must use; repeatable.")
    ] = None,
    do_sample: Annotated[bool, typer.Option("--do-sample", help="Sample captions instead of searching.")] = False,
    temperature: Annotated[
        float | None, typer.Option(help="Sampling: below 1 is more conservative, above 1 more varied.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Sampling: keep the k most probable tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sampling: keep the smallest set of tokens with this probability.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Sampling: the same seed gives the same captions.")] = None,
    num_return_sequences: Annotated[
        int | None, typer.Option(help="Captions per image. Default: the model's, or 1.")
    ] = None,
    neutral_people: NeutralPeople = False,
    min_confidence: Annotated[
        float, typer.Option(min=0, max=1, help="Mark captions whose confidence is below this; they are kept.")
    ] = 0.0,
    explain: Annotated[
        Path | None, typer.Option(help="Draw a sheet for each photo into this folder: its words and their heat maps.")
    ] = None,
    explain_method: Annotated[
        str, typer.Option(help="attention, or gradient: slower, leaves out what the model sees without using it.")
    ] = "attention",
) -> None:
    """Caption images.

    Without -o, print path, tab and caption, one line per image.

    With -o album.captions, caption into a project: one file that keeps captions, their origin and what people decided.
    Repeat the command to caption what is new or has changed; a stopped run goes on where it was.

    With -o x.jsonl, write one JSON object per image, and list unreadable images in x.errors.jsonl; to resume a stopped
    run, repeat the command. If -o names a pipe or a device, write the objects as they are made, and unreadable images
    to stderr.

    For 1,000 images or more, a short probe chooses what you left open: on a CPU the precision (bf16 if it is faster),
    on an accelerator the batch size.

    Exit status: 0 all images captioned, 3 some images failed, 2 usage error.
    """
    from captioner.annotate.alt_text import BANNED_PHRASES
    from captioner.annotate.paths import given_images
    from captioner.annotate.sheets import Sheets
    from captioner.annotate.update import Request
    from captioner.distributed import this_process

    check_launch("infer.py")
    process = this_process()
    request = Request(overwrite, overwrite_human, retry_errors, dry_run, style, near_duplicates)
    is_project = output is not None and output.suffix.lower() == PROJECT
    if request != Request(style=style) and not is_project:
        raise CaptionerError(
            "--overwrite, --overwrite-human, --retry-errors, --dry-run and --near-duplicates need a project: "
            f"-o album{PROJECT}"
        )
    if output_format and (not output or is_project):
        raise CaptionerError("--format needs an output file (-o) that is no project")
    sheets = Sheets(explain, explain_method) if explain else None
    if sheets:
        sheets.prepare()
    named, listed = paths or [], _names_in(files_from) if files_from else []

    def images() -> "Iterator[str | ArchiveMember]":
        return given_images(named, listed)

    banned = [*(banned_word or ()), *(BANNED_PHRASES if style == "alt" else ())]
    words = (prefix, banned, forced_word or [], neutral_people)
    given = given_options(
        do_sample=do_sample or None,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        no_repeat_ngram_size=no_repeat_ngram_size,
        length_penalty=length_penalty,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        num_return_sequences=num_return_sequences,
    )

    def load(count: int, resumed_precision: str | None) -> "Loaded":
        chosen = resumed_precision if precision == "auto" and resumed_precision else precision
        says_speed = process.rank == 0 and (output is not None or sys.stderr.isatty())
        captioner = load_captioner(model, device, chosen, adapter, prompt, trust_remote_code, backend)
        loaded = _loaded(captioner, adapter, batch_size, given, words, count, says_speed)
        return loaded._replace(min_confidence=min_confidence, sheets=sheets)

    if engine == "ray":
        others = (listed, output_format, style != "caption", adapter, prompt, trust_remote_code, neutral_people, sheets)
        chosen = min_confidence or {device, precision, backend} != {"auto"}
        if output is None or is_project or len(named) != 1 or any(others) or chosen:
            raise CaptionerError(
                "--engine ray takes one path, -o FOLDER, --model, --batch-size and options of the search"
            )
        from captioner.ray import annotate_path

        given |= dict(zip(WORDS, words, strict=False))
        annotate_path(named[0], str(output), model=model, batch_size=batch_size or 16, **given)
        return
    inputs = [*named, *([files_from] if files_from else [])]
    workers = num_workers or default_workers()
    if is_project and output:
        _into_project(output, images, inputs, request, load, process, workers)
    else:
        _into_file(output, output_format, images, inputs, style, load, process, workers)


def _names_in(path: str) -> list[str]:
    from captioner.annotate.paths import read_list

    if path == "-":
        return read_list(sys.stdin.buffer)
    with open(path, "rb") as file:
        return read_list(file)


def _loaded(
    captioner: "Captioner",
    adapter: str | None,
    batch_size: int | None,
    given: dict[str, Any],
    words: tuple[str, list[str], list[str], bool],
    count: int,
    says_speed: bool,
) -> "Loaded":
    """Find out how to be fast if there are many images."""
    from captioner.annotate.update import Loaded
    from captioner.hub.adapters import find_adapter
    from captioner.infer.captioner import WORTH_TUNING

    options = captioner.options(**given, **captioner.word_options(*words))
    if count >= WORTH_TUNING:
        captioner.tune(options, batch_size)
        if says_speed:
            print(f"precision {captioner.precision}, batches of {batch_size or captioner.batch_size}", file=sys.stderr)
    folders = [captioner.folder, *([find_adapter(adapter)[0]] if adapter else [])]
    return Loaded(captioner, options, batch_size or captioner.batch_size, folders)


def _into_project(
    output: Path,
    images: "Images",
    inputs: list[str],
    request: "Request",
    load: "Load",
    process: "Process",
    num_workers: int,
) -> None:
    from captioner.annotate.update import update

    if next(iter(images()), None) is None:
        raise CaptionerError(f"no images in {', '.join(inputs)}" if inputs else "name images, folders or --files-from")
    try:
        summary = update(output, images, request, load, process, num_workers)
    except KeyboardInterrupt:
        if process.rank == 0:
            print(f"stopped; repeat the command to resume from {output}", file=sys.stderr)
        raise typer.Exit(130) from None
    if summary is None:
        return
    with suppress(OSError):  # all is written, even if stderr is closed
        print(*summary.lines(), sep="\n", file=sys.stderr)
    if summary.failed and not request.dry_run:
        raise typer.Exit(3)


def _into_file(
    output: Path | None,
    output_format: str | None,
    images: "Images",
    inputs: list[str],
    style: str,
    load: "Load",
    process: "Process",
    num_workers: int,
) -> None:
    from captioner.annotate.folder import (
        OutputFile,
        Sink,
        annotate,
        choose_format,
        inputs_of,
        precision_left,
        stream_to,
        table,
    )

    chosen_format = choose_format(output, output_format) if output else ""
    is_file = output is not None and is_plain(output)
    if process.count > 1 and not is_file:
        raise CaptionerError(f"{process.count} processes need an output file that they write together: -o out.jsonl")
    if sys.__stdout__ is None and not output:
        raise CaptionerError("stdout is closed; write to a file with -o")
    is_mine = [process.owns(str(image)) for image in images()]
    if not is_mine:
        raise CaptionerError(f"no images in {', '.join(inputs)}" if inputs else "name images, folders or --files-from")
    precision = precision_left(output, inputs_of(inputs)) if output and is_file else None
    loaded = load(len(is_mine), precision)
    captioner, options = loaded.captioner, loaded.options
    sink: Sink
    if output and is_file:
        weights = {"model": captioner.name, "files": loaded.version(), "precision": captioner.precision}
        settings = weights | {"options": asdict(options), "style": style, "min_confidence": loaded.min_confidence}
        sink = OutputFile(output, chosen_format, settings, inputs_of(inputs), process)
    else:
        sink = stream_to(output, chosen_format) if output else table()
    try:
        summary = annotate(
            captioner,
            images,
            options,
            sink,
            process,
            style=style,
            min_confidence=loaded.min_confidence,
            sheets=loaded.sheets,
            total=sum(is_mine),
            batch_size=loaded.batch_size,
            num_workers=num_workers,
        )
    except KeyboardInterrupt:
        if process.rank == 0:
            print(
                "stopped" + (f"; repeat the command to resume from {output}.part" if is_file else ""), file=sys.stderr
            )
        raise typer.Exit(130) from None
    if summary is None:
        return
    if output:
        with suppress(OSError):  # all is written, even if stderr is closed
            print(f"{summary.captioned} captioned, {summary.failed} failed", file=sys.stderr)
    if summary.failed:
        raise typer.Exit(3)
