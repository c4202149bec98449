"""`captioner lint`: list captions that break accessibility practice."""

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer


def lint(
    project: Annotated[Path, typer.Argument(help="A project, as `captioner annotate -o x.captions` makes one.")],
    max_characters: Annotated[int, typer.Option(min=1, help="Longest text that is fine.")] = 125,
) -> None:
    """List captions that break accessibility practice: image, rule and particulars, a line each, separated by tabs.

    Rules: too-long, file-name, placeholder, states-the-obvious, capitals, no-sentence, no-caption, same-text,
    look-alikes.

    Exit status: 0 nothing found, 3 something found, 2 usage error.
    """
    from captioner.annotate.lint import lint
    from captioner.annotate.pipeline import ESCAPES
    from captioner.annotate.project import Project

    counts: Counter[str] = Counter()
    with Project(project) as opened:
        for problem in lint(opened, max_characters):
            counts[problem.rule] += 1
            print(*(part.translate(ESCAPES) for part in problem), sep="\t")
    found = ", ".join(f"{count:,} {rule}" for rule, count in counts.most_common())
    print(found or "nothing found", file=sys.stderr)
    if counts:
        raise typer.Exit(3)
