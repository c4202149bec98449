"""What gpu.py measures. gpu.py runs each section in its own process; each row is one JSON line on stdout.

    PYTHONPATH=. python benchmarks/gpu_sections.py SECTION SCRATCH    then a line {} on stdin

Both sides of a comparison have the same weights or the same shape, the same precision and the same batch. Inference
writes 16 tokens a caption. Our side is a `Captioner`'s stream, including decoding to text; the peer is transformers'
`VisionEncoderDecoderModel.generate` with its tokenizer, eager or compiled with a static cache. Training steps use
batches that are already on the device, five captions an image; the peer is transformers' Trainer on single captions,
each with its image.
"""

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import timm
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch._dynamo.utils import counters
from torch.autograd import DeviceType
from torch.nn.utils.rnn import pad_sequence
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    TrainingArguments,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from captioner.annotate.pipeline import caption_images, map_ahead
from captioner.config import RunConfig
from captioner.convert import convert_model
from captioner.data.batches import Batch
from captioner.infer.captioner import Captioner
from captioner.model.modeling_captioner import IGNORE_INDEX
from captioner.train.phases import set_modes
from captioner.train.trainer import Trainer

ROOT = Path(__file__).parents[1]
DEVICE_IS_BROKEN = 75
NEW_TOKENS = 16
CAPTIONS_PER_IMAGE = 5
END = "<|endoftext|>"

Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A ViT and a GPT-2 of its width."""

    image_size: int
    width: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    vocab_size: int
    timm_name: str
    timm_arguments: tuple[tuple[str, int], ...] = ()


SHAPES = {
    "vit_b_384": Shape(384, 768, 12, 12, 6, 10_000, "vit_base_patch16_384"),  # configs/coco_vit_base.yaml
    "vit_s_224": Shape(224, 384, 6, 12, 6, 50_257, "vit_small_patch16_224"),
}
TINY_WIDTH = {"embed_dim": 64, "depth": 2, "num_heads": 2}
TINY = {"tiny": Shape(32, 64, 2, 2, 2, 400, "vit_tiny_patch16_224", tuple(TINY_WIDTH.items()))}


@dataclass(frozen=True)
class Work:
    """What a section is to measure, and where."""

    device: torch.device
    quick: bool
    tiny: bool
    scratch: Path
    done: tuple[str, ...]
    emit: Callable[[Row], None]
    limits: Row

    @property
    def shapes(self) -> dict[str, Shape]:
        return TINY if self.tiny else SHAPES

    @property
    def batch_size(self) -> int:
        return 4 if self.tiny else 64

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16

    @property
    def seconds(self) -> float:
        """How long a measurement goes on."""
        return 0.1 if self.tiny else 1.0 if self.quick else 2.0

    def share(self, amount: float, limit: str) -> float | None:
        """Of what the device was measured to do at most."""
        return round(amount / self.limits[limit], 3) if limit in self.limits else None


@dataclass(frozen=True)
class Measurement:
    """A row, the seconds that it may take, and what measures it."""

    row: str
    limit: float
    measure: Callable[[], Row]


def run(work: Work, measurements: list[Measurement]) -> None:
    """One after another; a failure is a row, too."""
    work.emit({"plan": [one.row for one in measurements]})
    for one in measurements:
        if one.row in work.done:
            continue
        work.emit({"start": one.row, "limit": one.limit})
        start = time.perf_counter()
        try:
            values = one.measure()
        except Exception:  # whatever it is, the next row is measured
            values = {"error": error_tail()}
        seconds = round(time.perf_counter() - start, 1)
        work.emit({"row": one.row, **values, "row_seconds": seconds})
        go_on_with_a_sound_device(work.device)


def error_tail() -> str:
    return "".join(traceback.format_exc().splitlines(keepends=True)[-12:])[-2500:]


def go_on_with_a_sound_device(device: torch.device) -> None:
    """After some errors every call of CUDA fails: another process has to go on."""
    if device.type == "cuda":
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        except RuntimeError:
            os._exit(DEVICE_IS_BROKEN)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_each(function: Callable[[], Any], work: Work, least: int = 2) -> float:
    """Of a call, the mean of as many as go into `work.seconds` after one to warm up."""
    function()
    synchronize(work.device)
    start, calls = time.perf_counter(), 0
    while calls < least or time.perf_counter() - start < work.seconds:
        function()
        synchronize(work.device)
        calls += 1
    return (time.perf_counter() - start) / calls


def peak_gib(device: torch.device) -> float | None:
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if device.type == "cuda" else None


# device


def device_section(work: Work) -> None:
    run(
        work,
        [
            Measurement("versions", 20, lambda: versions(work)),
            Measurement("matrix products", 20, lambda: matrix_products(work)),
            Measurement("memory", 20, lambda: memory_speed(work)),
        ],
    )


def versions(work: Work) -> Row:
    values: Row = {"python": sys.version.split()[0], "cpu_cores": os.cpu_count()}
    values |= {module.__name__: module.__version__ for module in (torch, transformers, timm, accelerate)}
    values["commit"] = command_output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    if work.device.type == "cuda":
        properties = torch.cuda.get_device_properties(work.device)
        values |= {"device": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
        values |= {"multiprocessors": properties.multi_processor_count, "cuda": torch.version.cuda}
        query = "--query-gpu=driver_version,clocks.max.sm,power.limit"
        values["driver, clock, power"] = command_output("nvidia-smi", query, "--format=csv,noheader")
    return values


def command_output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def matrix_products(work: Work) -> Row:
    size = 256 if work.tiny else 8192
    found: Row = {}
    for name, dtype in {"bf16": torch.bfloat16, "fp32": torch.float32}.items():
        one, other = (torch.randn(size, size, device=work.device).to(dtype) for _ in range(2))
        found[f"peak_{name}_flops"] = 2 * size**3 / seconds_each(lambda one=one, other=other: one @ other, work, 5)
    return found


def memory_speed(work: Work) -> Row:
    count = 1 << (16 if work.tiny else 30)
    source = torch.ones(count, dtype=torch.uint8, device=work.device)
    target = torch.empty_like(source)
    found: Row = {"peak_bytes_per_s": 2 * count / seconds_each(lambda: target.copy_(source), work, 5)}
    if work.device.type == "cuda":
        host = torch.ones(1 << 27, dtype=torch.uint8)
        pinned, here = host.pin_memory(), torch.empty_like(host, device=work.device)
        seconds = {"pageable": seconds_each(lambda: here.copy_(host), work)}
        seconds["pinned"] = seconds_each(lambda: here.copy_(pinned, non_blocking=True), work)
        seconds["pinning"] = seconds_each(host.pin_memory, work)
        found |= {f"{name}_gb_per_s": round(len(host) / 1e9 / each, 1) for name, each in seconds.items()}
        one = torch.zeros(1, device=work.device)
        found["launch_us"] = round(1e3 * seconds_each(lambda: [one.add_(1) for _ in range(1000)], work), 2)
    return found


# tests


def tests_section(work: Work) -> None:
    """A row a test; those that are done are not run again."""
    import pytest

    class Rows:
        """pytest's plugin."""

        @pytest.hookimpl(trylast=True)  # once those without the marker are left out
        def pytest_collection_modifyitems(self, items: list[Any]) -> None:
            work.emit({"plan": [item.nodeid for item in items]})
            items[:] = [item for item in items if item.nodeid not in work.done]
            items.sort(key=lambda item: "compile" in item.name)  # which takes longest

        def pytest_runtest_logstart(self, nodeid: str) -> None:
            self.reports: list[Any] = []
            work.emit({"start": nodeid, "limit": 60})

        def pytest_runtest_logreport(self, report: Any) -> None:
            self.reports.append(report)

        def pytest_runtest_logfinish(self, nodeid: str) -> None:
            outcomes = [report.outcome for report in self.reports]
            outcome = next((outcome for outcome in outcomes if outcome != "passed"), "passed")
            errors = [report.longreprtext[-2500:] for report in self.reports if report.failed]
            reasons = [report.longrepr[2] for report in self.reports if report.skipped]
            seconds = round(sum(report.duration for report in self.reports), 1)
            row: Row = {"row": nodeid, "outcome": outcome, "row_seconds": seconds}
            work.emit(row | ({"error": errors[0]} if errors else {"reason": reasons[0]} if reasons else {}))
            go_on_with_a_sound_device(work.device)

    os.chdir(ROOT)
    files = [str(path) for path in sorted(Path("tests").rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text()]
    arguments = ["-m", "gpu", "-p", "no:cacheprovider", "--tb=short", "--continue-on-collection-errors"]
    pytest.main([*arguments, *files], plugins=[Rows()])


# inference


def write_peer(shape: Shape, folder: Path) -> None:
    """A public checkpoint's likeness with random weights: model, tokenizer and image processor."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = [END, *byte_level.alphabet()]
    words += [f"<{index}>" for index in range(len(words), shape.vocab_size)]
    bpe = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    bpe.pre_tokenizer, bpe.decoder = byte_level, decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END)
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"), 0)
    torch.manual_seed(0)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        encoder_config(shape), decoder_config(shape, shape.vocab_size, end=0), **ids
    )
    model = VisionEncoderDecoderModel(config)
    model.generation_config.update(**ids)
    size = {"height": shape.image_size, "width": shape.image_size}
    for part in (model, tokenizer, ViTImageProcessor(size=size)):
        part.save_pretrained(folder)


def encoder_config(shape: Shape) -> ViTConfig:
    return ViTConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.encoder_layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        image_size=shape.image_size,
        attn_implementation="sdpa",
    )


def decoder_config(shape: Shape, vocab_size: int, end: int, **settings: Any) -> GPT2Config:
    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=64,
        n_embd=shape.width,
        n_layer=shape.decoder_layers,
        n_head=shape.heads,
        bos_token_id=end,
        eos_token_id=end,
        attn_implementation="sdpa",
        **settings,
    )


def prepare_inference(work: Work) -> None:
    """The weights in both forms, for all processes of the section."""
    for name, shape in work.shapes.items():
        if not (work.scratch / name / "ours").exists():
            write_peer(shape, work.scratch / name / "peer")
            convert_model(work.scratch / name / "peer", work.scratch / name / "ours")
    draw_photos(work)


def draw_photos(work: Work) -> list[Path]:
    """JPEG files of 640 x 480 pixels, about as hard to decode as photos."""
    folder = work.scratch / "photos"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:03}.jpg" for number in range(16 if work.tiny else 256)]

    def draw(path: Path) -> None:
        colours = np.random.default_rng(int(path.stem)).integers(0, 256, (60, 80, 3), np.uint8)
        Image.fromarray(colours).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=92)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(draw, (path for path in paths if not path.exists())))
    return paths


def inference_section(work: Work) -> None:
    batch, shapes = work.batch_size, list(work.shapes)
    pairs = [(shape, batch, 4, side) for shape in reversed(shapes) for side in ("ours", "eager")]
    compiled = [(shape, batch, 4, "static") for shape in reversed(shapes)]
    files = [(shapes[0], batch, 4, side) for side in ("ours, JPEG", "eager, JPEG")]
    chosen = pairs + files + compiled
    if not work.quick:
        others = [(batch, 1), (1, 4), (1, 1), (4 * batch, 4), (4 * batch, 1)]
        chosen += [(shape, size, beams, side)
                   for size, beams in others for shape in shapes for side in ("ours", "eager")]  # fmt: skip
        chosen += [(shapes[-1], 1, 1, "static"), (shapes[0], batch, 1, "static"), (shapes[-1], batch, 4, "ours, JPEG")]
    run(work, [inference(work, *row) for row in chosen])


def inference(work: Work, shape: str, batch: int, beams: int, side: str) -> Measurement:
    measures = {
        "ours": time_ours,
        "eager": time_peer,
        "static": time_compiled_peer,
        "ours, JPEG": time_ours_from_files,
        "eager, JPEG": time_peer_from_files,
    }
    search = "greedy" if beams == 1 else f"{beams} beams"
    measure = functools.partial(measures[side], work, shape, batch, beams)
    return Measurement(f"{shape}, batch {batch}, {search}, {side}", 90 if side == "static" else 30, measure)


@functools.cache
def our_captioner(folder: Path, device: torch.device) -> Captioner:
    return Captioner.from_pretrained(folder, device=device, dtype="fp32" if device.type == "cpu" else "bf16")


@functools.cache
def peer_model(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    return VisionEncoderDecoderModel.from_pretrained(folder, dtype=dtype).eval().to(device)


def pixel_batch(shape: Shape, batch: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, 3, shape.image_size, shape.image_size), np.float32)


def new_tokens(beams: int) -> dict[str, int]:
    return {"num_beams": beams, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}


def time_ours(work: Work, name: str, batch: int, beams: int) -> Row:
    """A stream of eight batches, its beginning and end included."""
    captioner = our_captioner(work.scratch / name / "ours", work.device)
    options, pixels, batches = captioner.options(**new_tokens(beams)), pixel_batch(work.shapes[name], batch), 8

    def caption(count: int = batches) -> None:
        stream = captioner.stream(options)
        captions = [caption for _ in range(count) for caption in stream.add(pixels)] + stream.finish()
        assert len(captions) == count * batch

    synchronizations = host_synchronizations(lambda: caption(3), work.device)
    seconds = seconds_each(caption, work, least=1) / batches
    encoding = encoder_seconds(captioner.backend.model.encoder, pixels, work)
    flops = encoder_flops(captioner.backend.model.encoder, pixels[:1]) * batch
    decoding = (seconds - encoding) / NEW_TOKENS
    return {
        "images_per_s": round(batch / seconds, 1),
        "gib": peak_gib(work.device),
        "encoder_ms": round(1e3 * encoding, 2),
        "encoder_share_of_peak": work.share(flops / encoding, "peak_bf16_flops"),
        "rest_ms_a_step": round(1e3 * decoding, 3),
        "decoder_share_of_bandwidth": work.share(
            step_bytes(captioner.backend.model, batch, beams) / decoding, "peak_bytes_per_s"
        ),
        "host_syncs_a_step": None if synchronizations is None else round(synchronizations / (3 * NEW_TOKENS), 2),
    }


def encoder_seconds(encoder: Any, pixels: np.ndarray, work: Work) -> float:
    given = torch.from_numpy(pixels).to(work.device, work.dtype)
    with torch.inference_mode():
        return seconds_each(lambda: encoder(pixel_values=given), work)


def encoder_flops(encoder: Any, pixels: np.ndarray) -> int:
    parameter = next(encoder.parameters())
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        encoder(pixel_values=torch.from_numpy(pixels).to(parameter.device, parameter.dtype))
    return counter.get_total_flops()


def step_bytes(model: Any, batch: int, beams: int) -> int:
    """What a decoder step has to read: weights, but those that made the cross-attention's keys and values; these, once
    an image; and the keys and values of the words, half of them in the mean."""
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    weights = sum(parameter.numel() for parameter in model.decoder.layers.parameters()) + model.lm_head.weight.numel()
    weights -= sum(layer.cross_attn.kv_proj.weight.numel() for layer in model.decoder.layers)
    size = model.config.image_size // 16
    states = 2 * layers * width * batch * (size * size + 1 + beams * NEW_TOKENS // 2)
    return (weights + states) * model.lm_head.weight.element_size()


def host_synchronizations(function: Callable[[], Any], device: torch.device) -> int | None:
    """How often the host waits for the device in a second call."""
    function()
    if device.type != "cuda":
        return None
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    where = Counter(f"{one.filename}:{one.lineno}" for one in found if "called a synchronizing" in str(one.message))
    print("host synchronisations:", where.most_common(8), file=sys.stderr)
    return where.total()


def time_peer(work: Work, name: str, batch: int, beams: int) -> Row:
    model = peer_model(work.scratch / name / "peer", work.device, work.dtype)
    write = peer_writer(work, name, model, beams)
    pixels = torch.from_numpy(pixel_batch(work.shapes[name], batch))
    synchronizations = host_synchronizations(lambda: write(pixels), work.device)
    seconds = seconds_each(lambda: write(pixels), work)
    return {
        "images_per_s": round(batch / seconds, 1),
        "gib": peak_gib(work.device),
        "host_syncs_a_step": None if synchronizations is None else round(synchronizations / NEW_TOKENS, 2),
    }


def time_compiled_peer(work: Work, name: str, batch: int, beams: int) -> Row:
    """With a static cache, encoder and decoder compiled by hand: `generate` compiles no encoder-decoder of this kind by
    itself. CUDA graphs for the decoder where they can be had; the row says what was left out, and why."""
    pixels = torch.from_numpy(pixel_batch(work.shapes[name], batch))
    backend = "inductor" if work.device.type == "cuda" else "eager"  # on a CPU the calls are tried, not their speed
    failures: Row = {}
    for mode in ("reduce-overhead", "default"):
        torch.compiler.reset()
        counters.clear()
        model = VisionEncoderDecoderModel.from_pretrained(work.scratch / name / "peer", dtype=work.dtype)
        model = model.eval().to(work.device)
        arguments: Row = {"backend": backend} if backend == "eager" else {"mode": mode}
        model.encoder.compile(backend=backend)
        model.decoder.compile(**arguments)
        write = peer_writer(work, name, model, beams, cache_implementation="static")
        start = time.perf_counter()
        try:
            write(pixels)
            first = time.perf_counter() - start
            write(pixels)  # records graphs, where there are some
            write(pixels)
            seconds = seconds_each(lambda write=write: write(pixels), work)
        except Exception as error:  # whatever it is, the next mode is tried
            failures[f"{mode}, failed"] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
            continue
        return {
            "images_per_s": round(batch / seconds, 1),
            "gib": peak_gib(work.device),
            "first_call_s": round(first, 1),
            "mode": mode,
            "graphs": counters["stats"]["unique_graphs"],
            "graph_breaks": sum(counters["graph_break"].values()),
            "without_cuda_graphs": "; ".join(str(reason)[:200] for reason in counters["inductor"] if "skip" in reason),
            **failures,
        }
    raise RuntimeError(f"neither mode ran: {failures}")


def peer_writer(work: Work, name: str, model: Any, beams: int, **settings: Any) -> Callable[[Tensor], list[str]]:
    """Pixel values [B, 3, H, W] on the host -> captions."""
    tokenizer = AutoTokenizer.from_pretrained(work.scratch / name / "peer")

    def write(pixels: Tensor) -> list[str]:
        with torch.inference_mode():
            given = pixels.to(work.device).to(work.dtype)
            rows = model.generate(given, do_sample=False, **new_tokens(beams), **settings)
        captions: list[str] = tokenizer.batch_decode(rows, skip_special_tokens=True)
        return captions

    return write


def files(work: Work, batch: int) -> list[Path]:
    return draw_photos(work) * (1 if work.tiny else 4 if work.quick else 8)


def time_ours_from_files(work: Work, name: str, batch: int, beams: int) -> Row:
    captioner = our_captioner(work.scratch / name / "ours", work.device)
    options, paths, workers = captioner.options(**new_tokens(beams)), files(work, batch), os.cpu_count() or 1

    def caption(paths: list[Path]) -> float:
        start = time.perf_counter()
        pairs = [(number, str(path)) for number, path in enumerate(paths)]
        found = list(caption_images(captioner, pairs, options, batch_size=batch, num_workers=workers))
        assert len(found) == len(paths)
        return time.perf_counter() - start

    caption(paths[: 3 * batch])
    seconds = caption(paths)
    with ThreadPoolExecutor(workers) as pool:
        start = time.perf_counter()
        list(pool.map(lambda path: captioner.preprocessing(Image.open(path).convert("RGB")), paths[: 4 * batch]))
        reading = time.perf_counter() - start
    return {
        "images_per_s": round(len(paths) / seconds, 1),
        "reading_alone_images_per_s": round(len(paths[: 4 * batch]) / reading, 1),
        "threads": workers,
    }


def time_peer_from_files(work: Work, name: str, batch: int, beams: int) -> Row:
    """Read ahead by as many threads."""
    write = peer_writer(work, name, peer_model(work.scratch / name / "peer", work.device, work.dtype), beams)
    processor = AutoImageProcessor.from_pretrained(work.scratch / name / "peer")
    paths, workers = files(work, batch), os.cpu_count() or 1
    paths = paths[: max(batch, len(paths) // 2)]

    def read(path: Path) -> Tensor:
        pixels: Tensor = processor(Image.open(path).convert("RGB"), return_tensors="pt").pixel_values[0]
        return pixels

    start, waiting = time.perf_counter(), []
    for pixels in map_ahead(read, paths, workers, ahead=2 * batch + workers):
        waiting.append(pixels)
        if len(waiting) == batch:
            write(torch.stack(waiting))
            waiting = []
    if waiting:
        write(torch.stack(waiting))
    return {"images_per_s": round(len(paths) / (time.perf_counter() - start), 1), "threads": workers}


# training


def training_recipe(work: Work, name: str, phase: str, batch: int, folder: Path, compiled: bool = False) -> RunConfig:
    shape = work.shapes[name]
    source = {"path": str(draw_samples(work))}
    parts = ("trunk", "bridge", "decoder") if phase == "joint" else ("bridge", "decoder")
    return RunConfig.model_validate(
        {
            "output_dir": str(folder),
            "data": {
                "train": source,
                "validation": source,
                "captions_per_image": CAPTIONS_PER_IMAGE,
                "num_workers": 0 if work.tiny else min(16, os.cpu_count() or 1),
            },
            "tokenizer": {"path": str(ROOT / "captioner" / "assets" / "default")},
            "model": {
                "encoder_name": shape.timm_name,
                "encoder_kwargs": dict(shape.timm_arguments),
                "image_size": shape.image_size,
                "hidden_size": shape.width,
                "num_hidden_layers": shape.decoder_layers,
                "num_attention_heads": shape.heads,
                "max_position_embeddings": 48,
            },
            "phases": [
                {
                    "name": phase,
                    "epochs": 8,
                    "learning_rates": dict.fromkeys(parts, 1e-5),
                    "label_smoothing": 0.0,
                }
            ],
            "optimization": {
                "batch_size": batch,
                "mixed_precision": "no" if work.tiny else "bf16",
                "compile": compiled,
            },
            "validation": {"max_images": 1, "samples": 0},
        }
    )


def draw_samples(work: Work) -> Path:
    """The photos with five captions each, of about ten words."""
    path = work.scratch / "samples.jsonl"
    words = "a the man woman dog child red blue ball grass beach street near on with two runs sits small large".split()
    draw = np.random.default_rng(0)
    photos = draw_photos(work)
    if not path.exists():
        captions = [
            [" ".join(draw.choice(words, int(draw.integers(8, 14)))) for _ in range(CAPTIONS_PER_IMAGE)] for _ in photos
        ]
        rows = [{"image": str(photo), "caption": given} for photo, given in zip(photos, captions, strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@contextlib.contextmanager
def entered(
    work: Work, name: str, phase: str, batch: int, compiled: bool = False
) -> Iterator[tuple[Trainer, Any, Any, list[Batch]]]:
    """Our trainer in a phase: itself, the model as prepared, the phase, and batches that are on the device."""
    with tempfile.TemporaryDirectory(dir=work.scratch) as folder:
        trainer = Trainer(training_recipe(work, name, phase, batch, Path(folder), compiled), resume=False)
        stretch = trainer.config.schedule()[0]
        model, train_set, _ = trainer.enter(stretch.phase)
        steps = trainer.data.steps(train_set, stretch, 0, 0, 1)
        loader = trainer._loader(train_set, [places for step in steps[:2] for places in step])
        batches = [batch.to(work.device) for batch in loader]
        set_modes(trainer.model, stretch.phase)
        yield trainer, model, stretch.phase, batches
        trainer.accelerator.free_memory()


def tokens_of(batches: list[Batch]) -> float:
    """Tokens of a batch's captions, in the mean."""
    return sum(int((batch.labels != IGNORE_INDEX).sum()) for batch in batches) / len(batches)


def time_our_training(work: Work, name: str, phase: str, batch: int, compiled: bool = False) -> Row:
    with entered(work, name, phase, batch, compiled) as (trainer, model, settings, batches):
        turns = iter(range(10**9))

        def step() -> None:
            trainer.step.take(model, [batches[next(turns) % len(batches)]], settings, 0)

        towers = trainer.task.towers
        trainer.task.towers = trainer.model.encoder, trainer.model.decoder  # compiled code tells the counter nothing
        with FlopCounterMode(display=False) as counter:
            step()
        trainer.task.towers = towers
        for _ in batches:
            step()
        synchronize(work.device)
        start, steps = time.perf_counter(), 0
        while steps < 4 or time.perf_counter() - start < 2 * work.seconds:
            step()
            steps += 1
        synchronize(work.device)
        seconds = (time.perf_counter() - start) / steps
        flops = counter.get_total_flops()
        return {
            "tokens_per_s": round(tokens_of(batches) / seconds),
            "images_per_s": round(batch / seconds, 1),
            "step_ms": round(1e3 * seconds, 1),
            "tflop_a_step": round(flops / 1e12, 2),
            "mfu": work.share(flops / seconds, "peak_bf16_flops"),
            "micro_batch": trainer.step.micro_batch,
            "gib": peak_gib(work.device),
        }


class CaptionExamples(Dataset):
    """Every caption of a batch with its image, on the device, by length."""

    def __init__(self, batch: Batch) -> None:
        labels = batch.labels.to(batch.encoder_inputs["pixel_values"].device)
        captions = [row[row != IGNORE_INDEX] for row in labels]
        order = sorted(range(len(captions)), key=lambda row: len(captions[row]))
        pixels = batch.encoder_inputs["pixel_values"]
        self.examples = [{"pixel_values": pixels[row // CAPTIONS_PER_IMAGE], "labels": captions[row]} for row in order]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.examples[index]

    @staticmethod
    def collate(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        labels = [example["labels"] for example in examples]
        return {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        }


def time_peer_training(work: Work, name: str, phase: str, batch: int) -> Row:
    """Single captions, as many in a step as ours has, in the largest part of them that fits into the memory."""
    with entered(work, name, "joint", batch) as (trainer, _, _, batches):  # its frozen phase needs pixels, too
        examples, tokens, vocab_size = (
            CaptionExamples(batches[0]),
            tokens_of(batches[:1]),
            trainer.model.config.vocab_size,
        )
    del trainer, batches
    parts = 1
    while True:
        go_on_with_a_sound_device(work.device)
        try:
            seconds = peer_step_seconds(work, name, phase, vocab_size, examples, parts)
            break
        except torch.OutOfMemoryError:
            parts *= 2
    return {
        "tokens_per_s": round(tokens / seconds),
        "images_per_s": round(batch / seconds, 1),
        "step_ms": round(1e3 * seconds, 1),
        "micro_batch": len(examples) // parts,
        "gib": peak_gib(work.device),
    }


def peer_step_seconds(
    work: Work, name: str, phase: str, vocab_size: int, examples: CaptionExamples, parts: int
) -> float:
    shape, steps, warm = work.shapes[name], 6, 2
    decoder = decoder_config(
        shape,
        vocab_size,
        end=2,
        attn_pdrop=0.0,
        activation_function="gelu",
        add_cross_attention=True,
        is_decoder=True,
        use_cache=False,
    )
    encoder = ViTModel(encoder_config(shape), add_pooling_layer=False)
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=GPT2LMHeadModel(decoder))
    model.config.pad_token_id, model.config.decoder_start_token_id = 0, 1
    model.encoder.requires_grad_(phase == "joint")
    times: list[float] = []

    def note(*_: object) -> None:
        synchronize(work.device)
        times.append(time.perf_counter())

    with tempfile.TemporaryDirectory(dir=work.scratch) as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=len(examples) // parts,
            gradient_accumulation_steps=parts,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            optim="adamw_torch_fused",
            bf16=work.device.type == "cuda",
            use_cpu=work.device.type == "cpu",
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        handle = register_optimizer_step_post_hook(note)
        try:
            peer = transformers.Trainer(model, arguments, data_collator=CaptionExamples.collate, train_dataset=examples)
            peer.train()
        finally:
            handle.remove()
    return (times[-1] - times[warm - 1]) / (steps - warm)


def time_loading(work: Work, name: str, batch: int) -> Row:
    """Photos to batches on the device, nothing learnt from them."""
    with tempfile.TemporaryDirectory(dir=work.scratch) as folder:
        trainer = Trainer(training_recipe(work, name, "joint", batch, Path(folder)), resume=False)
        stretch = trainer.config.schedule()[0]
        train_set = trainer.data.train_set(stretch.phase, trainer.processor)
        places = [(epoch, index) for epoch in range(8) for index in range(len(train_set))]
        batches = [places[start : start + batch] for start in range(0, len(places), batch)]
        loader = trainer._loader(train_set, batches)
        begun = time.perf_counter()
        next(loader)
        start = time.perf_counter()
        images = sum(len(one.to(work.device).ids) for one in loader)
        synchronize(work.device)
        seconds = time.perf_counter() - start
    return {
        "images_per_s": round(images / seconds, 1),
        "first_batch_s": round(start - begun, 2),
        "workers": trainer.config.data.num_workers,
    }


def training_section(work: Work) -> None:
    batch = work.batch_size
    measurements = []
    compiled = functools.partial(time_our_training, compiled=True)
    for phase in ("joint", "frozen"):
        for side, measure in {"ours": time_our_training, "Trainer": time_peer_training}.items():
            measurements += [
                Measurement(f"{name}, {phase}, {side}", 60, functools.partial(measure, work, name, phase, batch))
                for name in work.shapes
            ]
        if phase == "joint":
            if work.device.type == "cuda":  # on a CPU the compiler takes minutes
                measurements += [
                    Measurement(
                        f"{name}, joint, ours, compiled", 90, functools.partial(compiled, work, name, phase, batch)
                    )
                    for name in work.shapes
                ]
            loading = [
                Measurement(f"{name}, loading", 30, functools.partial(time_loading, work, name, batch))
                for name in work.shapes
            ]
            measurements += loading[:1] if work.quick else loading
    run(work, measurements)


# profile


def profile_section(work: Work) -> None:
    name, batch = next(iter(work.shapes)), work.batch_size
    run(
        work,
        [
            Measurement("inference, 4 beams", 40, lambda: profile_inference(work, name, batch)),
            Measurement("training, joint", 60, lambda: profile_training(work, name, batch)),
        ],
    )


def profile_inference(work: Work, name: str, batch: int) -> Row:
    captioner = our_captioner(work.scratch / name / "ours", work.device)
    options, pixels = captioner.options(**new_tokens(4)), pixel_batch(work.shapes[name], batch)
    stream = captioner.stream(options)
    for _ in range(4):  # by then its steps are captured
        stream.add(pixels)
    synchronize(work.device)
    return profiled(lambda: stream.add(pixels), work)


def profile_training(work: Work, name: str, batch: int) -> Row:
    with entered(work, name, "joint", batch) as (trainer, model, settings, batches):
        for one in batches:
            trainer.step.take(model, [one], settings, 0)
        synchronize(work.device)
        return profiled(lambda: [trainer.step.take(model, [one], settings, 0) for one in batches], work)


def profiled(function: Callable[[], Any], work: Work) -> Row:
    """On a GPU: how long it has work to do, how long it waits between kernels, and which of them take the most time."""
    on_gpu = work.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as recorded:
        function()
        synchronize(work.device)
    if not on_gpu:
        slowest = sorted(recorded.key_averages(), key=lambda one: -one.self_cpu_time_total)[:12]
        return {"top": [{"op": one.key, "ms": round(one.self_cpu_time_total / 1e3, 2)} for one in slowest]}
    kernels = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in recorded.events()
        if event.device_type == DeviceType.CUDA
    )
    span = max(end for _, end, _ in kernels) - kernels[0][0]
    gaps = [max(0.0, later[0] - earlier[1]) for earlier, later in pairwise(kernels)]
    times: defaultdict[str, list[float]] = defaultdict(list)
    for start, end, kernel in kernels:
        times[kernel].append(end - start)
    top = sorted(times.items(), key=lambda item: -sum(item[1]))[:15]
    return {
        "kernels": len(kernels),
        "span_ms": round(span / 1e3, 2),
        "waiting_share": round(sum(gaps) / span, 3),
        "longest_waits_ms": ", ".join(f"{gap / 1e3:.2f}" for gap in sorted(gaps, reverse=True)[:5]),
        "top": [
            {"kernel": kernel[:110], "calls": len(each), "ms": round(sum(each) / 1e3, 2),
             "share": round(sum(each) / span, 3)}
            for kernel, each in top
        ],
    }  # fmt: skip


# memory


def memory_section(work: Work) -> None:
    name, batch = next(iter(work.shapes)), work.batch_size
    rows = [Measurement(f"training, joint, batch {size}", 40, functools.partial(training_memory, work, name, size))
            for size in (batch, 2 * batch)]  # fmt: skip
    rows += [
        Measurement(f"4 beams, batch {size}", 30, functools.partial(decoding_memory, work, name, size))
        for size in (batch, 4 * batch)
    ]
    run(work, rows)


def gib(tensors: Iterator[Tensor]) -> float:
    return round(sum(tensor.nbytes for tensor in tensors) / 2**30, 3)


def training_memory(work: Work, name: str, batch: int) -> Row:
    with entered(work, name, "joint", batch) as (trainer, model, settings, batches):
        trainer.step.take(model, batches[:1], settings, 0)
        state = trainer.optimizer.optimizer.state.values()
        return {
            "weights_gib": gib(iter(trainer.model.parameters())),
            "moments_gib": gib(tensor for slot in state for tensor in slot.values()),
            "peak_gib": peak_gib(work.device),
            "micro_batch": trainer.step.micro_batch,
        }


def decoding_memory(work: Work, name: str, batch: int) -> Row:
    captioner = our_captioner(work.scratch / name / "ours", work.device)
    stream = captioner.stream(captioner.options(**new_tokens(4)))
    pixels = pixel_batch(work.shapes[name], batch)
    captions = [caption for _ in range(3) for caption in stream.add(pixels)] + stream.finish()
    assert len(captions) == 3 * batch
    return {"weights_gib": gib(iter(captioner.backend.model.parameters())), "peak_gib": peak_gib(work.device)}


SECTIONS: dict[str, tuple[Callable[[Work], Any] | None, Callable[[Work], None]]] = {
    "device": (None, device_section),
    "tests": (None, tests_section),
    "inference": (prepare_inference, inference_section),
    "training": (draw_samples, training_section),
    "profile": (prepare_inference, profile_section),
    "memory": (prepare_inference, memory_section),
}
"""What each prepares on the processor while another section has the device, and what it measures."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=list(SECTIONS))
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--done", nargs="*", default=[], help="rows that are there already")
    options = parser.parse_args()
    rows = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whoever prints, prints to the log
    print(f"\n===== {options.section}", file=sys.stderr)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    prepare, measure = SECTIONS[options.section]
    if options.tiny:
        torch.set_num_threads(1)

    def emit(row: Row) -> None:
        rows.write(json.dumps(row) + "\n")

    def work(limits: Row) -> Work:
        device = torch.device(options.device)
        return Work(device, options.quick, options.tiny, options.scratch, tuple(options.done), emit, limits)

    if prepare is not None:
        prepare(work({}))
    limits = sys.stdin.readline()
    if limits:
        measure(work(json.loads(limits)))
        os._exit(0)  # without waiting for what measured rows left running


if __name__ == "__main__":
    main()
