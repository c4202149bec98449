"""captioner: learns to describe images, then annotates them.

Importing this package makes its checkpoints known to transformers' Auto classes. It loads neither these nor torch
until they are needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from captioner.auto import register_auto_classes
from captioner.cpu.threads import limit_spinning

if TYPE_CHECKING:
    from captioner.infer.captioner import Captioner
    from captioner.model.configuration_captioner import CaptionerConfig
    from captioner.model.modeling_captioner import CaptionerForConditionalGeneration
    from captioner.model.processing_captioner import CaptionerImageProcessor, CaptionerProcessor
    from captioner.model.tokenization_captioner import CaptionerTokenizer

__version__ = "0.1.0"
__all__ = [
    "Captioner",
    "CaptionerConfig",
    "CaptionerForConditionalGeneration",
    "CaptionerImageProcessor",
    "CaptionerProcessor",
    "CaptionerTokenizer",
]

_HOMES = {
    "Captioner": "captioner.infer.captioner",
    "CaptionerConfig": "captioner.model.configuration_captioner",
    "CaptionerForConditionalGeneration": "captioner.model.modeling_captioner",
    "CaptionerImageProcessor": "captioner.model.processing_captioner",
    "CaptionerProcessor": "captioner.model.processing_captioner",
    "CaptionerTokenizer": "captioner.model.tokenization_captioner",
}

limit_spinning()
register_auto_classes()


def __getattr__(name: str) -> Any:
    """Load a public name from its home (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'captioner' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
