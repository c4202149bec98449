"""`captioner dataset`: versioned data sets of what people have reviewed."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Build a data set of reviewed captions to train on; describe, compare and check data sets.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(help="A data set, as `captioner dataset build` makes one.")]


@app.command()
def build(
    project: Annotated[Path, typer.Argument(help="A project file, such as album.captions.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new folder, such as data/v2.")],
    validation: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share of the images to validate on, chosen by their bytes.")
    ] = 0.1,
    person_weight: Annotated[
        float, typer.Option(min=0.001, max=1000.0, help="What a person's own caption counts, beside an accepted one.")
    ] = 2.0,
) -> None:
    """Write the accepted and edited captions of a project as a data set that recipes train on.

    Exit status: 0 all written, 3 some images could not be read and are listed on stderr, 2 usage error.
    """
    from captioner.annotate import reviewed_dataset
    from captioner.annotate.project import Project

    left: list[str] = []

    def report(name: str, reason: str) -> None:
        left.append(name)
        print(f"left out {name!r}: {reason}", file=sys.stderr)

    with Project(project) as opened:
        manifest = reviewed_dataset.build(opened, output, share=validation, person_weight=person_weight, report=report)
    parts = ", ".join(f"{count:,} {split}" for split, count in manifest["by_split"].items())
    print(f"{output}: {parts}", file=sys.stderr)
    if len(manifest["by_split"]) < 2 and validation > 0:
        print("one part is empty: review more photos, or change --validation", file=sys.stderr)
    if left:
        raise typer.Exit(3)


@app.command()
def stats(
    path: Annotated[Path, typer.Argument(help="A data set; or a project, for what each reviewer did and agreed on.")],
) -> None:
    """Print counts as JSON: of a data set its images, words and people; of a project decisions and agreement."""
    from captioner.annotate import reviewed_dataset
    from captioner.annotate.agreement import agreement
    from captioner.annotate.project import Project

    if path.is_file():
        with Project(path) as opened:
            _print(agreement(opened).as_json())
    else:
        _print(reviewed_dataset.stats(path))


@app.command()
def diff(before: Folder, after: Folder) -> None:
    """Print what changed from one data set to another as JSON: images added and removed, captions changed."""
    from captioner.annotate import reviewed_dataset

    _print(reviewed_dataset.diff(before, after))


@app.command()
def validate(path: Folder) -> None:
    """Check that rows, captions and photos are what they were when the data set was built.

    Exit status: 0 all is well, 1 faults were found and are printed, 2 usage error.
    """
    from captioner.annotate import reviewed_dataset

    faults = reviewed_dataset.validate(path)
    for fault in faults:
        print(fault)
    if faults:
        raise typer.Exit(1)


def _print(value: Any) -> None:
    print(json.dumps(value, indent=1))
