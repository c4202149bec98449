"""captioner: learns to describe images, then annotates them.

Public names load on first use, so that `import captioner` needs neither torch nor transformers. To have transformers'
Auto classes read captioner's checkpoints, `import captioner.model.auto`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from captioner.cpu.threads import limit_spinning

if TYPE_CHECKING:
    from captioner.config import load_config
    from captioner.decoding.options import GenerationOptions
    from captioner.infer.caption import Caption
    from captioner.infer.captioner import Captioner
    from captioner.metrics.score import score_captions
    from captioner.model.auto import (
        CaptionerConfig,
        CaptionerForConditionalGeneration,
        CaptionerImageProcessor,
        CaptionerProcessor,
        CaptionerTokenizer,
    )
    from captioner.training.trainer import train

__version__ = "0.1.0"
__all__ = [
    "Caption",
    "Captioner",
    "CaptionerConfig",
    "CaptionerForConditionalGeneration",
    "CaptionerImageProcessor",
    "CaptionerProcessor",
    "CaptionerTokenizer",
    "GenerationOptions",
    "load_config",
    "score_captions",
    "train",
]

_HOMES = {
    "Caption": "captioner.infer.caption",
    "Captioner": "captioner.infer.captioner",
    "CaptionerConfig": "captioner.model.auto",
    "CaptionerForConditionalGeneration": "captioner.model.auto",
    "CaptionerImageProcessor": "captioner.model.auto",
    "CaptionerProcessor": "captioner.model.auto",
    "CaptionerTokenizer": "captioner.model.auto",
    "GenerationOptions": "captioner.decoding.options",
    "load_config": "captioner.config",
    "score_captions": "captioner.metrics.score",
    "train": "captioner.training.trainer",
}

limit_spinning()


def __getattr__(name: str) -> Any:
    """Load a public name from its home (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'captioner' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
