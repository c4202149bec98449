"""Converts public captioning checkpoints of other libraries to captioners.

A family of checkpoints is one module with two names: `MODEL_TYPE`, the model type in its config.json, and
`read(folder) -> Checkpoint`. To add a family, write its module and add it to `FAMILIES`.
"""

import hashlib
import os
import sys
import textwrap
from pathlib import Path

from captioner.convert import blip, git, vision_encoder_decoder
from captioner.convert.read import MALFORMED, Checkpoint
from captioner.convert.verify import LOGITS_TOLERANCE, largest_difference
from captioner.errors import CaptionerError
from captioner.files import new_folder, reporting
from captioner.hub.card import read_card, usage, write_card
from captioner.hub.describe import describe, model_type
from captioner.hub.find import find_model
from captioner.hub.load import save_model
from captioner.model.build import build_model
from captioner.model.configuration_captioner import CaptionerConfig
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration

FAMILIES = (vision_encoder_decoder, blip, git)

CACHE_VERSION = "1"
"""Of what conversion writes; a higher one converts anew."""

GENERATION = (
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "num_beams",
    "early_stopping",
    "length_penalty",
    "no_repeat_ngram_size",
    "repetition_penalty",
)
"""Fields of the checkpoint's generation_config.json that the captioner keeps."""


def convert_model(source: str | Path, output: Path) -> float:
    """Write a checkpoint, in a folder or on the Hugging Face Hub, as the captioner `output`, completely or not at all.

    Returns:
        The largest difference between the logits of the two models, in float64 on random images and tokens.

    Raises:
        CaptionerError: `output` exists; there is no such checkpoint, or it is incomplete or of an unknown kind; or the
            logits differ by more than 1e-4.
    """
    with new_folder(output) as partial:
        folder, name = find_model(source)
        return _convert(folder, name, partial, output)


def as_captioner(folder: Path, name: str, cache_dir: str | Path | None = None) -> Path:
    """Return the folder of a model, or if it is a checkpoint that a family reads, that of the captioner it becomes.

    It is converted once and kept in a cache of ours; stderr says so.

    Args:
        cache_dir: the folder that downloads are cached in; ours is made in it. Default: beside huggingface_hub's.

    Raises:
        CaptionerError: it is neither a captioner nor convertible; the message says what it is and what reads it.
    """
    from huggingface_hub.utils import WeakFileLock

    kind = model_type(folder)
    if kind == CaptionerConfig.model_type:
        return folder
    if not is_convertible(kind):
        known = ", ".join(family.MODEL_TYPE for family in FAMILIES)
        raise CaptionerError(f"{name}: {describe(folder)}; captioner reads its own models, and converts {known}")
    output = _place(folder, Path(cache_dir) if cache_dir else None)
    with reporting(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(output.with_name(f"{output.name}.lock")):  # of several processes, one converts
        if not output.is_dir():
            print(f"{name}: a {kind!r} model; converting it, once, to {output}", file=sys.stderr)
            with new_folder(output) as partial:
                _convert(folder, name, partial, output)
    return output


def is_convertible(kind: object) -> bool:
    """Whether a family reads this model type."""
    return any(kind == family.MODEL_TYPE for family in FAMILIES)


def _place(folder: Path, cache_dir: Path | None) -> Path:
    """Where a conversion is kept: by repository and commit for a download, else by the folder and its files' times."""
    from huggingface_hub import constants

    cache = cache_dir / "captioner" if cache_dir else Path(constants.HF_HUB_CACHE).parent / "captioner"
    folder = Path(os.path.abspath(folder))
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
        return cache / CACHE_VERSION / folder.parents[1].name / folder.name
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())]
    key = hashlib.blake2b(repr((str(folder), files)).encode(), digest_size=8).hexdigest()
    return cache / CACHE_VERSION / "folders" / f"{folder.name}-{key}"


def _convert(folder: Path, name: str, partial: Path, output: Path) -> float:
    card = read_card(folder, name)
    try:
        checkpoint = _read(folder)
        model = build_model(checkpoint.config).eval()
        model.load_state_dict(checkpoint.weights)
    except CaptionerError as error:
        raise CaptionerError(f"{name}: {error}") from error
    except (OSError, *MALFORMED) as error:
        raise CaptionerError(f"{name}: cannot be converted: {textwrap.shorten(str(error), 300)}") from error
    difference = largest_difference(checkpoint.model, model)
    if not difference <= LOGITS_TOLERANCE:  # NaN is not either
        raise CaptionerError(f"{name}: not converted, because its logits and ours would differ by {difference:.1e}")
    settings = {key: getattr(checkpoint.model.generation_config, key) for key in GENERATION}
    model.generation_config.update(**{key: value for key, value in settings.items() if value is not None})
    save_model(model, checkpoint.processor, partial)
    write_card(partial, _card(name, output.name, checkpoint, model, difference), card, name)
    return difference


def _read(folder: Path) -> Checkpoint:
    found = model_type(folder)
    for family in FAMILIES:
        if found == family.MODEL_TYPE:
            return family.read(folder)
    raise CaptionerError(f"{describe(folder)}; convert reads {', '.join(family.MODEL_TYPE for family in FAMILIES)}")


def _card(
    name: str, folder: str, checkpoint: Checkpoint, model: CaptionerForConditionalGeneration, difference: float
) -> str:
    size, longest = model.config.image_size, model.config.max_position_embeddings
    return f"""# {name}, converted

`captioner convert` made this captioner from a `{type(checkpoint.model).__name__}` of transformers with
{model.num_parameters() / 1e6:.1f} million parameters. On random images and tokens, their logits differ by at most
{difference:.1e}. It takes images of {size} x {size} pixels and writes at most {longest} tokens.
`generation_config.json` holds the original's generation settings.

{usage(folder)}"""
