"""`captioner export`: export a model to ONNX."""

from pathlib import Path
from typing import Annotated

import typer

from captioner.cli.shared import Adapter


def export(
    model: Annotated[str, typer.Argument(help="A folder, a Hugging Face Hub id, or `default`: the bundled model.")],
    output: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
    adapter: Adapter = None,
) -> None:
    """Export a model to ONNX, to caption without torch (`--model OUT`, or `Captioner.from_pretrained(OUT)` in Python).

    Nothing is written unless the export agrees with the model.
    """
    from captioner.export.onnx import export_model

    agreement = export_model(model, output, precision, adapter)
    print(f"{output}: {agreement.equal_tokens:.1%} of greedy tokens equal, logits within {agreement.difference:.1e}")
