"""Time training steps with the objective reward in this checkout and in another, in turns, and print one JSON line.

    git worktree add /tmp/before 26a9f29
    CAPTIONER_FLICKR8K=folder python benchmarks/reward_step.py /tmp/before

Both checkouts fine-tune the bundled model on the same photos with the same recipe: five drawn captions and two given
ones for each photo, through `train.py`. Each round runs one training in each checkout and gives the ratio of the median
steps; the first steps are warm-up. Two phases are timed: `frozen` reads cached features, so that the step is mostly
drawing and scoring captions; `joint` trains the last blocks of the trunk too.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from machine import machine

ROOT = Path(__file__).parents[1]
RATES = {"frozen": {"bridge": 1e-5, "decoder": 1e-5}, "joint": {"trunk": 1e-5, "bridge": 1e-5, "decoder": 1e-5}}
WARM_UP = 2


def recipe(data: Path, images: Path, phase: str, options: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = {"name": phase, "steps": WARM_UP + options.steps, "learning_rates": RATES[phase]}
    settings |= {"objectives": {"captioning": 0.5, "reward": 1.0}, "label_smoothing": 0.0}
    if phase == "joint":
        settings["trunk_blocks"] = 9
    source = {"path": str(data), "images": str(images), "split": "train"}
    return {
        "output_dir": "run",
        "data": {
            "train": source,
            "validation": source,
            "captions_per_image": 2,
            "max_caption_tokens": 32,
            "num_workers": 0,
        },
        "pretrained": "default",
        "model": {"dropout": 0.0},
        "phases": [settings],
        "optimization": {"batch_size": options.batch_size, "mixed_precision": options.precision},
        "validation": {"max_images": 1, "samples": 0},
        "checkpoint_every_steps": 10**6,
    }


def step_seconds(checkout: Path, settings: dict[str, Any]) -> float:
    """Run a training in a checkout; return the median of its steps."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "recipe.yaml").write_text(yaml.safe_dump(settings))
        environment = os.environ | {"PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(checkout / "train.py"), "--config", "recipe.yaml"]
        finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if finished.returncode:
            raise SystemExit(f"{checkout}: {finished.stderr[-2000:]}")
        lines = [json.loads(line) for line in (Path(folder) / "run" / "log.jsonl").read_text().splitlines()]
    return median(line["seconds"] for line in [line for line in lines if "loss" in line][WARM_UP:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="another checkout of captioner")
    parser.add_argument("--data", type=Path, default=os.environ.get("CAPTIONER_FLICKR8K"), help="folder of Flickr8k")
    parser.add_argument("--phases", nargs="+", choices=list(RATES), default=list(RATES))
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a training")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["no", "bf16"], default="bf16")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data, or set CAPTIONER_FLICKR8K")
    tree = json.loads((Path(options.data) / "dataset_flickr8k.json").read_text(encoding="utf-8"))
    tree["images"] = [image for image in tree["images"] if image["split"] == "train"][: options.images]
    result: dict[str, Any] = {"machine": machine(), "load_before": os.getloadavg(), "precision": options.precision}
    with TemporaryDirectory() as folder:
        data = Path(folder) / "dataset.json"
        data.write_text(json.dumps(tree))
        for phase in options.phases:
            settings = recipe(data, Path(options.data) / "images", phase, options)
            pairs = []
            for number in range(options.rounds):
                pairs.append((step_seconds(ROOT, settings), step_seconds(options.other.resolve(), settings)))
                print(
                    f"{phase} {number + 1}/{options.rounds}: {pairs[-1][0]:.2f} and {pairs[-1][1]:.2f} s",
                    file=sys.stderr,
                )
            ratios = [theirs / ours for ours, theirs in pairs]
            result[phase] = {
                "seconds": round(median(ours for ours, _ in pairs), 3),
                "seconds_other": round(median(theirs for _, theirs in pairs), 3),
                "times_faster": round(median(ratios), 2),
                "rounds": [round(ratio, 2) for ratio in ratios],
            }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
