"""Low-rank adapters (LoRA, Hu et al. 2022, https://arxiv.org/abs/2106.09685) in PEFT's files, merged into a model."""

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.errors import CaptionerError
from captioner.hub.find import find_model

if TYPE_CHECKING:
    from captioner.model.modeling_captioner import CaptionerForConditionalGeneration

ADAPTER = "adapter"
"""The folder inside a trained model's folder that holds its adapter."""

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def import_peft() -> Any:
    """
    Raises:
        CaptionerError: PEFT is not installed.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        raise CaptionerError("adapters need peft: pip install 'captioner[adapters]'") from error
    return peft


def find_adapter(adapter: str | Path) -> tuple[Path, str]:
    """Return the folder of an adapter, and its name for messages.

    Args:
        adapter: a folder with PEFT's files, a training's folder, a model's, or `owner/name` on the Hub.

    Raises:
        CaptionerError: there is no adapter.
    """
    folder, name = find_model(adapter)
    inside = folder / ADAPTER
    folder = folder if (folder / CONFIG).is_file() or not inside.is_dir() else inside
    for file in (CONFIG, WEIGHTS):  # PEFT would read a pickle in place of the weights
        if not (folder / file).is_file():
            raise CaptionerError(f"{name}: not an adapter: the folder has no {file}")
    return folder, name


def merge_adapter(model: "CaptionerForConditionalGeneration", adapter: str | Path) -> str:
    """Add an adapter's update to the weights of a model, in place; return the adapter's name.

    Raises:
        CaptionerError: there is no such adapter, or it belongs to another model.
    """
    peft = import_peft()
    folder, name = find_adapter(adapter)
    from safetensors import SafetensorError, safe_open

    try:
        if json.loads((folder / CONFIG).read_text(encoding="utf-8"))["peft_type"] != "LORA":
            raise ValueError("not a LoRA adapter")
        with safe_open(folder / WEIGHTS, "pt") as file:
            stored = len(list(file.keys()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of missing keys, which are counted below
            adapted = peft.PeftModel.from_pretrained(model, str(folder), local_files_only=True)
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, SafetensorError) as error:
        raise CaptionerError(f"{name}: does not fit this model: {' '.join(str(error).split())[:200]}") from error
    placed = sum(".lora_" in key for key in adapted.state_dict())
    adapted.merge_and_unload()
    if placed != stored:
        raise CaptionerError(f"{name}: does not fit this model: {placed} of its {stored} tensors have a place there")
    return name
