"""Converts public captioning checkpoints of other libraries to captioners.

A family of checkpoints is one module with two names: `MODEL_TYPE`, the model type in its config.json, and
`read(folder) -> Checkpoint`. To add a family, write its module and add it to `FAMILIES`.
"""

import textwrap
from pathlib import Path

from captioner.convert import vision_encoder_decoder
from captioner.convert.read import MALFORMED, Checkpoint, model_type
from captioner.convert.verify import LOGITS_TOLERANCE, largest_difference
from captioner.errors import CaptionerError
from captioner.files import new_folder
from captioner.hub.card import read_card, usage, write_card
from captioner.hub.find import find_model
from captioner.hub.load import save_model
from captioner.model.build import build_model
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration

FAMILIES = (vision_encoder_decoder,)

GENERATION = (
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "num_beams",
    "early_stopping",
    "length_penalty",
    "no_repeat_ngram_size",
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
    raise CaptionerError(f"a {found!r} model; convert reads {', '.join(family.MODEL_TYPE for family in FAMILIES)}")


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
