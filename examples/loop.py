"""The loop that gets better by review: train, caption, review the least confident captions, train again.

    python examples/loop.py data.json runs/loop --recipe configs/NAME.yaml --seeds 3

A tenth of the training photos start with a caption. Each round trains the recipe from the start on what is labelled,
captions the other photos, and gives some of them to a simulated reviewer, who writes the photo's first reference
caption. "least confident" gives those whose captions the model doubts most; "random" spends the same effort on any.
Everything goes through the commands of a real review: a project, its decisions, and `captioner dataset build`.

Prints CIDEr on the validation split after each round, the mean over seeds with a 95 % interval, and writes it with a
picture of the two curves, OUTPUT/curve.svg. Run the same command again to continue after an interruption.
"""

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

from captioner.annotate.project import Project
from captioner.annotate.runs import start_run
from captioner.annotate.scan import scan
from captioner.config import SourceConfig
from captioner.data.sources import load_samples

STRATEGIES = {"least confident": "#2450d8", "random": "#8a4b00"}
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}
"""Student's t for a two-sided 95 % interval, by the number of seeds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="photos with captions, splits train and val, such as Karpathy's dataset_*.json")
    parser.add_argument("output", type=Path)
    parser.add_argument("--recipe", default="configs/flickr8k_small.yaml")
    parser.add_argument("--images", help="folder of the photos; default: beside DATA")
    parser.add_argument("--photos", type=int, help="use so many training photos; default: all")
    parser.add_argument("--labelled", type=float, default=0.1, help="share that starts with a caption")
    parser.add_argument("--rounds", type=int, default=4, help="reviews")
    parser.add_argument("--reviewed", type=float, default=0.1, help="share of the photos that a review labels")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("changes", nargs="*", help="key=value, for the recipe")
    asked = parser.parse_intermixed_args()

    source = SourceConfig(path=asked.data, images=asked.images, split="train")
    samples, _ = load_samples(source)
    references = {str(Path(str(sample.image)).resolve()): sample.captions[0] for sample in samples}
    scores: dict[str, list[list[float]]] = {}
    for strategy in STRATEGIES:
        for seed in range(asked.seeds):
            chosen = random.Random(seed).sample(sorted(references), asked.photos or len(references))
            folder = asked.output / f"{strategy.split()[0]}-{seed}"
            curve = run({photo: references[photo] for photo in chosen}, folder, strategy, seed, asked)
            scores.setdefault(strategy, []).append(curve)
            print(json.dumps({"strategy": strategy, "seed": seed, "CIDEr": curve}), flush=True)
    photos = asked.photos or len(references)
    labelled = [round(photos * (asked.labelled + number * asked.reviewed)) for number in range(asked.rounds + 1)]
    report = {
        strategy: [interval(values) for values in zip(*curves, strict=True)] for strategy, curves in scores.items()
    }
    (asked.output / "curve.svg").write_text(chart(labelled, report), encoding="utf-8")
    summary = {"labelled": labelled, "seeds": asked.seeds, "CIDEr": report}
    (asked.output / "curve.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for number, count in enumerate(labelled):
        columns = [f"{name} {report[name][number][0]:.3f} ± {report[name][number][1]:.3f}" for name in STRATEGIES]
        print(f"{count:6} labelled: " + ", ".join(columns))


def run(references: dict[str, str], folder: Path, strategy: str, seed: int, asked: argparse.Namespace) -> list[float]:
    """One loop; return CIDEr after each training. Rounds that are in `folder` already are not run again."""
    album = folder / "album.captions"
    if not album.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with Project(album, create=True) as project:
            scan(project, references, start_run(project))
            review(project, references, "random", round(asked.labelled * len(references)), seed)
    curve = []
    for number in range(asked.rounds + 1):
        scored = folder / f"scores{number}.json"
        if not scored.exists():
            train_and_score(folder, number, scored, seed, asked)
        curve.append(cider(scored))
        reviewed = folder / f"reviewed{number}"
        if number < asked.rounds and not reviewed.exists():
            listed = folder / "photos.txt"
            listed.write_text("\n".join(references), encoding="utf-8")
            model = str(folder / f"model{number}")
            captioner("annotate", "--files-from", str(listed), "-o", str(album), "--model", model, "--overwrite")
            with Project(album) as project:
                review(project, references, strategy, round(asked.reviewed * len(references)), seed + 100 * number)
            shutil.rmtree(model)
            reviewed.touch()
    return curve


def train_and_score(folder: Path, number: int, scored: Path, seed: int, asked: argparse.Namespace) -> None:
    data, model = folder / f"data{number}", folder / f"model{number}"
    shutil.rmtree(data, ignore_errors=True)
    captioner("dataset", "build", str(folder / "album.captions"), "-o", str(data))
    parts = [
        f"data.{part}={{path: {data}, split: {split}}}" for part, split in (("train", "train"), ("validation", "val"))
    ]
    resume = ["--resume"] if model.exists() else []
    captioner("train", "--config", asked.recipe, *resume, *parts, f"output_dir={model}", f"seed={seed}", *asked.changes)
    images = ["--images", asked.images] if asked.images else []
    captioner("evaluate", "--model", str(model), "--data", asked.data, "--split", "val", *images, "-o", str(scored))


def review(project: Project, references: dict[str, str], strategy: str, count: int, seed: int) -> None:
    """Decide `count` photos as a reviewer would who always writes the reference; all of them in one act."""
    waiting = project.rows("SELECT id, path FROM annotations WHERE verdict IS NULL ORDER BY confidence, id")
    if strategy == "random":
        random.Random(seed).shuffle(waiting)
    with project.transaction():
        for row in waiting[:count]:
            text = references[str(Path(project.absolute(row["path"])).resolve())]
            project.decide(row["id"], project.image(row["id"]).version, "edited", "simulated", text)


def captioner(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "captioner", *arguments], check=True, stdout=sys.stderr)


def cider(scored: Path) -> float:
    scores = json.loads(scored.read_text(encoding="utf-8"))["scores"]
    return float(scores["CIDEr"]["score"])


def interval(values: tuple[float, ...]) -> tuple[float, float]:
    """The mean and half the width of its 95 % interval; 0 for one seed, which has none."""
    if len(values) < 2:
        return mean(values), 0.0
    return mean(values), T_95.get(len(values), 2.0) * stdev(values) / math.sqrt(len(values))


def chart(labelled: list[int], report: dict[str, list[tuple[float, float]]]) -> str:
    """CIDEr over labelled photos, as an SVG."""
    width, height, left, bottom = 640, 360, 60, 50
    low = min(value - half for points in report.values() for value, half in points)
    high = max(value + half for points in report.values() for value, half in points)
    span = (high - low) or 1.0

    def x(count: int) -> float:
        return left + (width - left - 30) * (count - labelled[0]) / max(labelled[-1] - labelled[0], 1)

    def y(value: float) -> float:
        return height - bottom - (height - bottom - 40) * (value - low) / span

    parts = [f'<rect width="{width}" height="{height}" fill="white"/>']
    for step in range(5):
        value = low + span * step / 4
        parts.append(f'<path d="M{left} {y(value):.1f}H{width - 30}" stroke="#dddddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    parts += [f'<text x="{x(n):.1f}" y="{height - bottom + 20}" text-anchor="middle">{n:,}</text>' for n in labelled]
    parts.append(
        f'<text x="{width / 2}" y="{height - 8}" text-anchor="middle">photos with a caption of a person</text>'
    )
    parts.append(f'<text x="{left - 40}" y="20">CIDEr</text>')
    for place, (strategy, points) in enumerate(report.items()):
        color = STRATEGIES[strategy]
        line = " ".join(f"{x(n):.1f},{y(value):.1f}" for n, (value, _) in zip(labelled, points, strict=True))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2.5"/>')
        for n, (value, half) in zip(labelled, points, strict=True):
            bar = f"M{x(n) + 3 * place:.1f} {y(value - half):.1f}V{y(value + half):.1f}"
            parts.append(f'<path d="{bar}" stroke="{color}" stroke-width="1.5"/>')
            parts.append(f'<circle cx="{x(n):.1f}" cy="{y(value):.1f}" r="3.5" fill="{color}"/>')
        parts.append(f'<text x="{left + 30 + 150 * place}" y="20" fill="{color}" font-weight="bold">{strategy}</text>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="13">\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    main()
