"""Publishes models on the Hugging Face Hub, with the code that loads them where captioner is not installed."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import yaml

from captioner.errors import CaptionerError
from captioner.hub.card import read_card
from captioner.hub.find import find_model
from captioner.hub.load import load_model, save_model
from captioner.hub.run_card import CALIBRATION, RECIPE, SAMPLES, SCORES, run_card

if TYPE_CHECKING:
    from transformers import GenerationConfig


def prepare_upload(
    source: str | Path,
    folder: Path,
    repository: str,
    search: Mapping[str, Any],
    license_id: str | None = None,
    photos: bool = True,
) -> None:
    """Write into the empty `folder` what is published of a model: weights, code, tokenizer, processor, recipe, card.

    Args:
        source: a training's folder, a model's, or `default`.
        search: captioner's own defaults of `num_beams` and `max_new_tokens`, for what the model's
            `generation_config.json` leaves open: transformers' `generate` then finds the captions that captioner does.
        license_id: the Hub's name of the model's licence; default: what the model's card says.
        photos: publish the photos that the training showed.

    Raises:
        CaptionerError: there is no such model, or it cannot be read.
    """
    import torch

    found, name = find_model(source)
    model, processor = load_model(found, name)
    model.to(getattr(torch, json.loads((found / "config.json").read_text())["dtype"]))  # as stored
    _complete(model.generation_config, search, model.config.max_position_embeddings)
    save_model(model, processor, folder)
    for file in (SCORES, CALIBRATION):
        if (found / file).is_file():
            shutil.copy(found / file, folder)
    if (found / RECIPE).is_file():
        recipe = yaml.safe_load((found / RECIPE).read_text(encoding="utf-8"))
        (folder / RECIPE).write_text(yaml.safe_dump(_without_folders(recipe), sort_keys=False), encoding="utf-8")
    if photos and (found / SAMPLES).is_dir():
        shutil.copytree(found / SAMPLES, folder / SAMPLES)
    before = read_card(found, name)
    title = repository.rpartition("/")[2]
    run_card(folder, title, repository, before, license_id, photos).save(folder / "README.md")


def _without_folders(value: Any) -> Any:
    """A recipe with the last name of each absolute path: folders of the machine it ran on are nobody's business."""
    if isinstance(value, dict):
        return {key: _without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_folders(each) for each in value]
    return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else value


def _complete(config: "GenerationConfig", search: Mapping[str, Any], positions: int) -> None:
    """Set what the model leaves open. Sampling goes without beams, and captions fit the model's positions."""
    if config.num_beams is None and not config.do_sample:
        config.num_beams = search["num_beams"]
    if config.max_new_tokens is None and config.max_length is None:
        config.max_new_tokens = min(search["max_new_tokens"], positions)


def upload(folder: Path, repository: str, private: bool = False, token: str | bool | None = None) -> str:
    """Make the folder a commit of a model repository, created if there is none; return the commit's address.

    Raises:
        CaptionerError: the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi, ModelCard

    api = HfApi(token=token)
    with uploading(repository):
        ModelCard.load(folder / "README.md").validate()
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Published by captioner push")
    return str(commit.commit_url)


@contextmanager
def uploading(repository: str) -> Iterator[None]:
    """
    Raises:
        CaptionerError: the Hub refuses what is done inside, or cannot be reached.
    """
    from huggingface_hub import errors

    # HTTPError is httpx's or httpx2's, as huggingface_hub's release has it; ValueError, of a card that the Hub refuses.
    refusals = (errors.HTTPError, errors.HFValidationError, ValueError, OSError)
    try:
        yield
    except refusals as error:
        raise CaptionerError(f"{repository}: not uploaded: {str(error).strip().splitlines()[0]}") from error
