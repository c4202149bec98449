"""The `captioner` command: one module per job. Each imports what it needs when it runs, so `--help` is quick."""

import os
import sys
import warnings
from contextlib import suppress
from typing import Annotated

import typer

from captioner import __version__
from captioner.cli import (
    annotate,
    average,
    calibrate,
    convert,
    dataset,
    env,
    evaluate,
    export,
    lint,
    push,
    recipes,
    review,
    score,
    serve,
    tokenizer,
    train,
    write,
)
from captioner.cli.console import close_stdout, open_console
from captioner.cpu.memory import keep_freed_memory
from captioner.errors import CaptionerError

NOT_ON_SERVERS = ("torch", "torchvision", "transformers", "timm", "accelerate", "datasets", "safetensors", "pyarrow")
"""Libraries that the distribution captioner-onnx (packaging/onnx) installs without."""

app = typer.Typer(
    name="captioner",
    help="Learn to describe images, then annotate images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Learn to describe images, then annotate images."""
    # Keep library warnings, which address programmers, off stderr. The libraries read these variables on import.
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


for job in (
    score.score,
    train.train,
    tokenizer.tokenizer,
    annotate.annotate,
    write.write,
    lint.lint,
    evaluate.evaluate,
    calibrate.calibrate,
    export.export,
    convert.convert,
    average.average,
    push.push,
    recipes.recipes,
    review.review,
    env.env,
    serve.serve,
):
    app.command()(job)
app.add_typer(dataset.app, name="dataset")


def main() -> None:
    """Run the command line; a user's mistake costs one line on stderr and exit status 2."""
    keep_freed_memory()
    open_console()
    status, message = _run()
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader stopped early, as `head` does
        status = status or 1
        close_stdout()
    except OSError as error:
        status, message = 2, f"stdout: cannot be written: {error.strerror}"
        close_stdout()
    if message:
        with suppress(OSError):
            print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def _run() -> tuple[int, str]:
    """Run the command; return its exit status and error message."""
    try:
        app()
    except SystemExit as end:
        return int(end.code or 0), ""
    except CaptionerError as error:
        return 2, str(error)
    except ModuleNotFoundError as error:
        if error.name not in NOT_ON_SERVERS:
            raise
        return 2, f"this needs {error.name}, which captioner-onnx does without: pip install captioner"
    except OSError as error:  # a full disk, an unreadable folder
        reason = error.strerror or str(error)
        return 2, f"{error.filename}: {reason}" if error.filename else reason
    return 0, ""


def main_without_teardown() -> None:
    """Run `main`, then end the process without Python's teardown, which takes over a second once torch is imported."""
    try:
        main()
    except SystemExit as end:
        with suppress(OSError):
            sys.stderr.flush()
        os._exit(int(end.code or 0))
