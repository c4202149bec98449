"""Option types and helpers that several commands share."""

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captioner.errors import CaptionerError
from captioner.files import check_file, is_plain, whole_file

if TYPE_CHECKING:
    from PIL import Image

    from captioner.infer.captioner import Captioner

# Options of `annotate` and `evaluate`. Unset ones default to the model's, else to those of `GenerationOptions`.
Model = Annotated[str | None, typer.Option(help="A folder or a Hugging Face Hub id; default: the bundled model.")]
Adapter = Annotated[
    str | None, typer.Option(help="A LoRA adapter to merge into the model: PEFT's folder, a training's, or a Hub id.")
]
Prompt = Annotated[str | None, typer.Option(help="For a large image-text model: how it is asked to describe a photo.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the Python code that an image-text model brings along.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...; auto: an accelerator where there is one.")]
Precision = Annotated[
    str, typer.Option(help="fp32, bf16 or fp16; auto: bf16 on an accelerator (fp16 where it has none), fp32 on a CPU.")
]
Backend = Annotated[
    str,
    typer.Option(
        help="torch or onnx; auto: ONNX Runtime on a CPU if the model has graphs (captioner export), else torch."
    ),
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images captioned at once. Default: 16.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Threads that decode images; default: one per core, at most 8.")
]
NumBeams = Annotated[int | None, typer.Option(help="Beam width; 1 is greedy. Default: the model's, or 3.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="Longest caption in tokens. Default: the model's, or 40.")]
MinNewTokens = Annotated[int | None, typer.Option(help="Shortest caption in tokens. Default: the model's, or 0.")]
NoRepeatNgramSize = Annotated[
    int | None, typer.Option(help="Never repeat an n-gram of this many tokens. Default: the model's, or 0 (off).")
]
LengthPenalty = Annotated[
    float | None, typer.Option(help="Above 0 favours longer captions. Default: the model's, or 1.")
]
NeutralPeople = Annotated[
    bool, typer.Option("--neutral-people", help="Write a person, a child, people instead of gendered words (English).")
]

# Options of `score` and `evaluate`.
Metrics = Annotated[
    str | None, typer.Option(help="Comma-separated; default: all installed metrics except SPICE, which is slow.")
]
Tokenization = Annotated[
    str, typer.Option(help="ptb, as the official scorer; or char (characters), for languages written without spaces.")
]


# Options of `evaluate` and `calibrate`.
DataImages = Annotated[str | None, typer.Option(help="Folder that image names are relative to; default: beside DATA.")]
Chart = Annotated[Path | None, typer.Option(help="Draw reliability and risk against coverage, as PNG or JPEG.")]


def check_launch(script: str) -> None:
    """Raise CaptionerError if `accelerate launch --cpu --num_processes N` started a single process, as without MPI."""
    from captioner.distributed import COUNT

    several = os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ
    if several and not any(name in os.environ for name in COUNT):
        raise CaptionerError(
            "accelerate launch --cpu started only one of several processes, because --mpirun_hostfile is missing; "
            f"without MPI, use ACCELERATE_USE_CPU=true torchrun --nproc-per-node N {script} ..."
        )


def given_options(**options: Any) -> dict[str, Any]:
    """Drop the options that the user left unset."""
    return {name: value for name, value in options.items() if value is not None}


def metric_names(chosen: str | None, tokenization: str) -> list[str]:
    from captioner.metrics.score import default_metrics

    return default_metrics(tokenization) if chosen is None else [name.strip() for name in chosen.split(",")]


def check_files(*paths: Path | None) -> None:
    """Check before the work that its results can be written afterwards."""
    given = [path for path in paths if path is not None]
    for path in given:
        check_file(path)
        if is_plain(path) and [other.resolve() for other in given].count(path.resolve()) > 1:
            raise CaptionerError(f"{path}: named for two outputs")


def write_json(path: Path, value: Any) -> None:
    import json

    with whole_file(path) as file:
        file.write(json.dumps(value, indent=1) + "\n")


def write_image(path: Path, image: "Image.Image") -> None:
    """Write a picture in the format that its suffix names, PNG where it names none."""
    import io

    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG")
    with whole_file(path) as file:
        file.buffer.write(buffer.getvalue())


def default_workers() -> int:
    from captioner.distributed import available_cores

    return min(8, available_cores())


def load_captioner(
    model: str | None,
    device: str,
    precision: str,
    adapter: str | None = None,
    prompt: str | None = None,
    trust_remote_code: bool = False,
    backend: str = "auto",
) -> "Captioner":
    from captioner.infer.captioner import Captioner

    if device == "auto" and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        device = "cpu"  # accelerate launch --cpu
    gc.disable()  # imports and weights are permanent; scanning them again and again takes a second
    try:
        return Captioner.from_pretrained(
            model,
            device=device,
            dtype=precision,
            adapter=adapter,
            prompt=prompt,
            trust_remote_code=trust_remote_code,
            backend=backend,
        )
    finally:
        gc.freeze()
        gc.unfreeze()  # together they move everything to the oldest generation
        gc.enable()
