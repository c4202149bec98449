"""Times captioning, JPEG files to captions in hand, against transformers' VisionEncoderDecoderModel, same weights.

    CAPTIONER_FLICKR8K=folder python benchmarks/inference.py --peer transformers [--rounds 3]

The model: ViT-S/16 at 224 pixels and a GPT-2-style decoder of six layers, width 384 and GPT-2's vocabulary, with random
weights, written by transformers and converted by `captioner convert`; 16 new tokens a caption, greedy and with 4 beams.
The peer reads with Pillow and its own image processor and runs eagerly in fp32, at the best of its batch sizes. All
sides go over the same photos in turn, one after another in each round; times are medians. Prints one JSON line a
batch size and mode: photos a second, how many times the peer's, how many captions differ from the peer's, and what
share each reaches of what the machine was measured to do: matrix products in the encoder, memory reads of the decoder's
weights.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    GPT2Config,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

from captioner.convert import convert_model
from captioner.data.images import load_image
from captioner.export.onnx import export_model
from captioner.infer.captioner import Captioner
from captioner.infer.exported import OnnxCaptioner, images_together, parts
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration

END = "<|endoftext|>"
NEW_TOKENS = 16
MODES = {"greedy": 1, "beams_4": 4}
PEER_BATCHES = {8: (8, 16, 32), 1: (1,)}
"""Batch sizes that the peer may choose from, by ours."""

Run = Callable[[list[Path], int, int], list[list[str]]]
"""Photos, number of beams, batch size -> each caption's tokens."""


def write_peer(folder: Path) -> None:
    """A public checkpoint's likeness: weights, tokenizer and image processor."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = [END, *byte_level.alphabet()]
    words += [f"<{index}>" for index in range(len(words), GPT2Config().vocab_size)]  # told apart, which is all we need
    bpe = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    bpe.pre_tokenizer, bpe.decoder = byte_level, decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END)
    end = tokenizer.eos_token_id
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"), end)
    encoder = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536)
    decoder = GPT2Config(n_positions=64, n_embd=384, n_layer=6, n_head=6, bos_token_id=end, eos_token_id=end)
    torch.manual_seed(0)
    model = VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder, **ids))
    model.generation_config.update(**ids)
    for part in (model, tokenizer, ViTImageProcessor()):
        part.save_pretrained(folder)


def peer(folder: Path) -> Run:
    model = VisionEncoderDecoderModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor, tokenizer = AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def run(photos: list[Path], num_beams: int, batch_size: int) -> list[list[str]]:
        captions = []
        for start in range(0, len(photos), batch_size):
            images = [Image.open(photo).convert("RGB") for photo in photos[start : start + batch_size]]
            pixel_values = processor(images, return_tensors="pt").pixel_values
            with torch.inference_mode():
                rows = model.generate(
                    pixel_values,
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
    sides: dict[str, Run], photos: list[Path], num_beams: int, batch_size: int, rounds: int
) -> dict[str, tuple[float, list[list[str]]]]:
    """Median seconds for all photos, and captions, of each side; the first round is warm-up."""
    runs = {name: (run, batch_size) for name, run in sides.items() if name != "peer"}
    runs |= {f"peer {size}": (sides["peer"], size) for size in PEER_BATCHES[batch_size]}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    captions: dict[str, list[list[str]]] = {}
    for _ in range(rounds + 1):
        for name, (run, size) in runs.items():
            start = time.perf_counter()
            captions[name] = run(photos, num_beams, size)
            seconds[name].append(time.perf_counter() - start)
    return {name: (median(seconds[name][1:]), captions[name]) for name in runs}


def best_of(function: Callable[[], Any], times: int = 5) -> float:
    """The least seconds that a call took."""

    def once() -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    function()
    return min(once() for _ in range(times))


def measured_limits() -> tuple[float, float]:
    """What the processor does at most in a second: floating-point operations of an fp32 product, bytes read."""
    matrix, memory = torch.randn(2048, 2048), torch.ones(1 << 27)
    return 2 * 2048**3 / best_of(lambda: matrix @ matrix), memory.nbytes / best_of(memory.sum)


def encoder_flops(model: CaptionerForConditionalGeneration) -> int:
    """Floating-point operations of a photo's encoder and cross-attention keys and values."""
    size = model.config.image_size
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:  # packed layers are not counted
        hidden_states = model.encoder(pixel_values=torch.zeros(1, 3, size, size)).last_hidden_state
        for layer in model.decoder.layers:
            layer.cross_attn.kv_proj(hidden_states)
    return counter.get_total_flops()


