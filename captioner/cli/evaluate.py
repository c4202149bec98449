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
    Chart,
    DataImages,
    Device,
    LengthPenalty,
    MaxNewTokens,
    Metrics,
    MinNewTokens,
    Model,
    NeutralPeople,
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
    write_image,
    write_json,
)
from captioner.files import reporting


def evaluate(
    data: Annotated[str, typer.Option(help="Images with captions: any source that training accepts.")],
    split: Annotated[str | None, typer.Option(help="The split to measure on.")] = None,
    images: DataImages = None,
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
    neutral_people: NeutralPeople = False,
    chart: Chart = None,
) -> None:
    """Caption the images of a data set and score the captions against its own.

    Also prints how far confidences can be trusted, if images have two captions or more, and how gendered words compare
    with the captions of the data (in English). With --neutral-people, these are made neutral before scoring.

    Images and captions that cannot be read are left out of the scores, and listed on stderr and in the JSON.

    Exit status: 0 all images scored, 3 some left out, 2 usage error.
    """
    from captioner.annotate.calibrate import trust_of
    from captioner.annotate.evaluate import caption_samples
    from captioner.annotate.trust_charts import trust_chart
    from captioner.config import SourceConfig, validated
    from captioner.data.sources import load_samples
    from captioner.metrics.audit_report import audit_as_json, print_audit, print_trust, trust_as_json
    from captioner.metrics.gender import audit_gender
    from captioner.metrics.gendered_words import neutralized
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
    check_files(output, predictions, chart)
    source = {"path": data, "images": images, "split": split, "on_error": "skip"}
    samples, skipped = load_samples(validated(SourceConfig, source, "data"))
    captioner = load_captioner(model, device, precision, adapter, backend=backend)
    captions, failures = caption_samples(
        captioner,
        samples,
        captioner.options(**given, **captioner.word_options(neutral_people=neutral_people)),
        batch_size=batch_size or captioner.batch_size,
        num_workers=num_workers or default_workers(),
    )
    texts = {image: caption.text for image, caption in captions.items()}
    if predictions:
        write_json(predictions, [{"image_id": image, "caption": text} for image, text in texts.items()])
    references: dict[Hashable, tuple[str, ...]] = {s.id: s.captions for s in samples if s.id in captions}
    if neutral_people:
        references = {image: tuple(map(neutralized, own)) for image, own in references.items()}
    scores = score_captions(texts, references, metrics=wanted, tokenization=tokenization)
    has_two = any(len(own) > 1 for own in references.values())
    trust = trust_of(captions, references, tokenization) if has_two else None
    audit = audit_gender(texts, references) if tokenization == "ptb" else None
    left_out = {skip.where: skip.reason for skip in skipped} | {each.image: each.message for each in failures}
    if output:
        report = as_json(scores) | {"left_out": left_out}
        report |= {"confidence": trust_as_json(trust)} if trust else {}
        write_json(output, report | ({"gender": audit_as_json(audit)} if audit else {}))
    if chart and trust:
        write_image(chart, trust_chart(trust))
    for where, reason in left_out.items():
        print(f"left out: {where}: {reason}", file=sys.stderr)
    with reporting("stdout"):
        print_scores([captioner.name], [scores])
        if trust:
            print_trust(trust)
        if audit:
            print_audit(audit)
    if left_out:
        raise typer.Exit(3)
