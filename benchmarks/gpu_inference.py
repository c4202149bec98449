"""gpu.py's section `inference`: our stream of captions against transformers' `generate`, with the same weights."""

import functools
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_work import END, NEW_TOKENS, Measurement, Row, Shape, Work, peak_gib, run, seconds_each
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch._dynamo.utils import counters
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

from captioner.annotate.pipeline import caption_images, map_ahead
from captioner.convert import convert_model
from captioner.infer.captioner import Captioner


def write_peer(shape: Shape, folder: Path) -> None:
    """Write a checkpoint in a public format with random weights: model, tokenizer and image processor."""
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
    """Write the same weights in the peer's format and in ours, for all processes of the section."""
    for name, shape in work.shapes.items():
        if not (work.scratch / name / "ours").exists():
            write_peer(shape, work.scratch / name / "peer")
            convert_model(work.scratch / name / "peer", work.scratch / name / "ours")
    draw_photos(work)


def draw_photos(work: Work) -> list[Path]:
    """Draw JPEG files of 640 x 480 pixels that take about as long to decode as photos."""
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
    """Time a stream of eight batches, including its start and end."""
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
    """Return the bytes that a decoder step must read: weights, without those of the cross-attention's keys and values;
    the keys and values of the images; and on average half of the keys and values of the tokens."""
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    weights = sum(parameter.numel() for parameter in model.decoder.layers.parameters()) + model.lm_head.weight.numel()
    weights -= sum(layer.cross_attn.kv_proj.weight.numel() for layer in model.decoder.layers)
    size = model.config.image_size // 16
    states = 2 * layers * width * batch * (size * size + 1 + beams * NEW_TOKENS // 2)
    return (weights + states) * model.lm_head.weight.element_size()


def host_synchronizations(function: Callable[[], Any], device: torch.device) -> int | None:
    """Count how often the host waits for the device in a second call."""
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
    """Time the peer with a static cache. `generate` does not compile such an encoder-decoder, so this compiles encoder
    and decoder, the decoder with CUDA graphs if possible; the row names the modes that failed and the reason."""
    pixels = torch.from_numpy(pixel_batch(work.shapes[name], batch))
    backend = "inductor" if work.device.type == "cuda" else "eager"  # on a CPU, only try the calls
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
            write(pixels)  # records CUDA graphs, if any
            write(pixels)
            seconds = seconds_each(lambda write=write: write(pixels), work)
        except Exception as error:  # whatever failed, try the next mode
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
    """Return a function from pixel values [B, 3, H, W] on the host to captions."""
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
    """Time reading ahead with so many threads."""
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