def step_bytes(model: CaptionerForConditionalGeneration, bytes_a_weight: int) -> int:
    """Bytes of the weights that a decoder step has to read: all but the embeddings, of which it reads a few rows, and
    but what made the cross-attention's keys and values."""
    weights = sum(parameter.numel() for parameter in model.decoder.layers.parameters()) + model.lm_head.weight.numel()
    weights -= sum(layer.cross_attn.kv_proj.weight.numel() for layer in model.decoder.layers)
    return weights * bytes_a_weight


def images_a_step(captioner: Captioner, batch_size: int) -> int:
    """How many images a step of the decoder serves; exported, half of those that are decoded together."""
    return images_together(batch_size) // 2 if isinstance(captioner, OnnxCaptioner) else batch_size


def encode(captioner: Captioner, batches: list[np.ndarray]) -> None:
    """As captioning does: exported, two parts of a batch side by side."""
    if isinstance(captioner, OnnxCaptioner):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(captioner.on_half_the_threads.encode, [part for batch in batches for part in parts(batch)]))
    else:
        with torch.inference_mode():
            for batch in batches:
                captioner.model.encoder(pixel_values=torch.from_numpy(batch))


def shares_of_the_limit(
    captioner: Captioner,
    model: CaptionerForConditionalGeneration,
    limits: tuple[float, float],
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
    encoding = best_of(lambda: encode(captioner, batches), times=2)
    bytes_a_weight = (
        1 if isinstance(captioner, OnnxCaptioner) and captioner.exported.config["precision"] == "int8" else 4
    )
    read = step_bytes(model, bytes_a_weight) * NEW_TOKENS * len(photos) / images_a_step(captioner, batch_size)
    return {
        "reading_ms_a_photo": round(1e3 * reading / len(photos), 1),
        "encoder_ms_a_photo": round(1e3 * encoding / len(photos), 1),
        "decoder_ms_a_photo": round(1e3 * (seconds - reading - encoding) / len(photos), 1),
        "encoder_share_of_fp32_peak": round(encoder_flops(model) * len(photos) / encoding / limits[0], 2),
        "decoder_share_of_bandwidth": round(read / (seconds - reading - encoding) / limits[1], 2),
    }


def compare(folder: Path, photos: list[Path], options: argparse.Namespace) -> None:
    """Print a line for each batch size and mode."""
    convert_model(folder / "peer", folder / "converted")
    captioners = {"torch_fp32": Captioner.from_pretrained(folder / "converted", "cpu", "fp32")}
    model = captioners["torch_fp32"].model
    for precision in ("fp32", "int8"):
        export_model(folder / "converted", folder / precision, precision)
        captioners[f"onnx_{precision}"] = Captioner.from_pretrained(folder / precision)
    limits = measured_limits()
    print(json.dumps({"fp32_gflops": round(limits[0] / 1e9, 1), "read_gb_per_s": round(limits[1] / 1e9, 1)}))
    sides = {"peer": peer(folder / "peer"), **{name: ours(captioner) for name, captioner in captioners.items()}}
    for batch_size in PEER_BATCHES:
        for mode, num_beams in MODES.items():
            results = time_sides(sides, photos, num_beams, batch_size, options.rounds)
            best_peer = min((name for name in results if name.startswith("peer")), key=lambda name: results[name][0])
            peer_seconds, expected = results[best_peer]
            line: dict[str, Any] = {"mode": mode, "batch_size": batch_size, "peer_at_its_best": best_peer}
            line["peer_photos_per_s"] = round(len(photos) / peer_seconds, 2)
            for name, captioner in captioners.items():
                seconds, captions = results[name]
                line[name] = {
                    "photos_per_s": round(len(photos) / seconds, 2),
                    "ratio": round(peer_seconds / seconds, 2),
                    "captions_that_differ": sum(a != b for a, b in zip(captions, expected, strict=True)),
                    **shares_of_the_limit(captioner, model, limits, photos, batch_size, seconds),
                }
            print(json.dumps(line), flush=True)


def main() -> None:
    default = os.environ.get("CAPTIONER_FLICKR8K")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=["transformers"], default="transformers")
    parser.add_argument("--photos", type=Path, default=Path(default, "images") if default else None)
    parser.add_argument("--count", type=int, default=64, help="photos to caption")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.photos is None:
        sys.exit("set CAPTIONER_FLICKR8K or give --photos")
    photos = sorted(options.photos.glob("*.jpg"))[: options.count]
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        write_peer(Path(folder, "peer"))
        compare(Path(folder), photos, options)


if __name__ == "__main__":
    main()
