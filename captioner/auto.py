"""Makes captioner's checkpoints known to transformers' Auto classes, and loads neither to do so.

The classes are registered once transformers' own auto modules have been imported, be it before captioner or after. Who
never imports them, as an exported model never does, does not wait for torch, transformers and timm.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

AUTO = "transformers.models.auto.configuration_auto"
"""All auto modules import this one."""


def register_auto_classes() -> None:
    """Register now if transformers' auto modules are imported, else as soon as they are."""
    watch = _Watch()
    sys.meta_path.insert(0, watch)
    watch.register_when_due()


class _Watch:
    """A finder that finds modules of transformers and captioner as Python does, and knows which are half imported.

    Parts of transformers import its auto modules on their way, at our own modules' request too. Registering waits until
    all are whole: it would else import from one that is not.
    """

    def __init__(self) -> None:
        self.half_imported: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] not in ("transformers", "captioner"):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def watched(module: ModuleType) -> None:
            self.half_imported.add(name)
            try:
                execute(module)
            finally:
                self.half_imported.discard(name)
            self.register_when_due()

        spec.loader.exec_module = watched  # type: ignore[method-assign]
        return spec

    def register_when_due(self) -> None:
        if AUTO in sys.modules and not self.half_imported and self in sys.meta_path:
            sys.meta_path.remove(self)
            _register()


def _register() -> None:
    try:
        import timm  # noqa: F401 - asked first: of an absent torch, transformers' own error does not tell the name
        from transformers import (
            AutoConfig,
            AutoImageProcessor,
            AutoModelForImageTextToText,
            AutoProcessor,
            AutoTokenizer,
        )

        from captioner.model.configuration_captioner import CaptionerConfig
        from captioner.model.modeling_captioner import CaptionerForConditionalGeneration
        from captioner.model.processing_captioner import CaptionerImageProcessor, CaptionerProcessor
        from captioner.model.tokenization_captioner import CaptionerTokenizer
    except ModuleNotFoundError as error:  # transformers may be there without these
        if error.name not in ("torch", "timm"):
            raise
        return
    AutoConfig.register(CaptionerConfig.model_type, CaptionerConfig)
    AutoModelForImageTextToText.register(CaptionerConfig, CaptionerForConditionalGeneration)
    AutoTokenizer.register(CaptionerConfig, CaptionerTokenizer)
    AutoImageProcessor.register(
        CaptionerConfig,
        image_processor_classes={"torchvision": CaptionerImageProcessor, "pil": CaptionerImageProcessor},
    )
    AutoProcessor.register(CaptionerConfig, CaptionerProcessor)
