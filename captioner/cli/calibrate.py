"""`captioner calibrate`: make a model's confidences probabilities."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from captioner.cli.shared import (
    BatchSize,
    Chart,
    DataImages,
    Device,
    NumBeams,
    Precision,
    Tokenization,
    Workers,
    check_files,
    default_workers,
    given_options,
    load_captioner,
    write_image,
    write_json,
)
from captioner.errors import CaptionerError
from captioner.files import reporting


def calibrate(
    model: Annotated[str, typer.Argument(help="A folder, a training run, or `default`: the bundled model.")],
    data: Annotated[str, typer.Option(help="Images with two captions or more: any source that training accepts.")],
    split: Annotated[str | None, typer.Option(help="The split to fit and measure on: not one of training.")] = None,
    images: DataImages = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the calibration here; default: into the model's folder."),
    ] = None,
    chart: Chart = None,
    tokenization: Tokenization = "ptb",
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = None,
    num_workers: Workers = None,
    num_beams: NumBeams = None,
) -> None:
    """Fit a model's confidence: the probability that a caption is as good as half of all people's captions.

    Fits on every second image and measures on the others. The model's folder keeps the result, calibration.json, and
    exports take it along; training does not, because it changes what confidences mean.

    Exit status: 0 all images used, 3 some left out, 2 usage error.
    """
    from captioner.annotate.calibrate import calibrate
    from captioner.annotate.trust_charts import trust_chart
    from captioner.config import SourceConfig, validated
    from captioner.data.sources import load_samples
    from captioner.hub.find import find_model
    from captioner.infer.calibration import FILE
    from captioner.metrics.audit_report import print_trust

    folder, name = find_model(model)
    if output is None and not Path(model).expanduser().is_dir() and model != "default":
        raise CaptionerError(f"{name}: the Hub's cache is not ours to change; name a file with -o")
    target = output or folder / FILE
    check_files(target, chart)
    source = {"path": data, "images": images, "split": split, "on_error": "skip"}
    samples, skipped = load_samples(validated(SourceConfig, source, "data"))
    captioner = load_captioner(model, device, precision)
    options = captioner.options(**given_options(num_beams=num_beams))
    calibration, trust, failures = calibrate(
        captioner,
        samples,
        options,
        tokenization=tokenization,
        batch_size=batch_size or captioner.batch_size,
        num_workers=num_workers or default_workers(),
    )
    about = {
        "data": data,
        "split": split,
        "model": name,
        "num_beams": options.num_beams,
        "acceptable_from_cider": trust.threshold,
    }
    calibration = replace(calibration, fitted_on={**about, **calibration.fitted_on})
    if chart:
        write_image(chart, trust_chart(trust))
    write_json(target, asdict(calibration))
    left_out = {skip.where: skip.reason for skip in skipped} | {each.image: each.message for each in failures}
    for where, reason in left_out.items():
        print(f"left out: {where}: {reason}", file=sys.stderr)
    with reporting("stdout"):
        print_trust(trust)
        print(f"wrote {target}")
    if left_out:
        raise typer.Exit(3)
