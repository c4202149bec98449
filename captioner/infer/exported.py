"""An exported folder in `Captioner`'s place: the same calls, computed by ONNX Runtime."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from captioner.errors import CaptionerError
from captioner.infer.caption import Caption
from captioner.infer.captioner import Captioner
from captioner.infer.options import GenerationOptions

try:
    from captioner.export.runtime import ExportedCaptioner
except ModuleNotFoundError as error:
    if error.name != "onnxruntime":
        raise
    raise CaptionerError("an exported model needs ONNX Runtime: pip install 'captioner[export]'") from error

from captioner.export.search import SearchOptions

if TYPE_CHECKING:
    import torch


class OnnxCaptioner(Captioner):
    """A `Captioner` whose model is an exported folder; `device` and `precision` were chosen when it was exported."""

    def __init__(self, folder: Path, name: str, device: "str | torch.device" = "auto", precision: str = "auto") -> None:
        if str(device) not in ("auto", "cpu") or precision != "auto":
            raise CaptionerError(f"{name}: an exported model runs on the CPU, in the precision it was exported in")
        self.exported = ExportedCaptioner(folder)
        self.preprocessing = self.exported.preprocessing
        self.name = name

    def _token_ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.exported.tokenizer.encode(text))

    def stream(self, options: GenerationOptions) -> "OnnxCaptionStream":
        return OnnxCaptionStream(self.exported, search_options(options))


class OnnxCaptionStream:
    """Captions every batch as it comes."""

    def __init__(self, exported: ExportedCaptioner, options: SearchOptions) -> None:
        self.exported = exported
        self.options = options

    def add(self, pixel_values: np.ndarray) -> list[Caption]:
        return self.exported.caption(pixel_values, self.options)

    def finish(self) -> list[Caption]:
        return []


def search_options(options: GenerationOptions) -> SearchOptions:
    """Those of the options that an exported model knows.

    Raises:
        CaptionerError: others than these are set.
    """
    known, defaults = {field.name for field in fields(SearchOptions)}, GenerationOptions()
    others = [field.name for field in fields(options) if field.name not in known]
    unknown = [name for name in others if getattr(options, name) != getattr(defaults, name)]
    if unknown:
        raise CaptionerError(f"an exported model searches greedily or with beams; it has no {', '.join(unknown)}")
    return SearchOptions(**{name: getattr(options, name) for name in known})
