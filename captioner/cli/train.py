"""`captioner train`: train a captioner."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from captioner.cli.recipes import find_recipe
from captioner.cli.shared import check_launch
from captioner.errors import CaptionerError
from captioner.files import reporting

if TYPE_CHECKING:
    from captioner.training.dry_run import Estimate


def train(
    config: Annotated[
        Path, typer.Option("--config", "-c", help="A YAML recipe, or a name that `captioner recipes` lists.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Change the recipe.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from output_dir's last checkpoint.")] = False,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Try three steps of each phase and estimate the time.")
    ] = False,
) -> None:
    """Train or fine-tune a captioner from a recipe; `accelerate launch train.py` uses several processes."""
    from captioner.config import load_config
    from captioner.distributed import this_process
    from captioner.training.dry_run import dry_run
    from captioner.training.trainer import train as run

    check_launch("train.py")
    is_main = this_process().rank == 0
    recipe = load_config(find_recipe(config), overrides)
    if dry:
        estimate = dry_run(recipe)
        if is_main:
            _print_estimate(estimate)
        return
    best = run(recipe, resume)
    if is_main:
        _write_graphs(best)
        print(best)


def _write_graphs(best: Path) -> None:
    """Let ONNX Runtime caption with the model on a CPU, if what writes graphs is installed."""
    if find_spec("onnx") is None or find_spec("onnxscript") is None:
        return
    from captioner.export.onnx import export_in_place

    try:
        export_in_place(best)
    except CaptionerError as error:  # the training is good without
        print(f"no ONNX graphs: {error}", file=sys.stderr)


def _print_estimate(estimate: "Estimate") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("phase", "trainable parameters", "tokens a second", "steps", "hours")
    for phase in estimate.phases:
        speed, hours = f"{phase.tokens_per_second:,.0f}", f"{phase.hours:.2f}"
        table.add_row(phase.name, f"{phase.learning:,}", speed, f"{phase.steps:,}", hours)
    with reporting("stdout"):
        Console().print(table)
    total = sum(phase.hours for phase in estimate.phases)
    print(
        f"{estimate.parameters:,} parameters; {estimate.memory / 2**30:.1f} GiB of memory; {total:.2f} hours, "
        "without validation and feature caching"
    )
