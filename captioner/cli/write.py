"""`captioner write`: write a project's captions in the format of another program."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from captioner.errors import CaptionerError


def write(
    project: Annotated[Path, typer.Argument(help="A project, as `captioner annotate -o x.captions` makes one.")],
    output_format: Annotated[
        str,
        typer.Option(
            "--format",
            help="jsonl, csv, parquet, coco, coco-results, kohya, fiftyone, roboflow, label-studio, imagefolder, hf, "
            "webdataset, txt, caption, xmp or embedded.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The file or new folder to write. txt, caption, xmp and embedded need none: they go beside or into "
            "the images; with a folder they leave those alone.",
        ),
    ] = None,
    verified: Annotated[
        bool, typer.Option("--verified", help="Only captions that a person wrote or accepted.")
    ] = False,
    prefix: Annotated[str, typer.Option(help="txt, caption: text before each caption.")] = "",
    suffix: Annotated[str, typer.Option(help="txt, caption: text after each caption.")] = "",
    tags: Annotated[bool, typer.Option("--tags", help="txt, caption: append the tags.")] = False,
    overwrite_human: Annotated[
        bool, typer.Option("--overwrite-human", help="txt, caption, xmp, embedded: replace words of people.")
    ] = False,
    shard_mb: Annotated[int, typer.Option(min=1, help="webdataset: size of a shard in megabytes.")] = 1000,
    image_url: Annotated[
        str | None, typer.Option(help="label-studio: what image names are appended to; default: its local files.")
    ] = None,
    push: Annotated[str | None, typer.Option(help="hf: push to this owner/name on the Hub, in place of -o.")] = None,
) -> None:
    """Write a project's captions in the format of another program, as often as you like.

    Every format says in a field who wrote a caption: a model and its version, or a person. Images that were left out
    are listed on stderr.

    Exit status: 0 all written, 3 some images were left out, 2 usage error.
    """
    from captioner.annotate.formats.label_studio import LOCAL_FILES
    from captioner.annotate.pipeline import ESCAPES
    from captioner.annotate.project import Project
    from captioner.annotate.write import FORMATS, WriteOptions, write_project

    if output_format not in FORMATS:
        raise CaptionerError(f"--format {output_format}: unknown; choose one of {', '.join(FORMATS)}")
    if push and output_format != "hf":
        raise CaptionerError("--push needs --format hf")
    left_out = 0

    def report(name: str, reason: str) -> None:
        nonlocal left_out
        left_out += 1
        print(f"{name}: {reason}".translate(ESCAPES), file=sys.stderr)

    url = LOCAL_FILES if image_url is None else image_url
    options = WriteOptions(verified, prefix, suffix, tags, overwrite_human, shard_mb * 1_000_000, url, push)
    with Project(project) as opened:
        count = write_project(opened, output_format, output, report, options)
    print(f"{count - left_out:,} written, {left_out:,} left out", file=sys.stderr)
    if left_out:
        raise typer.Exit(3)
