"""Time `infer.py` on one photo in fresh processes, and print one JSON line for each route: the bundled model as it is
computed by default, the same by torch, and its int8 export, which is made first.

    python benchmarks/cold_start.py

`seconds` is the wall-clock time of the whole command and `cpu_seconds` its CPU time; they differ if the machine does
other work. `split` comes from a separate process that makes the same calls in turn: the interpreter and all imports,
loading the model, reading and preprocessing the photo, captioning it. Only the file cache is warm.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "torchvision", "transformers", "timm"}
EXPORT = "from captioner.cli import main; main()"
SPLIT = """
import json, sys, time

photo, model, backend, home, spawned = sys.argv[1:]
laps, last = {}, float(spawned)

def lap(name):
    global last
    laps[name], last = time.time() - last, time.time()

import gc, importlib, os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # this and the collector as the command does it
gc.disable()
import captioner.annotate.folder, captioner.cli
from captioner.data.images import load_image
from captioner.infer.captioner import Captioner
from captioner.decoding.options import GenerationOptions

importlib.import_module(home)
lap("interpreter_and_imports")
captioner = Captioner.from_pretrained(model or None, backend=backend)
gc.freeze(), gc.unfreeze(), gc.enable()
lap("load_model")
pixel_values = captioner.preprocessing(load_image(photo, captioner.preprocessing.min_size))[None]
lap("read_and_preprocess")
stream = captioner.stream(GenerationOptions())
stream.add(pixel_values), stream.finish()
lap("caption")
print(json.dumps(laps))
"""


def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter with this captioner; a failure ends the benchmark with its message."""
    finished = subprocess.run(
        [sys.executable, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if finished.returncode:
        sys.exit(f"error: {finished.stderr.strip()}")
    return finished


def measure(photo: Path, model: Path | None, backend: str, home: str, rounds: int) -> dict[str, Any]:
    """One route, computed by the module `home`. The first round warms the file cache and is not counted."""
    command = [ROOT / "infer.py", photo, "--backend", backend, *(["--model", model] if model else [])]
    seconds, cpu_seconds, splits = [], [], []
    for _ in range(rounds + 1):
        before, start = os.times(), time.perf_counter()
        caption = python(*command).stdout
        seconds.append(time.perf_counter() - start)
        after = os.times()
        cpu_seconds.append(sum(after[2:4]) - sum(before[2:4]))
        splits.append(json.loads(python("-c", SPLIT, photo, model or "", backend, home, str(time.time())).stdout))
    imported = {line.rpartition("|")[2].strip() for line in python("-X", "importtime", *command).stderr.splitlines()}
    return {
        "seconds": round(median(seconds[1:]), 2),
        "seconds_min": round(min(seconds[1:]), 2),
        "cpu_seconds": round(median(cpu_seconds[1:]), 2),
        "split": {name: round(median(split[name] for split in splits[1:]), 3) for name in splits[0]},
        "imported": sorted(HEAVY & imported),
        "caption": caption.strip().rpartition("\t")[2],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, default=ROOT / "examples" / "photos" / "cliff.jpg")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        export = Path(folder) / "int8"
        python("-c", EXPORT, "export", "default", export, "--precision", "int8")
        routes = {
            "default": (None, "auto", "captioner.infer.onnx_backend"),
            "torch": (None, "torch", "captioner.infer.torch_backend"),
            "int8 export": (export, "auto", "captioner.infer.onnx_backend"),
        }
        for route, (model, backend, home) in routes.items():
            report = {
                "benchmark": "cold_start",
                "route": route,
                "threads": int(os.environ["OMP_NUM_THREADS"]),
                "load_average_before": round(os.getloadavg()[0], 1),
                "rounds": options.rounds,
            }
            print(json.dumps(report | measure(options.photo, model, backend, home, options.rounds)), flush=True)


if __name__ == "__main__":
    main()
