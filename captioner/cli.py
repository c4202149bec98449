"""The `captioner` command: one sub-command per job. Each imports what it needs when it runs, so `--help` is quick."""

import codecs
import gc
import os
import sys
import warnings
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captioner.errors import CaptionerError
from captioner.files import check_file, is_plain, reporting, whole_file
from captioner.memory import keep_freed_memory

if TYPE_CHECKING:
    from captioner.infer.captioner import Captioner
    from captioner.train.dry_run import Estimate

# Options that `annotate` and `evaluate` share. Defaults are the model's, or else those of `GenerationOptions`.
Model = Annotated[str | None, typer.Option(help="A folder or a Hugging Face Hub id; default: the bundled model.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...; auto: an accelerator where there is one.")]
Precision = Annotated[
    str, typer.Option(help="fp32, bf16 or fp16; auto: bf16 on an accelerator (fp16 where it has none), fp32 on a CPU.")
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images captioned at once. Default: 16.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Threads that decode images; default: one a core, at most 8.")]
NumBeams = Annotated[int | None, typer.Option(help="Beam width; 1 is greedy. Default: the model's, or 3.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="Longest caption in tokens. Default: the model's, or 40.")]
MinNewTokens = Annotated[int | None, typer.Option(help="Shortest caption in tokens. Default: the model's, or 0.")]
NoRepeatNgramSize = Annotated[
    int | None, typer.Option(help="No n-gram of this many tokens twice. Default: the model's, or 0: off.")
]
LengthPenalty = Annotated[
    float | None, typer.Option(help="Above 0 favours longer captions. Default: the model's, or 1.")
]

# Options that `score` and `evaluate` share.
Metrics = Annotated[
    str | None, typer.Option(help="Comma-separated; default: all that is installed but SPICE, which is slow.")
]
Tokenization = Annotated[
    str, typer.Option(help="ptb: as the official scorer; char: characters, for languages written without spaces.")
]

app = typer.Typer(
    name="captioner",
    help="Learn to describe images, then annotate images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _commands() -> None:
    """Learn to describe images, then annotate images."""
    # Leave stderr to us: the advice of these libraries, which read this when they are imported, is for programmers.
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@app.command()
def score(
    results: Annotated[Path, typer.Argument(help="Generated captions: COCO results, Karpathy json or jsonl.")],
    references: Annotated[Path, typer.Argument(help="Reference captions: COCO captions, Karpathy json or jsonl.")],
    other: Annotated[Path | None, typer.Option(help="A second file of captions, compared by paired bootstrap.")] = None,
    split: Annotated[str | None, typer.Option(help="The split of a Karpathy json to take references from.")] = None,
    metrics: Metrics = None,
    tokenization: Tokenization = "ptb",
    train_captions: Annotated[
        Path | None, typer.Option(help="Captions trained on, for the share of novel ones.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write all numbers as JSON.")] = None,
) -> None:
    """Measure a file of generated captions against references, as the official COCO scorer does."""
    from captioner.metrics.files import by_reference, read_references, read_results, read_training_captions
    from captioner.metrics.report import as_json, print_scores
    from captioner.metrics.score import score_captions

    _check_files(output)
    files = [results] if other is None else [results, other]
    wanted = _metric_names(metrics, tokenization)
    true = read_references(references, split)
    known = None if train_captions is None else read_training_captions(train_captions)
    scores = []
    for path in files:
        try:
            captions = by_reference(read_results(path), true)
            scores.append(
                score_captions(
                    captions, true.captions, metrics=wanted, tokenization=tokenization, training_captions=known
                )
            )
        except CaptionerError as error:
            raise CaptionerError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    if output:
        _write_json(output, as_json(*scores))
    stems = [path.stem for path in files]
    with reporting("stdout"):
        print_scores(stems if len(set(stems)) == len(files) else [str(path) for path in files], scores)


@app.command()
def train(
    config: Annotated[Path, typer.Option("--config", "-c", help="A YAML recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Change the recipe.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from output_dir's last checkpoint.")] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="Build all, try three steps a phase, estimate.")] = False,
) -> None:
    """Train or fine-tune a captioner by a recipe; `accelerate launch train.py` runs it on many processes."""
    from captioner.config import load_config
    from captioner.infer.processes import this_process
    from captioner.train.dry_run import dry_run
    from captioner.train.trainer import train as run

    _refuse_a_lonely_process("train.py")
    is_main = this_process().rank == 0
    recipe = load_config(config, overrides)
    if dry:
        estimate = dry_run(recipe)
        if is_main:
            _print_estimate(estimate)
        return
    best = run(recipe, resume)
    if is_main:
        print(best)


@app.command()
def tokenizer(
    data: Annotated[str, typer.Argument(help="Where the captions are: any source that training reads.")],
    output: Annotated[Path, typer.Argument(help="Folder to write tokenizer.model into.")],
    split: Annotated[str | None, typer.Option(help="Use this split only.")] = None,
    vocab_size: Annotated[int, typer.Option(min=8)] = 4000,
    model_type: Annotated[str, typer.Option(help="bpe, unigram, char or word.")] = "bpe",
    lowercase: Annotated[bool, typer.Option(help="Fold case before splitting.")] = True,
) -> None:
    """Train a SentencePiece tokenizer on captions, in any script."""
    from captioner.config import SourceConfig, TokenizerConfig, validated
    from captioner.data.sources import iter_samples
    from captioner.data.tokenizer import train_tokenizer

    source = validated(SourceConfig, {"path": data, "split": split}, "data")
    samples = iter_samples(source, lambda skip: None)
    captions = (caption for sample in samples for caption in sample.captions)
    values = {"vocab_size": vocab_size, "model_type": model_type, "lowercase": lowercase}
    settings = validated(TokenizerConfig, values, "tokenizer")
    train_tokenizer(captions, settings, output / "tokenizer.model")


@app.command()
def annotate(
    paths: Annotated[list[str], typer.Argument(help="Images, folders (with all that lies in them) and globs.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write records here; default: a table.")] = None,
    output_format: Annotated[str | None, typer.Option("--format", help="jsonl or csv; default: by suffix.")] = None,
    model: Model = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = None,
    num_workers: Workers = None,
    num_beams: NumBeams = None,
    max_new_tokens: MaxNewTokens = None,
    min_new_tokens: MinNewTokens = None,
    no_repeat_ngram_size: NoRepeatNgramSize = None,
    length_penalty: LengthPenalty = None,
    prefix: Annotated[str, typer.Option(help="How every caption starts: 'a photo of'.")] = "",
    banned_word: Annotated[list[str] | None, typer.Option(help="Words that no caption uses; may be repeated.")] = None,
    forced_word: Annotated[list[str] | None, typer.Option(help="Words in every caption; may be repeated.")] = None,
    do_sample: Annotated[bool, typer.Option("--do-sample", help="Draw captions instead of searching.")] = False,
    temperature: Annotated[float | None, typer.Option(help="Sampling: below 1 sharper, above 1 bolder.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sampling: from the k most probable tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sampling: from the tokens that hold this probability.")] = None,
    seed: Annotated[int | None, typer.Option(help="Sampling: the same seed draws the same captions.")] = None,
    num_return_sequences: Annotated[
        int | None, typer.Option(help="Captions an image. Default: the model's, or 1.")
    ] = None,
) -> None:
    """Caption images.

    Without -o: path, tab, caption, one line an image. With -o x.jsonl: one JSON object an image, and the images that
    cannot be read in x.errors.jsonl; a run that was stopped is continued by the same command. With -o to a pipe or a
    device: the same objects as they come, and the images that cannot be read on stderr.

    For 1,000 images or more a short probe chooses what is left open: on a CPU the precision, bf16 where that is faster;
    on an accelerator the batch size.

    Exit status: 0 all captioned, 3 some images failed and the rest are written, 2 usage.
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
    from captioner.hub import digest
    from captioner.infer.captioner import WORTH_TUNING
    from captioner.infer.processes import this_process

    _refuse_a_lonely_process("infer.py")
    process = this_process()
    given = _given(
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
        raise CaptionerError(f"{process.count} processes need an output file to write to together: -o out.jsonl")
    if sys.__stdout__ is None and not output:
        raise CaptionerError("stdout is closed; write to a file with -o")
    is_mine = [process.owns(image) for image in find_images(paths)]
    if not is_mine:
        raise CaptionerError(f"no images in {', '.join(paths)}")
    inputs = inputs_of(paths)
    if precision == "auto" and output and is_file:
        precision = precision_left(output, inputs) or precision  # a run goes on as it began
    captioner = _load_captioner(model, device, precision)
    options = captioner.options(**given, **captioner.spelled(prefix, banned_word or (), forced_word or ()))
    if len(is_mine) >= WORTH_TUNING:
        captioner.tune(options, batch_size)
        if process.rank == 0 and (output or sys.stderr.isatty()):
            print(f"precision {captioner.precision}, batches of {batch_size or captioner.batch_size}", file=sys.stderr)
    sink: Sink
    if output and is_file:
        weights = {"model": captioner.name, "files": digest(captioner.folder), "precision": captioner.precision}
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
            num_workers=num_workers or _default_workers(),
        )
    except KeyboardInterrupt:
        if process.rank == 0:
            print("stopped" + (f"; the same command goes on from {output}.part" if is_file else ""), file=sys.stderr)
        raise typer.Exit(130) from None
    if summary is None:
        return
    if output:
        with suppress(OSError):  # all is written, whatever has become of stderr
            print(f"{summary.captioned} captioned, {summary.failed} failed", file=sys.stderr)
    if summary.failed:
        raise typer.Exit(3)


@app.command()
def evaluate(
    data: Annotated[str, typer.Option(help="Images with captions: any source that training reads.")],
    split: Annotated[str | None, typer.Option(help="The split to measure on.")] = None,
    images: Annotated[
        str | None, typer.Option(help="Folder that image names start from; default: beside DATA.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write all numbers as JSON.")] = None,
    predictions: Annotated[Path | None, typer.Option(help="Write the captions in COCO's results layout.")] = None,
    metrics: Metrics = None,
    tokenization: Tokenization = "ptb",
    model: Model = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = None,
    num_workers: Workers = None,
    num_beams: NumBeams = None,
    max_new_tokens: MaxNewTokens = None,
    min_new_tokens: MinNewTokens = None,
    no_repeat_ngram_size: NoRepeatNgramSize = None,
    length_penalty: LengthPenalty = None,
) -> None:
    """Caption the images of a data set and score the captions against its own.

    What cannot be read is left out of the scores, and named on stderr and in the JSON.

    Exit status: 0 all scored, 3 something was left out, 2 usage.
    """
    from captioner.annotate.evaluate import caption_samples
    from captioner.config import SourceConfig, validated
    from captioner.data.sources import load_samples
    from captioner.metrics.report import as_json, print_scores
    from captioner.metrics.score import score_captions

    given = _given(
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        no_repeat_ngram_size=no_repeat_ngram_size,
        length_penalty=length_penalty,
    )
    wanted = _metric_names(metrics, tokenization)
    probe = "a metric that cannot be had is refused now, not after hours of captioning"
    score_captions({0: probe}, {0: [probe]}, metrics=wanted, tokenization=tokenization)
    _check_files(output, predictions)
    source = {"path": data, "images": images, "split": split, "on_error": "skip"}
    samples, skipped = load_samples(validated(SourceConfig, source, "data"))
    captioner = _load_captioner(model, device, precision)
    captions, failures = caption_samples(
        captioner,
        samples,
        captioner.options(**given),
        batch_size=batch_size or captioner.batch_size,
        num_workers=num_workers or _default_workers(),
    )
    if predictions:
        _write_json(predictions, [{"image_id": image, "caption": caption} for image, caption in captions.items()])
    references: dict[Hashable, tuple[str, ...]] = {s.id: s.captions for s in samples if s.id in captions}
    scores = score_captions(captions, references, metrics=wanted, tokenization=tokenization)
    left_out = {skip.where: skip.reason for skip in skipped} | {each.image: each.message for each in failures}
    if output:
        _write_json(output, as_json(scores) | {"left_out": left_out})
    for where, reason in left_out.items():
        print(f"left out: {where}: {reason}", file=sys.stderr)
    with reporting("stdout"):
        print_scores([captioner.name], [scores])
    if left_out:
        raise typer.Exit(3)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A folder, a Hugging Face Hub id, or `default`: the bundled model.")],
    output: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
) -> None:
    """Write a model as ONNX, to caption without torch: `--model OUT`, or captioner.export.runtime.

    The export is compared with the model, and not written where they disagree.
    """
    from captioner.export.onnx import export_model

    agreement = export_model(model, output, precision)
    print(f"{output}: {agreement.equal_tokens:.1%} of greedy tokens equal, logits within {agreement.difference:.1e}")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A folder or a Hugging Face Hub id.")],
    output: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
) -> None:
    """Write a public checkpoint, a VisionEncoderDecoderModel of ViT or DeiT and GPT-2, as a captioner.

    The two are compared, and nothing is written where their logits differ.
    """
    from captioner.convert import convert_model

    print(f"{output}: logits within {convert_model(source, output):.1e} of those of {source}")


@app.command()
def average(
    models: Annotated[list[str], typer.Argument(help="Two or more of: folder, Hub id, `default`: the bundled model.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; it must not exist.")],
) -> None:
    """Write the model whose weights are the mean of several, which were trained from the same start."""
    from captioner.average import average_models

    average_models(models, output)
    print(f"{output}: the mean of {', '.join(models)}")


def _print_estimate(estimate: "Estimate") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("phase", "parameters that learn", "tokens a second", "steps", "hours")
    for phase in estimate.phases:
        speed, hours = f"{phase.tokens_per_second:,.0f}", f"{phase.hours:.2f}"
        table.add_row(phase.name, f"{phase.learning:,}", speed, f"{phase.steps:,}", hours)
    with reporting("stdout"):
        Console().print(table)
    total = sum(phase.hours for phase in estimate.phases)
    print(
        f"{estimate.parameters:,} parameters; {estimate.memory / 2**30:.1f} GiB of memory; {total:.2f} hours, "
        "validations and the caching of features not counted"
    )


def _refuse_a_lonely_process(script: str) -> None:
    """`accelerate launch --cpu --num_processes N` starts one process, and says nothing, where it is given no MPI."""
    from captioner.infer.processes import COUNT

    several = os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ
    if several and not any(name in os.environ for name in COUNT):
        raise CaptionerError(
            "accelerate launch --cpu started one process of several, since it was given no --mpirun_hostfile; "
            f"without MPI: ACCELERATE_USE_CPU=true torchrun --nproc-per-node N {script} ..."
        )


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _metric_names(chosen: str | None, tokenization: str) -> list[str]:
    from captioner.metrics.score import default_metrics

    return default_metrics(tokenization) if chosen is None else [name.strip() for name in chosen.split(",")]


def _check_files(*paths: Path | None) -> None:
    """Refuse now what could not be written when the work is done."""
    given = [path for path in paths if path is not None]
    for path in given:
        check_file(path)
        if is_plain(path) and [other.resolve() for other in given].count(path.resolve()) > 1:
            raise CaptionerError(f"{path}: named for two outputs")


def _write_json(path: Path, value: Any) -> None:
    import json

    with whole_file(path) as file:
        file.write(json.dumps(value, indent=1) + "\n")


def _default_workers() -> int:
    from captioner.infer.processes import available_cores

    return min(8, available_cores())


def _load_captioner(model: str | None, device: str, precision: str) -> "Captioner":
    from captioner.infer.captioner import Captioner

    if device == "auto" and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        device = "cpu"  # accelerate launch --cpu
    gc.disable()  # what libraries and models make stays, and to look through it again and again takes a second
    try:
        return Captioner.from_pretrained(model, device, precision)
    finally:
        gc.freeze()
        gc.unfreeze()  # the two together make all of it old
        gc.enable()


def main() -> None:
    """Run the command line; a user's mistake costs one line on stderr and exit status 2."""
    keep_freed_memory()
    _open_console()
    status, fault = _run()
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # its reader has seen enough, as `head` has
        status = status or 1
        _close_stdout()
    except OSError as error:
        status, fault = 2, f"stdout: cannot be written: {error.strerror}"
        _close_stdout()
    if fault:
        with suppress(OSError):
            print(f"error: {fault}", file=sys.stderr)
    sys.exit(status)


def _run() -> tuple[int, str]:
    """Gives the exit status, and what went wrong."""
    try:
        app()
    except SystemExit as end:
        return int(end.code or 0), ""
    except CaptionerError as error:
        return 2, str(error)
    except OSError as error:  # a disk that is full, a folder that may not be read
        reason = error.strerror or str(error)
        return 2, f"{error.filename}: {reason}" if error.filename else reason
    return 0, ""


def main_and_leave() -> None:
    """`main`, for a process that captions and does no more: it leaves at once, with nothing to lose.

    An orderly end takes all imported modules apart, which costs a process with torch in it more than a second.
    """
    try:
        main()
    except SystemExit as end:
        with suppress(OSError):
            sys.stderr.flush()
        os._exit(int(end.code or 0))


def _open_console() -> None:
    """Let stdout and stderr take any text, and stand in for those that whoever started us has closed.

    What their encoding lacks is written as \\xe9 or \\u2014. Names of files that are not valid text leave as the bytes
    that they are.
    """
    codecs.register_error("console", _bytes_or_escapes)
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:  # the next file to be opened would get its number
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="console")  # type: ignore[union-attr]


def _bytes_or_escapes(error: UnicodeError) -> tuple[bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    how = ("surrogateescape" if "\udc80" <= character <= "\udcff" else "backslashreplace" for character in text)
    return b"".join(map(lambda character, errors: character.encode("ascii", errors), text, how)), error.end


def _close_stdout() -> None:
    """Drop what stdout cannot take, or Python would try again, and complain, at its end."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
