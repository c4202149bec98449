"""`captioner convert`: convert a public checkpoint."""

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[str, typer.Argument(help="A folder or a Hugging Face Hub id.")],
    output: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
) -> None:
    """Convert a public checkpoint to a captioner: BLIP, GIT or a VisionEncoderDecoderModel.

    Nothing is written unless the logits of the two models agree.
    """
    from captioner.convert import convert_model

    print(f"{output}: logits within {convert_model(source, output):.1e} of those of {source}")
