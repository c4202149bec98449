"""Annotation projects at scale: what a second run costs, and how much memory a long run takes.

    python benchmarks/projects.py --images 20000                    # the bundled model
    python benchmarks/projects.py --images 100000 --stub --memory   # without a network

Makes so many photos from those in examples/photos, small and each with bytes of its own, captions them into a project,
runs again with nothing changed, and prints one JSON line. Run by hand: it takes what captioning takes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
COUNTS_OPENED = """
import builtins, runpy, sys
opened, real = [], builtins.open
def noting(file, *more, **named):
    if str(file).endswith(".jpg"):
        opened.append(file)
    return real(file, *more, **named)
builtins.open = noting
sys.argv = sys.argv[1:]
try:
    if sys.argv[0] == "captioner":
        runpy.run_module("captioner", run_name="__main__")
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("images opened:", len(opened))
"""


def make_photos(folder: Path, count: int) -> None:
    """JPEGs of 256 pixels; the bytes after the end of an image make each file another."""
    sources = []
    for path in sorted((ROOT / "examples" / "photos").glob("*.jpg")):
        small = folder / path.name
        with Image.open(path) as image:
            image.convert("RGB").resize((256, 256)).save(small, quality=85)
        sources.append(small.read_bytes())
        small.unlink()
    for number in range(count):
        place = folder / f"{number // 1000:03}"
        place.mkdir(exist_ok=True)
        (place / f"{number:06}.jpg").write_bytes(sources[number % len(sources)] + b"%d" % number)


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Bring the project up to date; seconds by the clock and of CPU, peak memory, and how often an image was opened."""
    script = [str(ROOT / "tests" / "stub_captioner.py"), "a.captions", "0", "photos"]
    if not arguments.stub:
        script = ["captioner", "annotate", "photos", "-o", "a.captions"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    command = [sys.executable, "-c", COUNTS_OPENED, *script]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = process.stdout.read().splitlines()[-1]
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    opened = int(last.rpartition(" ")[2])
    seconds, cpu = time.monotonic() - began, usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": usage.ru_maxrss / 1024, "opened": opened}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--stub", action="store_true", help="no network: what is measured is everything around it")
    parser.add_argument(
        "--memory", action="store_true", help="also a run over a tenth of the images, to compare memory"
    )
    arguments = parser.parse_args()
    found: dict[str, object] = {"benchmark": "projects", "images": arguments.images, "stub": arguments.stub}
    for name, count in (("tenth_", arguments.images // 10), ("", arguments.images)):
        if name and not arguments.memory:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            (folder / "photos").mkdir()
            make_photos(folder / "photos", count)
            first, second = run(arguments, folder), run(arguments, folder)
            for run_name, values in (("first", first), ("second", second)):
                found |= {f"{name}{run_name}_{key}": round(value, 2) for key, value in values.items()}
            found[f"{name}project_mb"] = round((folder / "a.captions").stat().st_size / 1e6, 1)
            found["ratio"] = round(second["seconds"] / first["seconds"], 4)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
