"""captioner: learns to describe images, then annotates them.

Importing this package makes its checkpoints known to transformers' Auto classes.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captioner.infer.captioner import Captioner

__version__ = "0.1.0"
__all__ = [
    "Captioner",
    "CaptionerConfig",
    "CaptionerForConditionalGeneration",
    "CaptionerImageProcessor",
    "CaptionerProcessor",
    "CaptionerTokenizer",
]

try:
    import timm  # noqa: F401 - asked first: of an absent torch, transformers' own error does not tell the name
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    from captioner.model.configuration_captioner import CaptionerConfig
    from captioner.model.modeling_captioner import CaptionerForConditionalGeneration
    from captioner.model.processing_captioner import CaptionerImageProcessor, CaptionerProcessor
    from captioner.model.tokenization_captioner import CaptionerTokenizer
except ModuleNotFoundError as error:  # an exported model's runtime goes without these
    if error.name not in ("torch", "transformers", "timm"):
        raise
else:
    AutoConfig.register(CaptionerConfig.model_type, CaptionerConfig)
    AutoModelForImageTextToText.register(CaptionerConfig, CaptionerForConditionalGeneration)
    AutoTokenizer.register(CaptionerConfig, CaptionerTokenizer)
    AutoImageProcessor.register(
        CaptionerConfig,
        image_processor_classes={"torchvision": CaptionerImageProcessor, "pil": CaptionerImageProcessor},
    )
    AutoProcessor.register(CaptionerConfig, CaptionerProcessor)


def __getattr__(name: str) -> Any:
    if name == "Captioner":
        from captioner.infer.captioner import Captioner

        return Captioner
    raise AttributeError(f"module 'captioner' has no attribute {name!r}")
