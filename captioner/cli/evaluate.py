"""`captioner evaluate`: caption a data set and score the captions."""

import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated

import typer

from captioner.cli.shared import (
    Adapter,
    Backend,
    BatchSize,
    Device,
    LengthPenalty,
    MaxNewTokens,
    Metrics,
    MinNewTokens,
    Model,
    NoRepeatNgramSize,
    NumBeams,
    Precision,
    Tokenization,
    Workers,
    check_files,
    default_workers,
    given_options,
    load_captioner,
    metric_names,
    write_json,
)
from captioner.files import reporting


def evaluate(
    data: Annotated[str, typer.Option(help="Images with captions: any source that training accepts.")],
    split: Annotated[str | None, typer.Option(help="The split to measure on.")] = None,
    images: Annotated[
        str | None, typer.Option(help="Folder that image names are relative to; default: beside DATA.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write all numbers as JSON.")] = None,
    predictions: Annotated[Path | None, typer.Option(help="Write the captions in COCO's results layout.")] = None,
    metrics: Metrics = None,
    tokenization: Tokenization = "ptb",
    model: Model = None,
    adapter: Adapter = None,
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
) -> None:
    """Caption the images of a data set and score the captions against its own.

    Images and captions that cannot be read are left out of the scores, and listed on stderr and in the JSON.

    Exit status: 0 all images scored, 3 some left out, 2 usage error.
    """
    from captioner.annotate.evaluate import caption_samples
    from captioner.config import SourceConfig, validated
    from captioner.data.sources import load_samples
    from captioner.metrics.report import as_json, print_scores
    from captioner.metrics.score import score_captions

    given = given_options(
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        no_repeat_ngram_size=no_repeat_ngram_size,
        length_penalty=length_penalty,
    )
    wanted = metric_names(metrics, tokenization)
    probe = "an unavailable metric is an error now, not after hours of captioning"
    score_captions({0: probe}, {0: [probe]}, metrics=wanted, tokenization=tokenization)
    check_files(output, predictions)
    source = {"path": data, "images": images, "split": split, "on_error": "skip"}
    samples, skipped = load_samples(validated(SourceConfig, source, "data"))
    captioner = load_captioner(model, device, precision, adapter, backend=backend)
    captions, failures = caption_samples(
        captioner,
        samples,
        captioner.options(**given),
        batch_size=batch_size or captioner.batch_size,
        num_workers=num_workers or default_workers(),
    )
    if predictions:
        write_json(predictions, [{"image_id": image, "caption": caption} for image, caption in captions.items()])
    references: dict[Hashable, tuple[str, ...]] = {s.id: s.captions for s in samples if s.id in captions}
    scores = score_captions(captions, references, metrics=wanted, tokenization=tokenization)
    left_out = {skip.where: skip.reason for skip in skipped} | {each.image: each.message for each in failures}
    if output:
        write_json(output, as_json(scores) | {"left_out": left_out})
    for where, reason in left_out.items():
        print(f"left out: {where}: {reason}", file=sys.stderr)
    with reporting("stdout"):
        print_scores([captioner.name], [scores])
    if left_out:
        raise typer.Exit(3)
