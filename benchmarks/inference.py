"""Time captioning, from JPEG files to captions, against transformers' own model with the same weights.

    CAPTIONER_FLICKR8K=folder python benchmarks/inference.py --peer transformers [--family small|vit-gpt2|blip-base|
        git-base] [--rounds 3] [--busy] [--device cuda]

The models have random weights, are written by transformers and converted by `captioner convert`: the default, "small",
is ViT-S/16 at 224 pixels and a GPT-2-style decoder of six layers, width 384 and GPT-2's vocabulary; the others have the
shapes of the public models of these names. 16 new tokens a caption, greedy and with 4 beams.
The peer reads with Pillow and its own image processor and runs eagerly in fp32, at the best of its batch sizes. All
sides go over the same photos in turn, one after another in each round; times are medians. Prints one JSON line about
the machine and one a batch size and mode: photos a second, how many times the peer's, how many captions differ from the
peer's, and what share each reaches of what the machine was measured to do: matrix products of its precision in the
encoder, memory reads of the decoder's weights. With --busy, a second line has the speeds beside other work, a busy loop
for each core. On a GPU ours runs in bf16, in batches of 64, where some captions differ.

Torch is imported before captioner, so that the peer's threads wait as torch has them wait. Set GOMP_SPINCOUNT=1000 to
have all sides wait as they do where captioner is imported first.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import torch
import transformers
from inference_peers import FAMILIES, write_peer
from machine import busy_cores, machine
from onnx import helper, numpy_helper
from onnxruntime import InferenceSession, SessionOptions
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from training import matrix_multiply_peak, synchronize
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedModel

from captioner.convert import convert_model
from captioner.data.images import load_image
from captioner.export.onnx import export_in_place, export_model
from captioner.hub.load import load_model
from captioner.infer import onnx_backend, torch_backend
from captioner.infer.backend import Backend, images_together
from captioner.infer.captioner import Captioner
from captioner.infer.onnx_backend import OnnxBackend, parts
from captioner.infer.torch_backend import TorchBackend
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration

NEW_TOKENS = 16
MODES = {"greedy": 1, "beams_4": 4}
PEER_BATCHES: dict[str, dict[int, tuple[int, ...]]] = {"cpu": {8: (8, 16, 32), 1: (1,)}, "cuda": {64: (32, 64, 128)}}
"""Batch sizes that the peer may choose from, by ours, by kind of device."""
BYTES_A_WEIGHT = {"fp32": 4, "bf16": 2, "int8": 1}

Run = Callable[[list[Path], int, int], list[list[str]]]
"""Photos, number of beams, batch size -> each caption's tokens."""


def peer(architecture: type[PreTrainedModel], folder: Path, device: torch.device) -> Run:
    model = architecture.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    processor, tokenizer = AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def run(photos: list[Path], num_beams: int, batch_size: int) -> list[list[str]]:
        captions = []
        for start in range(0, len(photos), batch_size):
            images = [Image.open(photo).convert("RGB") for photo in photos[start : start + batch_size]]
            pixel_values = processor(images, return_tensors="pt").pixel_values.to(device)
            with torch.inference_mode():
                rows = model.generate(
                    pixel_values=pixel_values,
                    num_beams=num_beams,
                    do_sample=False,
                    max_new_tokens=NEW_TOKENS,
                    min_new_tokens=NEW_TOKENS,
                )
            captions += [tokenizer.convert_ids_to_tokens(row[1:]) for row in rows.tolist()]
        return captions

    return run


def ours(captioner: Captioner) -> Run:
    def run(photos: list[Path], num_beams: int, batch_size: int) -> list[list[str]]:
        captions = captioner(
            photos, batch_size=batch_size, num_beams=num_beams, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS
        )
        return [[token.text for token in caption.tokens] for caption in captions]

    return run


def time_sides(
    sides: dict[str, Run],
    photos: list[Path],
    num_beams: int,
    batch_size: int,
    peer_batches: tuple[int, ...],
    rounds: int,
) -> dict[str, tuple[float, list[list[str]]]]:
    """Median seconds for all photos, and captions, of each side; the first round is warm-up."""
    runs = {name: (run, batch_size) for name, run in sides.items() if name != "peer"}
    runs |= {f"peer {size}": (sides["peer"], size) for size in peer_batches}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    captions: dict[str, list[list[str]]] = {}
    for _ in range(rounds + 1):
        for name, (run, size) in runs.items():
            start = time.perf_counter()
            captions[name] = run(photos, num_beams, size)
            seconds[name].append(time.perf_counter() - start)
    return {name: (median(seconds[name][1:]), captions[name]) for name in runs}


