"""The `captioner` command: one sub-command per job. Each imports what it needs when it runs, so `--help` is quick."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from captioner.errors import CaptionerError

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


@app.command()
def score(
    results: Annotated[Path, typer.Argument(help="Generated captions: COCO results, Karpathy json or jsonl.")],
    references: Annotated[Path, typer.Argument(help="Reference captions: COCO captions, Karpathy json or jsonl.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write all numbers as JSON.")] = None,
) -> None:
    """Measure a file of generated captions against references, as the official COCO scorer does."""
    raise CaptionerError("captioner score is being written")


def main() -> None:
    """Run the command line; a user's mistake costs one line on stderr and exit status 2."""
    try:
        app()
    except CaptionerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
