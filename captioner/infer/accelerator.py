"""Has this machine an accelerator that torch can use? Answered without importing torch where possible."""

import platform
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

DEVICES = {"cuda": ("nvidia*", "nvhost*", "nvmap", "dxg"), "hip": ("kfd", "dxg"), "xpu": ("dri/renderD*", "dxg")}
"""By kind of torch's build: patterns of files in /dev, of which Linux has one if there is such an accelerator."""


def has_accelerator() -> bool:
    if not _may_have_accelerator():
        return False
    import torch

    return torch.accelerator.current_accelerator(check_available=True) is not None


def _may_have_accelerator() -> bool:
    """False if torch is not installed, or this build of it or this machine has no accelerator."""
    try:
        torch = find_spec("torch")
    except ModuleNotFoundError:
        return False
    if torch is None or torch.origin is None:
        return False
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    build: dict[str, Any] = runpy.run_path(str(Path(torch.origin).with_name("version.py")))
    kinds = [kind for kind in DEVICES if build.get(kind)]
    if sys.platform != "linux":
        return bool(kinds)
    return any(next(Path("/dev").glob(pattern), None) for kind in kinds for pattern in DEVICES[kind])
