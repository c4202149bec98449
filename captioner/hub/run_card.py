"""The card of a trained model: photos with captions, how to use it, data, recipe, scores, calibration, limits, licence.

It is written from the files that a training keeps in the model's folder; without them it is shorter.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

from captioner.hub.card import usage

RECIPE, SCORES, SAMPLES, CAPTIONS = "recipe.yaml", "scores.json", "samples", "captions.json"
CALIBRATION = "calibration.json"
"""What a training keeps beside the weights: the recipe as run, validation scores, photos with captions; and what
`captioner calibrate` adds."""

HOMEPAGE = "https://github.com/captioner-project/captioner"

LIMITS = """It knows what its training data show, and describes everything else in the same words. It guesses at age and
intent, miscounts, cannot read text, and repeats the assumptions of the people who wrote its captions. Have a person
read its captions where a wrong one does harm."""


def run_card(
    folder: Path,
    title: str,
    name: str,
    before: ModelCard | None,
    license_id: str | None = None,
    photos: bool = True,
) -> ModelCard:
    """The card of the model in `folder`.

    Args:
        name: how to load the model: a path, or its name on the Hub.
        before: the model's card so far, or that of the model it started from, whose metadata are kept.
        license_id: the Hub's name of the model's licence; default: what `before` says.
        photos: show the sample photos.
    """
    recipe = _read_yaml(folder / RECIPE)
    scores = _read_json(folder / SCORES)
    sections = [
        f"# {title}",
        *(_gallery(folder) if photos else ()),
        _introduction(folder),
        _use(name),
        *_data(recipe, scores),
        *_training(recipe),
        *_scores(scores),
        *_calibration(_read_json(folder / CALIBRATION)),
        f"## Limits\n\n{LIMITS}",
        _licence(license_id or (before.data.get("license") if before else None)),
    ]
    if not recipe and before:  # not of a training: what its own card says is all that is known
        sections.append(before.text.strip())
    data = before.data if before else ModelCardData()
    data["library_name"], data["pipeline_tag"] = "transformers", "image-text-to-text"
    data["tags"] = sorted({*(data.get("tags") or []), "captioner", "image-captioning"})
    if license_id:
        data["license"], data["license_name"], data["license_link"] = license_id, None, None
    if datasets := [path.removeprefix("hf:") for path in _paths(recipe) if path.startswith("hf:")]:
        data["datasets"] = datasets
    if scores:
        data["model_name"], data["eval_results"] = title, list(_results(recipe, scores))
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def _gallery(folder: Path) -> Iterator[str]:
    samples = _read_json(folder / SAMPLES / CAPTIONS)
    if samples:
        cells = [f"![]({SAMPLES}/{photo})<br>{_cell(caption)}" for photo, caption in samples.items()]
        yield "\n".join([f"| {' | '.join(cells)} |", "|" + "---|" * len(cells)])


def _introduction(folder: Path) -> str:
    config = _read_json(folder / "config.json")
    size = _parameters(folder / "model.safetensors") / 1e6
    return (
        f"An image captioner with {size:.1f} million parameters, trained with [captioner]({HOMEPAGE}): "
        f"{config.get('encoder_name')} as the image encoder, and a Transformer decoder of "
        f"{config.get('num_hidden_layers')} layers of width {config.get('hidden_size')}."
    )


def _parameters(weights: Path) -> int:
    with safe_open(weights, "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - not a mapping
    total = 0
    for shape in shapes:
        count = 1
        for size in shape:
            count *= size
        total += count
    return total


def _use(name: str) -> str:
    return f"""## Use

With transformers, timm and sentencepiece:

```python
from transformers import pipeline

captions = pipeline("image-text-to-text", "{name}", trust_remote_code=True)
print(captions("photo.jpg", text=""))
```

With captioner (`pip install captioner`), which runs no code from this repository:

