"""What the best checkpoint holds beside the model, and how it is published: recipe, scores, photos and the card."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from captioner.config import RunConfig
from captioner.data.images import load_image
from captioner.decoding.options import DEFAULT_NUM_BEAMS, GenerationOptions
from captioner.errors import CaptionerError
from captioner.hub.publish import prepare_upload, upload
from captioner.hub.run_card import CAPTIONS, RECIPE, SAMPLES, SCORES, run_card
from captioner.metrics.report import as_json
from captioner.metrics.score import Scores

PHOTOS = 4
"""Photos that the card shows."""

THUMBNAIL = 320  # pixels, the longer side


def write_best(
    folder: Path,
    config: RunConfig,
    scores: Scores,
    train_images: int,
    photos: Sequence[tuple[Any, str]],
    start: ModelCard | None,
) -> None:
    """Write recipe, scores with intervals, some photos with their captions, and the card into a model's folder.

    Args:
        photos: images as sources give them, and the model's captions.
        start: the card of the model that the training started from.
    """
    recipe = config.model_dump(mode="json", exclude_unset=True)
    (folder / RECIPE).write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    report = as_json(scores)
    del report["per_image"]
    report |= {"num_beams": config.validation.num_beams, "train_images": train_images}
    (folder / SCORES).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if photos:
        _write_photos(folder / SAMPLES, photos[:PHOTOS])
    run_card(folder, Path(config.output_dir).name, f"{config.output_dir}/best", start).save(folder / "README.md")


def _write_photos(folder: Path, photos: Sequence[tuple[Any, str]]) -> None:
    folder.mkdir()
    captions = {}
    for number, (photo, caption) in enumerate(photos):
        image = load_image(photo, min_size=THUMBNAIL)
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        image.save(folder / f"{number}.jpg", quality=85)
        captions[f"{number}.jpg"] = caption
    (folder / CAPTIONS).write_text(json.dumps(captions, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def push_best(best: Path, repository: str) -> str:
    """Publish the best checkpoint in a private repository; return what to tell the user.

    A Hub that refuses or cannot be reached does not end a training.
    """
    search = {"num_beams": DEFAULT_NUM_BEAMS, "max_new_tokens": GenerationOptions.max_new_tokens}
    try:
        with tempfile.TemporaryDirectory() as scratch:
            prepare_upload(best, Path(scratch), repository, search)
            return f"published: {upload(Path(scratch), repository, private=True)}"
    except CaptionerError as error:
        return f"warning: {error}; `captioner push` publishes it later"
