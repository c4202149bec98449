"""Scores as a table for people and as a JSON object for programs."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from captioner.metrics.score import Comparison, Diversity, Scores

_DIVERSITY_ROWS = (
    ("vocabulary_size", "vocabulary size", "{:d}"),
    ("mean_length", "mean length (tokens)", "{:.2f}"),
    ("distinct_share", "distinct captions", "{:.1%}"),
    ("repeated_share", "captions that occur more than once", "{:.1%}"),
    ("novel_share", "captions not in the training set", "{:.1%}"),
)


WIDTH_OF_FILES = 1000
"""Columns where stdout is no terminal: nothing is shortened."""


def print_scores(names: Sequence[str], results: Sequence[Scores]) -> None:
    """Print one result, or two for the same images with a paired bootstrap test, each named. Names are never cut."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES)
    table = Table(title=f"{len(results[0].image_ids)} images, tokenization {results[0].tokenization}")
    table.add_column("metric")
    for name in names:
        table.add_column(Text(name), justify="right", overflow="fold")
        table.add_column("95 % interval", justify="center", no_wrap=True)
    corpora, intervals = [scores.corpus for scores in results], [scores.intervals() for scores in results]
    for metric in corpora[0]:
        cells = [metric]
        for corpus, interval in zip(corpora, intervals, strict=True):
            cells += [f"{corpus[metric]:.4f}", "{:.4f} .. {:.4f}".format(*interval[metric])]
        table.add_row(*cells)
    console.print(table)
    if len(results) == 2:
        console.print(Text(f"{names[0]} - {names[1]}, paired bootstrap"), soft_wrap=True)
        console.print(_comparison_table(results[0].compared_with(results[1])))
    console.print(_diversity_table(names, [scores.diversity for scores in results]))


def _comparison_table(comparisons: Mapping[str, Comparison]) -> Table:
    table = Table("metric")
    table.add_column("difference", justify="right")
    table.add_column("95 % interval", justify="center")
    table.add_column("p", justify="right")
    for metric, compared in comparisons.items():
        interval = "{:+.4f} .. {:+.4f}".format(*compared.interval)
        table.add_row(metric, f"{compared.difference:+.4f}", interval, f"{compared.p_value:.3f}")
    return table


def _diversity_table(names: Sequence[str], results: Sequence[Diversity]) -> Table:
    table = Table("captions")
    for name in names:
        table.add_column(Text(name), overflow="fold")
    for field, label, form in _DIVERSITY_ROWS:
        values = [getattr(diversity, field) for diversity in results]
        if None not in values:
            table.add_row(label, *(form.format(value) for value in values))
    return table


def as_json(scores: Scores, other: Scores | None = None) -> dict[str, Any]:
    """Everything that is known of one result, or of two and their differences, as JSON takes it."""
    report: dict[str, Any] = {"images": len(scores.image_ids), "tokenization": scores.tokenization}
    report |= _result(scores)
    if other is not None:
        report["other"] = _result(other)
        report["comparison"] = {
            name: {"difference": c.difference, "low": c.interval.low, "high": c.interval.high, "p_value": c.p_value}
            for name, c in scores.compared_with(other).items()
        }
    return report


def _result(scores: Scores) -> dict[str, Any]:
    intervals, per_image = scores.intervals(), scores.per_image
    return {
        "scores": {
            name: {"score": value, "low": intervals[name].low, "high": intervals[name].high}
            for name, value in scores.corpus.items()
        },
        "diversity": scores.diversity._asdict(),
        "per_image": {
            str(image): {name: float(values[i]) for name, values in per_image.items()}
            for i, image in enumerate(scores.image_ids)
        },
    }