{usage(name)}""".rstrip()


def _data(recipe: Mapping[str, Any], scores: Mapping[str, Any]) -> Iterator[str]:
    if recipe:
        sources = ", ".join(f"`{_shown(path)}`" for path in _paths(recipe))
        images = f" ({scores['train_images']:,} images)" if "train_images" in scores else ""
        yield f"## Training data\n\n{sources}{images}."


def _training(recipe: Mapping[str, Any]) -> Iterator[str]:
    if recipe:
        rows = ["| phase | length | learning rates | objectives |", "|---|---|---|---|", *_phases(recipe["phases"])]
        start = _start(recipe.get("pretrained") or {})
        yield f"## Training\n\nIt started from {start}. [{RECIPE}]({RECIPE}) has every setting.\n\n" + "\n".join(rows)


def _phases(phases: list[dict[str, Any]], times: str = "") -> Iterator[str]:
    for phase in phases:
        if "repeat" in phase:
            yield from _phases(phase["phases"], f", {phase['repeat']} times")
            continue
        length = f"{phase['epochs']} epochs" if phase.get("epochs") else f"{phase.get('steps')} steps"
        rates = ", ".join(f"{part} {rate:g}" for part, rate in phase["learning_rates"].items())
        objectives = ", ".join(phase.get("objectives") or ["captioning"])
        yield f"| {phase['name']} | {length}{times} | {rates} | {objectives} |"


def _start(pretrained: str | Mapping[str, Any]) -> str:
    if isinstance(pretrained, str):
        return f"`{_shown(pretrained)}`"
    named = [f"{part} `{_shown(source)}`" for part, source in pretrained.items() if source]
    return ", ".join(named) or "random weights"


def _scores(scores: Mapping[str, Any]) -> Iterator[str]:
    if scores:
        rows = [
            f"| {metric} | {value['score']:.4f} | {value['low']:.4f}–{value['high']:.4f} |"
            for metric, value in scores["scores"].items()
        ]
        table = "\n".join(["| metric | score | 95 % interval |", "|---|---|---|", *rows])
        yield (
            f"## Scores\n\nOn {scores['images']:,} validation images with {scores['num_beams']} beams, computed as the "
            "official COCO scorer does. These images chose the checkpoint, so the scores are slightly optimistic.\n\n"
            + table
        )


def _calibration(calibration: Mapping[str, Any]) -> Iterator[str]:
    if calibration:
        yield f"## Calibration\n\nConfidences are calibrated: [{CALIBRATION}]({CALIBRATION})."


def _licence(name: str | None) -> str:
    stated = f"The model's licence is `{name}`." if name else "Its author states no licence, so ask before you use it."
    return f"## Licence\n\n{stated} The terms of the training data, and of the weights it started from, apply as well."


def _results(recipe: Mapping[str, Any], scores: Mapping[str, Any]) -> Iterator[EvalResult]:
    source = next(iter(_paths(recipe, "validation")), "validation")
    for metric, value in scores["scores"].items():
        yield EvalResult(
            task_type="image-to-text",
            dataset_type=_shown(source),
            dataset_name=f"{_shown(source)}, validation",
            metric_type=metric,
            metric_value=value["score"],
        )


def _paths(recipe: Mapping[str, Any], part: str = "train") -> list[str]:
    """The paths of a recipe's sources."""
    sources = recipe.get("data", {}).get(part, [])
    return [source["path"] for source in (sources if isinstance(sources, list) else [sources])]


def _shown(path: str) -> str:
    """A path without the folders of the machine that it was on; a name of the Hub as it is."""
    if path.startswith("hf:"):
        return path.removeprefix("hf:")
    return path if path.count("/") == 1 and not PurePath(path).suffix else PurePath(path).name


def _cell(text: str) -> str:
    """A caption inside a table of Markdown: hostile text, so nothing of it is markup."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{character}" if character in "\\`*_{}[]()#+-!|~" else character for character in escaped)


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _read_yaml(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text(encoding="utf-8"))) if path.is_file() else {}
