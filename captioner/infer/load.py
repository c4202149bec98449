"""From a model's folder to the backend that computes with it."""

from pathlib import Path
from typing import TYPE_CHECKING

from captioner.errors import CaptionerError
from captioner.hub.describe import model_type
from captioner.infer.backend import Backend
from captioner.infer.export_format import is_export

if TYPE_CHECKING:
    import torch


def load_backend(
    folder: Path,
    name: str,
    device: "str | torch.device",
    precision: str,
    adapter: str | Path | None,
    prompt: str | None,
    trust_remote_code: bool,
    cache_dir: str | Path | None,
) -> tuple[Backend, Path]:
    """Load a model: our checkpoint, an export, what convert reads, or an image-text model of transformers.

    Returns:
        The backend, and the folder with its files: of a converted model, its own.

    Raises:
        CaptionerError: it is none of these, or cannot be read, or takes no adapter or no prompt.
    """
    is_exported, kind = is_export(folder), model_type(folder)
    if is_exported and adapter is not None:
        raise CaptionerError(f"{name}: an exported model takes no adapter; export the model with it")
    if not is_exported and kind != "captioner":
        from captioner.convert import as_captioner, is_convertible
        from captioner.infer.vlm_backend import VlmBackend, is_vlm

        if not is_convertible(kind) and is_vlm(folder, trust_remote_code):
            if adapter is not None:
                raise CaptionerError(f"{name}: an adapter goes with a captioner, not with a {kind!r} model")
            return VlmBackend.load(folder, name, device, precision, prompt, trust_remote_code), folder
        folder = as_captioner(folder, name, cache_dir)
    if prompt is not None:
        raise CaptionerError(f"{name}: takes no prompt; a prefix starts every caption with the same words")
    if is_exported:
        from captioner.infer.onnx_backend import OnnxBackend

        return OnnxBackend(folder, name, str(device), precision), folder
    from captioner.infer.torch_backend import TorchBackend

    return TorchBackend.load(folder, name, device, precision, adapter), folder