def speeds(results: dict[str, tuple[float, list[list[str]]]], count: int) -> dict[str, Any]:
    """Of each side but the peer, what `time_sides` found, against the peer at its best batch size."""
    best_peer = min((name for name in results if name.startswith("peer")), key=lambda name: results[name][0])
    peer_seconds, expected = results[best_peer]
    line: dict[str, Any] = {"peer_at_its_best": best_peer, "peer_photos_per_s": round(count / peer_seconds, 2)}
    for name, (seconds, captions) in results.items():
        if not name.startswith("peer"):
            line[name] = {
                "photos_per_s": round(count / seconds, 2),
                "ratio": round(peer_seconds / seconds, 2),
                "captions_that_differ": sum(a != b for a, b in zip(captions, expected, strict=True)),
            }
    return line


def best_of(function: Callable[[], Any], times: int = 5) -> float:
    """The least seconds that a call took."""

    def once() -> float:
        start = time.perf_counter()
        function()
        synchronize()
        return time.perf_counter() - start

    function()
    return min(once() for _ in range(times))


def onnx_product(operator: str, one: np.ndarray, other: np.ndarray) -> Callable[[], Any]:
    """A product of matrices as an exported model computes it, `other` being its weights."""
    kinds = one.dtype, np.dtype(np.int32 if operator == "MatMulInteger" else np.float32)
    types, shapes = map(helper.np_dtype_to_tensor_dtype, kinds), (one.shape, (len(one), other.shape[1]))
    given, product = map(helper.make_tensor_value_info, ("one", "product"), types, shapes)
    node = helper.make_node(operator, ["one", "other"], ["product"])
    graph = helper.make_graph([node], operator, [given], [product], [numpy_helper.from_array(other, "other")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = InferenceSession(model.SerializeToString(), options)
    return lambda: session.run(None, {"one": one})


def measured_limits(device: torch.device) -> dict[str, float]:
    """What the processor does at most in a second: operations of matrix products, by precision, and bytes read.

    On a CPU as ONNX Runtime multiplies, since torch's eager products leave half of some processors idle.
    """
    memory = torch.ones(1 << 27, device=device)
    limits = {"bytes": memory.nbytes / best_of(memory.sum)}
    if device.type != "cpu":
        return limits | {"bf16": matrix_multiply_peak(torch.bfloat16, device)}
    generator, rows, columns = np.random.default_rng(0), 512, 2048
    one, other = (generator.integers(0, 127, shape) for shape in ((rows, columns), (columns, rows)))
    products = {
        "fp32": onnx_product("MatMul", one.astype(np.float32), other.astype(np.float32)),
        "int8": onnx_product("MatMulInteger", one.astype(np.uint8), other.astype(np.int8)),
    }
    operations = 2 * rows * columns * rows
    return limits | {name: operations / best_of(product, times=50) for name, product in products.items()}


def encoder_flops(model: CaptionerForConditionalGeneration) -> int:
    """Floating-point operations of a photo's encoder and cross-attention keys and values."""
    size = model.config.image_size
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        hidden_states = model.encoder(pixel_values=torch.zeros(1, 3, size, size)).last_hidden_state
        if model.decoder.image_prefix:
            model.decoder.read_image(hidden_states)
        else:
            for layer in model.decoder.layers:
                layer.cross_attn.kv_proj(hidden_states)
    return counter.get_total_flops()


def step_weights(model: CaptionerForConditionalGeneration) -> int:
    """How many weights a decoder step has to read: all but the embeddings, of which it reads a few rows, and but what
    made the cross-attention's keys and values."""
    weights = sum(parameter.numel() for parameter in model.decoder.layers.parameters()) + model.lm_head.weight.numel()
    if model.decoder.image_prefix:
        return weights
    return weights - sum(layer.cross_attn.kv_proj.weight.numel() for layer in model.decoder.layers)


def images_a_step(backend: Backend, batch_size: int) -> int:
    """How many images a step of the decoder serves; exported, half of those that are decoded together."""
    if isinstance(backend, OnnxBackend):
        return images_together(batch_size, onnx_backend.MOST_TOGETHER) // 2
    return batch_size if backend.device.type == "cuda" else images_together(batch_size, torch_backend.MOST_TOGETHER)


def encode(backend: Backend, batches: list[np.ndarray]) -> None:
    """As captioning does: exported, two parts of a batch side by side."""
    if isinstance(backend, OnnxBackend):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(backend.on_half_the_threads.encode, [part for batch in batches for part in parts(batch)]))
    elif isinstance(backend, TorchBackend):
        with torch.inference_mode():
            for batch in batches:
                backend.encode(torch.from_numpy(batch).to(backend.device, backend.dtype))


def shares_of_the_limit(
    captioner: Captioner,
    precision: str,
    model: CaptionerForConditionalGeneration,
    limits: dict[str, float],
    photos: list[Path],
    batch_size: int,
    seconds: float,
) -> dict[str, float]:
    """Of the seconds that captioning took, what the encoder and the decoder made of theirs.

    The decoder's are what reading and encoding leave.
    """
    pixel_values = np.stack([captioner.preprocessing(load_image(photo)) for photo in photos])
    reading = best_of(lambda: [captioner.preprocessing(load_image(photo)) for photo in photos], times=2)
    batches = [pixel_values[start : start + batch_size] for start in range(0, len(photos), batch_size)]
    encoding = best_of(lambda: encode(captioner.backend, batches), times=2)
    steps = NEW_TOKENS * len(photos) / images_a_step(captioner.backend, batch_size)
    read = step_weights(model) * BYTES_A_WEIGHT[precision] * steps
    return {
        "reading_ms_a_photo": round(1e3 * reading / len(photos), 1),
        "encoder_ms_a_photo": round(1e3 * encoding / len(photos), 1),
        "decoder_ms_a_photo": round(1e3 * (seconds - reading - encoding) / len(photos), 1),
        "encoder_share_of_peak": round(encoder_flops(model) * len(photos) / encoding / limits[precision], 2),
        "decoder_share_of_bandwidth": round(read / (seconds - reading - encoding) / limits["bytes"], 2),
    }


def write_captioners(folder: Path, device: torch.device) -> dict[tuple[str, str], Captioner]:
    """Ours with the peer's weights, by engine and precision; by default graphs beside the weights on a CPU."""
    converted = folder / "converted"
    convert_model(folder / "peer", converted)
    if device.type != "cpu":
        return {("torch", "bf16"): Captioner.from_pretrained(converted, device=device, dtype="bf16")}
    export_in_place(converted)
    export_model(converted, folder / "int8", "int8")
    return {
        ("default", "fp32"): Captioner.from_pretrained(converted, device=device),
        ("torch", "fp32"): Captioner.from_pretrained(converted, device=device, dtype="fp32", backend="torch"),
        ("onnx", "int8"): Captioner.from_pretrained(folder / "int8"),
    }


def compare(architecture: type[PreTrainedModel], folder: Path, photos: list[Path], options: argparse.Namespace) -> None:
    """Print a line for each batch size and mode."""
    captioners = write_captioners(folder, options.device)
    model, _ = load_model(folder / "converted", "converted")
    limits = measured_limits(options.device)
    print(json.dumps({f"giga_{name}_per_s": round(limit / 1e9, 1) for name, limit in limits.items()}))
    sides = {"peer": peer(architecture, folder / "peer", options.device)}
    sides |= {"_".join(name): ours(captioner) for name, captioner in captioners.items()}
    for batch_size, peer_batches in PEER_BATCHES[options.device.type].items():
        for mode, num_beams in MODES.items():
            for cores in ("quiet", "busy") if options.busy else ("quiet",):
                with busy_cores() if cores == "busy" else nullcontext():
                    results = time_sides(sides, photos, num_beams, batch_size, peer_batches, options.rounds)
                line = {"mode": mode, "batch_size": batch_size, "cores": cores, **speeds(results, len(photos))}
                for (engine, precision), captioner in captioners.items() if cores == "quiet" else ():
                    seconds, _ = results[f"{engine}_{precision}"]
                    line[f"{engine}_{precision}"] |= shares_of_the_limit(
                        captioner, precision, model, limits, photos, batch_size, seconds
                    )
                print(json.dumps(line), flush=True)


def main() -> None:
    default = os.environ.get("CAPTIONER_FLICKR8K")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=["transformers"], default="transformers")
    parser.add_argument("--family", choices=FAMILIES, default="small")
    parser.add_argument("--photos", type=Path, default=Path(default, "images") if default else None)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    parser.add_argument("--count", type=int, help="number of photos; default: 64, on a GPU 512")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", action="store_true", help="also measure beside a busy loop on each core")
    options = parser.parse_args()
    if options.photos is None:
        sys.exit("set CAPTIONER_FLICKR8K or give --photos")
    count = options.count or (64 if options.device.type == "cpu" else 512)
    photos = sorted(options.photos.glob("*.jpg"))[:count]
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    transformers.logging.set_verbosity_error()
    print(json.dumps(machine()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        compare(write_peer(Path(folder, "peer"), options.family), Path(folder), photos, options)


if __name__ == "__main__":
    main()
