"""What the sections of gpu.py share: model shapes, rows, and how they are timed."""

import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
DEVICE_IS_BROKEN = 75
NEW_TOKENS = 16
CAPTIONS_PER_IMAGE = 5
END = "<|endoftext|>"

Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """The shape of a ViT and of a GPT-2 of the same width."""

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
    """What a section must measure, and on which device."""

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
        """The duration of a measurement."""
        return 0.1 if self.tiny else 1.0 if self.quick else 2.0

    def share(self, amount: float, limit: str) -> float | None:
        """The fraction of the device's measured peak."""
        return round(amount / self.limits[limit], 3) if limit in self.limits else None


@dataclass(frozen=True)
class Measurement:
    """A row, its time limit in seconds, and the function that measures it."""

    row: str
    limit: float
    measure: Callable[[], Row]


def run(work: Work, measurements: list[Measurement]) -> None:
    """Measure one row after another; a failure becomes a row too."""
    work.emit({"plan": [one.row for one in measurements]})
    for one in measurements:
        if one.row in work.done:
            continue
        work.emit({"start": one.row, "limit": one.limit})
        start = time.perf_counter()
        try:
            values = one.measure()
        except Exception:  # whatever failed, go on with the next row
            values = {"error": error_tail()}
        seconds = round(time.perf_counter() - start, 1)
        work.emit({"row": one.row, **values, "row_seconds": seconds})
        go_on_with_a_sound_device(work.device)


def error_tail() -> str:
    return "".join(traceback.format_exc().splitlines(keepends=True)[-12:])[-2500:]


def go_on_with_a_sound_device(device: torch.device) -> None:
    """Exit if the device is broken: after some errors every CUDA call fails, and another process must continue."""
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
    """Return the mean seconds of a call, over as many calls as fit into `work.seconds`, after one warm-up call."""
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
