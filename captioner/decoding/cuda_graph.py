"""Work of a GPU that is recorded once, as a CUDA graph, and then launched as a whole.

A step of decoding is hundreds of small kernels one after the other: launching them takes longer than running them.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

KEPT = 8
"""Graphs that a captioner keeps. Each has memory of its own, about what a batch takes."""


def capture(work: Callable[[], Any], device: torch.device) -> tuple[Callable[[], object], Any]:
    """Record the kernels that `work` launches on a device, which need not be the current one, without running them.

    Returns:
        What runs them all, and what `work` returned, whose tensors each run fills anew.
    """
    with torch.cuda.device(device):
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        # Photos may be read and pinned meanwhile, by other threads.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = work()
    return graph.replay, result


class Captures:
    """What was captured of one model's work, by what it computes and for which shapes; the least recently used goes.

    Whoever takes something has it alone until it is given back.
    """

    def __init__(self) -> None:
        self.kept: OrderedDict[Hashable, Any] = OrderedDict()
        self.seen: set[Hashable] = set()

    def take(self, key: Hashable) -> Any | None:
        return self.kept.pop(key, None)

    def give(self, key: Hashable, captured: Any) -> None:
        self.kept[key] = captured
        while len(self.kept) > KEPT:
            self.kept.popitem(last=False)

    def recurs(self, key: Hashable) -> bool:
        """Whether this was asked before: what happens once is not worth its capture."""
        recurs = key in self.seen
        self.seen.add(key)
        return recurs

    def clear(self) -> None:
        """Free the memory of what is not in use."""
        self.kept.clear()
        self.seen.clear()


class CapturedCall:
    """A function of a tensor, captured. A call overwrites what the call before returned.

    Where it cannot be captured, it runs as before.
    """

    def __init__(self, function: Callable[[Tensor], Any], given: Tensor, rows: int) -> None:
        """Capture `function` for tensors like `given` of so many rows, or of fewer."""
        self.function = function  # it holds tensors that the graph reads
        self.given = given.new_zeros(rows, *given.shape[1:])
        self.replay: Callable[[], object] | None = None
        function(self.given)  # what libraries load and set up at a first call is not for a capture
        try:
            self.replay, self.result = capture(lambda: function(self.given), given.device)
        except RuntimeError as error:  # torch has no narrower one for what cannot be captured
            logger.warning("image encoding launches its kernels one by one: %s", str(error).partition("\n")[0])

    def __call__(self, given: Tensor) -> Any:
        """Rows after those of `given` are of calls before."""
        if self.replay is None:
            return self.function(given)
        self.given[: len(given)].copy_(given)
        self.replay()
        return self.result


class CapturedStep:
    """A step that was captured once and is replayed after that. Where it cannot be captured, it runs as before.

    A replay reads and writes the addresses of the capture. So what a step replaces by new tensors is copied to where it
    was, as the last part of the step.
    """

    def __init__(self, step: Callable[[], None], state: list[tuple[Any, str]]) -> None:
        """Capture `step`, which has run before and so needs no more memory that stays; `state` names the tensors that
        it replaces, as owner and attribute."""
        self.step = step
        self.state = state
        self.tensors = [getattr(owner, name) for owner, name in state]
        self.replay: Callable[[], object] | None = None
        try:
            self.replay, _ = capture(self._step_in_place, self.tensors[0].device)
        except RuntimeError as error:
            logger.warning("decoding launches its kernels one by one: %s", str(error).partition("\n")[0])
            self._put_back()

    def __call__(self) -> None:
        if self.replay is None:
            self._step_in_place()
        else:
            self.replay()

    def _step_in_place(self) -> None:
        self.step()
        for (owner, name), tensor in zip(self.state, self.tensors, strict=True):
            tensor.copy_(getattr(owner, name))
        self._put_back()

    def _put_back(self) -> None:
        for (owner, name), tensor in zip(self.state, self.tensors, strict=True):
            setattr(owner, name, tensor)
