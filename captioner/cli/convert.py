"""`captioner convert`: convert a public checkpoint."""

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[str, typer.Argument(help="A folder or a Hugging Face Hub id.")],
    output: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
) -> None:
    """Write a public checkpoint, a VisionEncoderDecoderModel of ViT or DeiT and GPT-2, as a captioner.

    The two are compared, and nothing is written where their logits differ.
    """
    from captioner.convert import convert_model

    print(f"{output}: logits within {convert_model(source, output):.1e} of those of {source}")
