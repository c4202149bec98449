"""What an exported folder is told by, and its version."""

import json
from pathlib import Path

MODEL_TYPE = "captioner-onnx"
FORMAT_VERSION = 3


def is_export(folder: Path) -> bool:
    """Whether `captioner export` wrote this folder."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == MODEL_TYPE
