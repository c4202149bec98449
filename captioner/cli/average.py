"""`captioner average`: average the weights of models."""

from pathlib import Path
from typing import Annotated

import typer


def average(
    models: Annotated[
        list[str], typer.Argument(help="Two or more folders or Hub ids; `default` is the bundled model.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; it must not exist.")],
) -> None:
    """Average the weights of models that were trained from the same start."""
    from captioner.hub.average import average_models

    average_models(models, output)
    print(f"{output}: the mean of {', '.join(models)}")
