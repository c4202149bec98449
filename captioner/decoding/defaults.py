"""How a model was meant to be asked: the defaults of its `generation_config.json`, and what a caller changes."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from captioner.decoding.options import GenerationOptions
from captioner.errors import CaptionerError

FIELDS = tuple(field.name for field in fields(GenerationOptions))
SEARCHING = {
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "length_penalty",
    "early_stopping",
    "force_words_ids",
}
DRAWING = {"do_sample", "temperature", "top_k", "top_p", "seed"}


def generation_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model's `generation_config.json` sets of the fields of `GenerationOptions`.

    Its `max_length` and `min_length` count the start token, which `max_new_tokens` and `min_new_tokens` do not.
    """
    found = {name: config.get(name) for name in FIELDS}
    for name, length in (("max_new_tokens", config.get("max_length")), ("min_new_tokens", config.get("min_length"))):
        if found[name] is None and length is not None:
            found[name] = max(0, length - 1)
    return {name: value for name, value in found.items() if value is not None}


def options_with(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> GenerationOptions:
    """The options that are `given`, and those of `defaults` that go with them.

    Who asks for beams does not draw, even from a model that draws by default, and the other way round. Who asks for
    more captions than the model has beams by default gets as many beams.

    Raises:
        CaptionerError: an option is unknown or out of range.
    """
    if unknown := sorted(given.keys() - FIELDS):
        raise CaptionerError(f"unknown option {', '.join(unknown)}; there are {', '.join(FIELDS)}")
    draws = given.get("do_sample", defaults.get("do_sample", False) and not given.keys() & SEARCHING)
    chosen = {name: value for name, value in defaults.items() if name not in (SEARCHING if draws else DRAWING)}
    chosen |= {"do_sample": draws, **given}
    if "num_beams" not in given and given.get("num_return_sequences", 0) > chosen.get("num_beams", 0):
        chosen.pop("num_beams", None)
    return GenerationOptions(**chosen)
