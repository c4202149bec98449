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


@app.command()
def train(
    config: Annotated[Path, typer.Option("--config", "-c", help="A YAML recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Change the recipe.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from output_dir's last checkpoint.")] = False,
) -> None:
    """Train or fine-tune a captioner by a recipe; `accelerate launch train.py` runs it on many processes."""
    from captioner.config import load_config
    from captioner.train.trainer import train as run

    print(run(load_config(config, overrides), resume))


@app.command()
def tokenizer(
    data: Annotated[str, typer.Argument(help="Where the captions are: any source that training reads.")],
    output: Annotated[Path, typer.Argument(help="Folder to write tokenizer.model into.")],
    split: Annotated[str | None, typer.Option(help="Use this split only.")] = None,
    vocab_size: Annotated[int, typer.Option(min=8)] = 4000,
    model_type: Annotated[str, typer.Option(help="unigram, bpe, char or word.")] = "unigram",
    lowercase: Annotated[bool, typer.Option(help="Fold case before splitting.")] = True,
) -> None:
    """Train a SentencePiece tokenizer on captions, in any script."""
    from captioner.config import SourceConfig, TokenizerConfig
    from captioner.data.sources import iter_samples
    from captioner.data.tokenizer import train_tokenizer

    samples = iter_samples(SourceConfig(path=data, split=split), lambda skip: None)
    captions = (caption for sample in samples for caption in sample.captions)
    settings = TokenizerConfig(vocab_size=vocab_size, model_type=model_type, lowercase=lowercase)  # type: ignore[arg-type]
    train_tokenizer(captions, settings, output / "tokenizer.model")


def main() -> None:
    """Run the command line; a user's mistake costs one line on stderr and exit status 2."""
    try:
        app()
    except CaptionerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
