"""`captioner push`: publish a model on the Hugging Face Hub."""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer


def push(
    model: Annotated[str, typer.Argument(metavar="RUN", help="A training's folder, or a model's.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository; created if there is none.")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository as a private one.")] = False,
    license_id: Annotated[
        str | None, typer.Option("--license", help="The model's licence by its name on the Hub, such as apache-2.0.")
    ] = None,
    photos: Annotated[
        bool, typer.Option("--photos/--no-photos", help="Show some validation photos with captions on the card.")
    ] = True,
    graphs: Annotated[
        bool, typer.Option("--graphs", help="Add graphs, with which captioner captions on a CPU without torch.")
    ] = False,
) -> None:
    """Publish a model on the Hugging Face Hub, with a card made from its training.

    Whoever has transformers and timm can load it without captioner (trust_remote_code=True). Log in first with
    `hf auth login`, or set HF_TOKEN.
    """
    from captioner.decoding.options import DEFAULT_NUM_BEAMS, GenerationOptions
    from captioner.hub.publish import prepare_upload, upload
    from captioner.hub.run_card import SAMPLES

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        search = {"num_beams": DEFAULT_NUM_BEAMS, "max_new_tokens": GenerationOptions.max_new_tokens}
        prepare_upload(model, folder, repository, search, license_id, photos)
        if graphs:
            from captioner.export.onnx import export_in_place

            export_in_place(folder)
        if shown := sorted((folder / SAMPLES).glob("*.jpg")):
            print(f"publishes {len(shown)} validation photos (--no-photos leaves them out)", file=sys.stderr)
        print(upload(folder, repository, private))
