"""`captioner export`: export a model to ONNX."""

from pathlib import Path
from typing import Annotated

import typer

from captioner.cli.shared import Adapter
from captioner.errors import CaptionerError


def export(
    model: Annotated[str, typer.Argument(help="A folder, a Hugging Face Hub id, or `default`: the bundled model.")],
    output: Annotated[Path | None, typer.Argument(help="The folder to write; it must not exist.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
    adapter: Adapter = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Write fp32 graphs beside the model's weights, which they read.")
    ] = False,
) -> None:
    """Export a model to ONNX, to caption without torch (`--model OUT`, or `Captioner.from_pretrained(OUT)` in Python).

    Nothing is written unless the export agrees with the model.
    """
    if in_place == (output is not None):
        raise CaptionerError("export needs either an output folder or --in-place")
    if in_place and (precision != "fp32" or adapter is not None):
        raise CaptionerError(
            "--in-place writes the model itself in fp32; --precision and --adapter need an output folder"
        )
    from captioner.export.onnx import export_in_place, export_model

    agreement = export_model(model, output, precision, adapter) if output is not None else export_in_place(model)
    equal, difference = f"{agreement.equal_tokens:.1%}", f"{agreement.difference:.1e}"
    print(f"{output or model}: {equal} of greedy tokens equal, logits within {difference}")
