"""Registers captioner's classes with transformers' Auto classes when it is imported.

`import captioner` and `import captioner.model` do not, so that exported models can run without torch and transformers.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from .configuration_captioner import CaptionerConfig
from .modeling_captioner import CaptionerForConditionalGeneration
from .processing_captioner import CaptionerImageProcessor, CaptionerProcessor
from .tokenization_captioner import CaptionerTokenizer

__all__ = [
    "CaptionerConfig",
    "CaptionerForConditionalGeneration",
    "CaptionerImageProcessor",
    "CaptionerProcessor",
    "CaptionerTokenizer",
]

AutoConfig.register(CaptionerConfig.model_type, CaptionerConfig)
AutoModelForImageTextToText.register(CaptionerConfig, CaptionerForConditionalGeneration)
AutoTokenizer.register(CaptionerConfig, CaptionerTokenizer)
AutoImageProcessor.register(
    CaptionerConfig, image_processor_classes={"torchvision": CaptionerImageProcessor, "pil": CaptionerImageProcessor}
)
AutoProcessor.register(CaptionerConfig, CaptionerProcessor)
