"""`captioner tokenizer`: train a tokenizer."""

from pathlib import Path
from typing import Annotated

import typer


def tokenizer(
    data: Annotated[str, typer.Argument(help="Captions: any source that training accepts.")],
    output: Annotated[Path, typer.Argument(help="Folder to write tokenizer.model into.")],
    split: Annotated[str | None, typer.Option(help="Use this split only.")] = None,
    vocab_size: Annotated[int, typer.Option(min=8)] = 4000,
    model_type: Annotated[str, typer.Option(help="bpe, unigram, char or word.")] = "bpe",
    lowercase: Annotated[bool, typer.Option(help="Fold case before splitting.")] = True,
) -> None:
    """Train a SentencePiece tokenizer on captions, in any script."""
    from captioner.config import SourceConfig, TokenizerConfig, validated
    from captioner.data.sources import iter_samples
    from captioner.data.tokenizer_training import train_tokenizer

    source = validated(SourceConfig, {"path": data, "split": split}, "data")
    samples = iter_samples(source, lambda skip: None)
    captions = (caption for sample in samples for caption in sample.captions)
    values = {"vocab_size": vocab_size, "model_type": model_type, "lowercase": lowercase}
    settings = validated(TokenizerConfig, values, "tokenizer")
    train_tokenizer(captions, settings, output / "tokenizer.model")
