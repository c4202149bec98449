"""`captioner score`: score a file of captions."""

from pathlib import Path
from typing import Annotated

import typer

from captioner.cli.shared import Metrics, Tokenization, check_files, metric_names, write_json
from captioner.errors import CaptionerError
from captioner.files import reporting


def score(
    results: Annotated[Path, typer.Argument(help="Generated captions: COCO results, Karpathy json or jsonl.")],
    references: Annotated[Path, typer.Argument(help="Reference captions: COCO captions, Karpathy json or jsonl.")],
    other: Annotated[Path | None, typer.Option(help="A second file of captions, compared by paired bootstrap.")] = None,
    split: Annotated[str | None, typer.Option(help="The split of a Karpathy json to take references from.")] = None,
    metrics: Metrics = None,
    tokenization: Tokenization = "ptb",
    train_captions: Annotated[
        Path | None, typer.Option(help="Training captions; reports the share of novel captions.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write all numbers as JSON.")] = None,
) -> None:
    """Measure a file of generated captions against references, as the official COCO scorer does."""
    from captioner.metrics.files import by_reference, read_references, read_results, read_training_captions
    from captioner.metrics.report import as_json, print_scores
    from captioner.metrics.score import score_captions

    check_files(output)
    files = [results] if other is None else [results, other]
    wanted = metric_names(metrics, tokenization)
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
        write_json(output, as_json(*scores))
    stems = [path.stem for path in files]
    with reporting("stdout"):
        print_scores(stems if len(set(stems)) == len(files) else [str(path) for path in files], scores)
