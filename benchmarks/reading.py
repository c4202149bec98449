"""Time reading photos, from JPEG files to model input: at full and at reduced scale, in threads and in processes.

    CAPTIONER_FLICKR8K=folder python benchmarks/reading.py [--size 4000] [--count 16]

The photos are first enlarged to the size of a camera's. Prints one JSON line: photos a second for each way, the
speed-up of the reduced scale in one thread, and the largest and mean difference that it makes to pixels from 0 to 255.
"""

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from captioner.data.images import load_image
from captioner.model.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(image_size=224)


def read(photo: bytes, min_size: int | None) -> np.ndarray:
    return PREPROCESSING(load_image(photo, min_size))


def enlarged(path: Path, size: int) -> bytes:
    buffer = io.BytesIO()
    Image.open(path).convert("RGB").resize((size, size * 3 // 4), Image.Resampling.BICUBIC).save(
        buffer, "JPEG", quality=90
    )
    return buffer.getvalue()


def photos_per_second(run: Callable[[], Any], count: int, rounds: int) -> float:
    seconds = []
    for _ in range(rounds + 1):  # the first is warm-up
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return round(count / median(seconds[1:]), 1)


def main() -> None:
    default = os.environ.get("CAPTIONER_FLICKR8K")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=Path(default, "images") if default else None)
    parser.add_argument("--size", type=int, default=4000, help="longer side, pixels")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.photos is None:
        sys.exit("set CAPTIONER_FLICKR8K or give --photos")
    photos = [enlarged(path, options.size) for path in sorted(options.photos.glob("*.jpg"))[: options.count]]
    full, reduced = partial(read, min_size=None), partial(read, min_size=PREPROCESSING.min_size)
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as threads, ProcessPoolExecutor(workers, get_context("spawn")) as processes:
        ways = {
            "full": lambda: list(map(full, photos)),
            "reduced": lambda: list(map(reduced, photos)),
            f"reduced_{workers}_threads": lambda: list(threads.map(reduced, photos)),
            f"reduced_{workers}_processes": lambda: list(processes.map(reduced, photos)),
        }
        speeds = {name: photos_per_second(run, len(photos), options.rounds) for name, run in ways.items()}
    scale = 255 * np.asarray(PREPROCESSING.std, dtype=np.float32)[:, None, None]
    differences = [np.abs(full(photo) - reduced(photo)) * scale for photo in photos]
    line = {"photo": f"{options.size} x {options.size * 3 // 4}", "photos_per_s": speeds}
    line["reduced_ratio"] = round(speeds["reduced"] / speeds["full"], 2)
    line["pixel_difference"] = {
        "max": round(float(np.max(differences)), 1),
        "mean": round(float(np.mean(differences)), 2),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
