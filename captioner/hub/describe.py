"""Says what kind of model a folder holds, for messages to someone who named one that is not read."""

import json
from pathlib import Path
from typing import Any

MARKS = {
    "model_index.json": "a pipeline of diffusers, which makes images",
    "adapter_config.json": "an adapter of PEFT; merge it with its base model (merge_and_unload) and save that",
    "open_clip_config.json": "a model of open_clip, which writes no captions",
    "modules.json": "a model of sentence-transformers, which writes no captions",
}
"""Files that other libraries' models are known by, and what to say of them."""


def describe(folder: Path) -> str:
    """One phrase: the kind of model, and what reads it."""
    for name, kind in MARKS.items():
        if (folder / name).is_file():
            return kind
    config = read_config(folder)
    if not (folder / "config.json").is_file():
        others = sorted(
            path.name for path in folder.iterdir() if path.suffix in (".gguf", ".h5", ".pt", ".pth", ".ckpt")
        )
        return f"no model: there is no config.json in it{f', only {others[0]}' if others else ''}"
    if not config:
        return "no model: its config.json holds no JSON object"
    if "model_type" not in config:
        if "architecture" in config:
            return f"a {config['architecture']!r} of timm, which writes no captions; it can be a captioner's encoder"
        return "a model of an unknown kind: its config.json names no model_type"
    architectures = config.get("architectures")
    reader = architectures[0] if isinstance(architectures, list) and architectures else "AutoModel"
    if config.get("auto_map"):
        return f"a {config['model_type']!r} model with code of its own, which is not run"
    return f"a {config['model_type']!r} model, which transformers reads as {reader}"


def model_type(folder: Path) -> object:
    """The model type that config.json names; None if there is none."""
    return read_config(folder).get("model_type")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, or nothing where it cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
