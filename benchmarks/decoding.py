"""Time our decoding against transformers' `generate` on the same model, and print one JSON line.

    CAPTIONER_FLICKR8K=folder python benchmarks/decoding.py
    python benchmarks/decoding.py --photos photos/ --model out/run

Both sides decode the same precomputed encoder outputs in fp32: greedy and with 4 beams, in batches of 8 and of 1. Each
round runs both in turn over all photos; the ratio compares median times. Token ids are compared as well. `stream` is
our decoder over all batches at once, where new images replace finished ones; CPU times are reported too, because other
work on the machine distorts wall-clock times.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch
import transformers
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from captioner.data.images import load_image
from captioner.decoding.options import GenerationOptions
from captioner.decoding.stream import GenerationStream, generate
from captioner.errors import CaptionerError
from captioner.infer.captioner import Captioner
from captioner.infer.torch_backend import TorchBackend

MODES = {"greedy": GenerationOptions(num_beams=1), "beams_4": GenerationOptions(num_beams=4)}
BATCH_SIZES = (8, 1)


def encode(backend: TorchBackend, photos: list[Path]) -> Tensor:
    """Encoder outputs [B, P, D]."""
    with torch.inference_mode():
        pixel_values = (
            torch.from_numpy(backend.preprocessing(load_image(photo)))[None].to(backend.device) for photo in photos
        )
        return torch.cat([backend.model.encoder(pixel_values=pixels).last_hidden_state for pixels in pixel_values])


def ours(model: Any, batches: list[Tensor], options: GenerationOptions) -> list[list[int]]:
    """Tokens of each image's best caption, without the end of sequence."""
    outputs = (generate(model, {"encoder_outputs": BaseModelOutput(batch)}, options) for batch in batches)
    return [list(best.token_ids) for groups in outputs for best, *_ in groups]


def stream(model: Any, batches: list[Tensor], options: GenerationOptions) -> list[list[int]]:
    images = GenerationStream(model, options)
    groups = [group for batch in batches for group in images.add(batch)] + images.finish()
    return [list(best.token_ids) for best, *_ in groups]


def peer(model: Any, batches: list[Tensor], options: GenerationOptions) -> list[list[int]]:
    longest = min(options.max_new_tokens, model.config.max_position_embeddings)
    end, captions = model.config.eos_token_id, []
    for batch in batches:
        outputs = BaseModelOutput(batch)
        rows = model.generate(
            encoder_outputs=outputs, num_beams=options.num_beams, max_new_tokens=longest, do_sample=False
        ).tolist()
        captions += [row[1 : row.index(end)] if end in row else row[1:] for row in rows]
    return captions


def compare(model: Any, features: list[Tensor], options: GenerationOptions, rounds: int) -> dict[str, Any]:
    """Photos a second of each side; the first round is warm-up."""
    seconds: dict[Any, list[float]] = {ours: [], stream: [], peer: []}
    cpu_seconds: dict[Any, list[float]] = {ours: [], stream: [], peer: []}
    captions: dict[Any, list[list[int]]] = {}
    for _ in range(rounds + 1):
        for side in seconds:
            start, cpu_start = time.perf_counter(), time.process_time()
            captions[side] = side(model, features, options)
            seconds[side].append(time.perf_counter() - start)
            cpu_seconds[side].append(time.process_time() - cpu_start)
    photos, taken = len(captions[ours]), {side: median(times[1:]) for side, times in seconds.items()}
    return {
        "ours_photos_per_s": round(photos / taken[ours], 1),
        "stream_photos_per_s": round(photos / taken[stream], 1),
        "peer_photos_per_s": round(photos / taken[peer], 1),
        "ratio": round(taken[peer] / taken[ours], 2),
        "stream_ratio": round(taken[peer] / taken[stream], 2),
        "ours_cpu_s": round(median(cpu_seconds[ours][1:]), 2),
        "stream_cpu_s": round(median(cpu_seconds[stream][1:]), 2),
        "captions_that_differ": sum(
            any(caption != theirs for caption in pair)
            for *pair, theirs in zip(captions[ours], captions[stream], captions[peer], strict=True)
        ),
    }


def main() -> None:
    default = os.environ.get("CAPTIONER_FLICKR8K")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--photos",
        type=Path,
        default=Path(default) / "images" if default else None,
        help="folder of JPEG files; default: images/ of CAPTIONER_FLICKR8K",
    )
    parser.add_argument("--model", help="default: the bundled checkpoint")
    parser.add_argument("--count", type=int, default=64, help="number of photos, in order of their names")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    photos = sorted(options.photos.glob("*.jpg"))[: options.count] if options.photos else []
    if not photos:
        parser.error("no photos: name a folder of JPEG files by --photos or CAPTIONER_FLICKR8K")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    captioner = Captioner.from_pretrained(options.model, dtype="fp32")
    backend = captioner.backend
    features = encode(backend, photos)
    report = {
        "benchmark": "decoding",
        "peer": f"transformers {transformers.__version__} generate, the same model",
        "model": captioner.name,
        "device": str(backend.device),
        "threads": torch.get_num_threads(),
        "load_average_before": round(os.getloadavg()[0], 1),
        "photos": len(photos),
        **{
            f"{name}_batch_{size}": compare(backend.model, list(features.split(size)), mode, options.rounds)
            for name, mode in MODES.items()
            for size in BATCH_SIZES
        },
    }
    print(json.dumps(report))


if __name__ == "__main__":
    try:
        main()
    except CaptionerError as error:
        sys.exit(f"error: {error}")
