"""A step of decoding as one launch.

On a GPU a step of a few captions takes longer to launch, hundreds of small kernels one after the other, than to run.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch

logger = logging.getLogger(__name__)


def can_capture(device: torch.device) -> bool:
    return device.type == "cuda"


def capture(step: Callable[[], None]) -> Callable[[], None]:
    """Record the kernels that a step launches, without running them; what is returned runs them all."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # photos may be read and pinned meanwhile
        step()
    return graph.replay


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
        try:
            self.replay = capture(self._step_in_place)
        except RuntimeError as error:  # torch has no narrower one for what cannot be captured
            logger.warning("decoding launches its kernels one by one: %s", str(error).partition("\n")[0])
            self._put_back()
            self.replay = self._step_in_place

    def _step_in_place(self) -> None:
        self.step()
        for (owner, name), tensor in zip(self.state, self.tensors, strict=True):
            tensor.copy_(getattr(owner, name))
        self._put_back()

    def _put_back(self) -> None:
        for (owner, name), tensor in zip(self.state, self.tensors, strict=True):
            setattr(owner, name, tensor)
