"""`captioner annotate`: caption images."""

import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from captioner.cli.shared import (
    Adapter,
    BatchSize,
    Device,
    LengthPenalty,
    MaxNewTokens,
    MinNewTokens,
    Model,
    NoRepeatNgramSize,
    NumBeams,
    Precision,
    Workers,
    check_launch,
    default_workers,
    given_options,
    load_captioner,
)
from captioner.errors import CaptionerError
from captioner.files import is_plain


def annotate(
    paths: Annotated[list[str], typer.Argument(help="Images, folders (with subfolders) and globs.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write records to this file; default: print path and caption.")
    ] = None,
    output_format: Annotated[str | None, typer.Option("--format", help="jsonl or csv; default: by suffix.")] = None,
    model: Model = None,
    adapter: Adapter = None,
    device: Device = "auto",
    precision: Precision = "auto",
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
) -> None:
    """Caption images.

    Without -o, print path, tab and caption, one line per image. With -o x.jsonl, write one JSON object per image, and
    list unreadable images in x.errors.jsonl; to resume a stopped run, repeat the command. If -o names a pipe or a
    device, write the objects as they are made, and unreadable images to stderr.

    For 1,000 images or more, a short probe chooses what you left open: on a CPU the precision (bf16 if it is faster),
    on an accelerator the batch size.

    Exit status: 0 all images captioned, 3 some images failed, 2 usage error.
    """
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
    from captioner.annotate.paths import find_images
    from captioner.distributed import this_process
    from captioner.hub.adapters import find_adapter
    from captioner.hub.find import digest
    from captioner.infer.captioner import WORTH_TUNING

    check_launch("infer.py")
    process = this_process()
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
    if output_format and not output:
        raise CaptionerError("--format needs an output file (-o)")
    chosen_format = choose_format(output, output_format) if output else ""
    is_file = output is not None and is_plain(output)
    if process.count > 1 and not is_file:
        raise CaptionerError(f"{process.count} processes need an output file that they write together: -o out.jsonl")
    if sys.__stdout__ is None and not output:
        raise CaptionerError("stdout is closed; write to a file with -o")
    is_mine = [process.owns(image) for image in find_images(paths)]
    if not is_mine:
        raise CaptionerError(f"no images in {', '.join(paths)}")
    inputs = inputs_of(paths)
    if precision == "auto" and output and is_file:
        precision = precision_left(output, inputs) or precision  # a resumed run keeps its precision
    captioner = load_captioner(model, device, precision, adapter)
    options = captioner.options(**given, **captioner.word_options(prefix, banned_word or (), forced_word or ()))
    if len(is_mine) >= WORTH_TUNING:
        captioner.tune(options, batch_size)
        if process.rank == 0 and (output or sys.stderr.isatty()):
            print(f"precision {captioner.precision}, batches of {batch_size or captioner.batch_size}", file=sys.stderr)
    sink: Sink
    if output and is_file:
        weights = {"model": captioner.name, "files": digest(captioner.folder), "precision": captioner.precision}
        if adapter:
            weights["adapter"] = digest(find_adapter(adapter)[0])
        sink = OutputFile(output, chosen_format, weights | {"options": asdict(options)}, inputs, process)
    else:
        sink = stream_to(output, chosen_format) if output else table()
    try:
        summary = annotate(
            captioner,
            lambda: find_images(paths),
            options,
            sink,
            process,
            total=sum(is_mine),
            batch_size=batch_size or captioner.batch_size,
            num_workers=num_workers or default_workers(),
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
