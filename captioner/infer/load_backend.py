"""From a model's folder to the backend that computes with it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from captioner.errors import CaptionerError
from captioner.hub.describe import model_type
from captioner.infer.backend import Backend
from captioner.infer.choose_backend import choose_graphs
from captioner.infer.export_format import is_export

if TYPE_CHECKING:
    import torch


class Loaded(NamedTuple):
    """A loaded model.

    Attributes:
        backend: what computes with it.
        folder: its files: of a converted model, its own.
        load_torch: loads it by torch, for options that its graphs lack; None if that cannot be or is not wanted.
    """

    backend: Backend
    folder: Path
    load_torch: Callable[[], Backend] | None = None


def load_backend(
    folder: Path,
    name: str,
    backend: str,
    device: "str | torch.device",
    precision: str,
    adapter: str | Path | None,
    prompt: str | None,
    trust_remote_code: bool,
    cache_dir: str | Path | None,
) -> Loaded:
    """Load a model: our checkpoint, an export, what convert reads, or an image-text model of transformers.

    Raises:
        CaptionerError: it is none of these, or cannot be read, or takes no adapter or no prompt, or not this backend.
    """
    only_graphs, kind = is_export(folder), model_type(folder)
    if not only_graphs and kind != "captioner":
        from captioner.convert import as_captioner, is_convertible
        from captioner.infer.vlm_backend import VlmBackend, is_vlm

        if not is_convertible(kind) and is_vlm(folder, trust_remote_code):
            if adapter is not None:
                raise CaptionerError(f"{name}: an adapter goes with a captioner, not with a {kind!r} model")
            if backend == "onnx":
                raise CaptionerError(f"{name}: a {kind!r} model, which torch alone computes")
            return Loaded(VlmBackend.load(folder, name, device, precision, prompt, trust_remote_code), folder)
        folder = as_captioner(folder, name, cache_dir)
    if prompt is not None:
        raise CaptionerError(f"{name}: takes no prompt; a prefix starts every caption with the same words")
    graphs = choose_graphs(folder, name, backend, str(device), precision, adapter is not None)

    def load_torch() -> Backend:
        try:
            from captioner.infer.torch_backend import TorchBackend
        except ModuleNotFoundError as error:
            raise CaptionerError(
                f"{name}: needs {error.name}, which is not installed: pip install captioner"
            ) from error
        return TorchBackend.load(folder, name, device, precision, adapter)

    if graphs is None:
        return Loaded(load_torch(), folder)
    from captioner.infer.onnx_backend import OnnxBackend

    return Loaded(OnnxBackend(graphs), folder, load_torch if backend == "auto" and not only_graphs else None)
