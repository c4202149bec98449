"""Which backend captions with a model, decided before torch or ONNX Runtime is imported."""

import logging
from pathlib import Path

from captioner.errors import CaptionerError
from captioner.infer.accelerator import has_accelerator
from captioner.infer.export_format import Graphs, find_graphs, is_export

BACKENDS = ("auto", "torch", "onnx")
STALE = "its ONNX graphs are of other weights; captioner export --in-place writes them anew"

_log = logging.getLogger(__name__)


def choose_graphs(
    folder: Path, name: str, backend: str, device: str, precision: str, has_adapter: bool
) -> Graphs | None:
    """Return the graphs to caption with, or None for torch.

    "auto" takes graphs on a CPU, in the precision that they have, if they were made from the weights beside them.

    Raises:
        CaptionerError: there is no such backend, or it cannot caption with this model.
    """
    if backend not in BACKENDS:
        raise CaptionerError(f"backend {backend!r}: choose {', '.join(BACKENDS)}")
    only_graphs = is_export(folder)
    if backend == "torch":
        if only_graphs:
            raise CaptionerError(f"{name}: exported; torch needs the model that it was made from")
        return None
    graphs = find_graphs(folder)
    may_be_torch = backend == "auto" and not only_graphs
    if may_be_torch and (graphs is None or (device == "auto" and has_accelerator())):
        return None
    problem = _problem(graphs, device, precision, has_adapter)
    if problem and not may_be_torch:
        raise CaptionerError(f"{name}: {problem}")
    if problem == STALE:
        _log.warning("%s: %s", name, STALE)
    return None if problem else graphs


def _problem(graphs: Graphs | None, device: str, precision: str, has_adapter: bool) -> str:
    """Say why a model's graphs cannot be used; empty if they can."""
    if graphs is None:
        return "has no ONNX graphs; captioner export --in-place writes them"
    if has_adapter:
        return "an exported model takes no adapter; export the model with it"
    if device not in ("auto", "cpu") or precision not in ("auto", graphs.precision):
        return "an exported model runs on the CPU, in the precision it was exported in"
    return STALE if graphs.are_stale else ""
