"""`captioner average`: average the weights of models."""

from pathlib import Path
from typing import Annotated

import typer


def average(
    models: Annotated[list[str], typer.Argument(help="Two or more of: folder, Hub id, `default`: the bundled model.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; it must not exist.")],
) -> None:
    """Write the model whose weights are the mean of several, which were trained from the same start."""
    from captioner.hub.average import average_models

    average_models(models, output)
    print(f"{output}: the mean of {', '.join(models)}")
