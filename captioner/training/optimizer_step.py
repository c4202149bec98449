"""One optimizer step: forward and backward over this process's batches, the update, and the numbers to log."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from captioner.config import Objective, PhaseConfig
from captioner.cpu.bfloat16_gradients import fast_bfloat16_gradients
from captioner.data.batches import Batch, to_device
from captioner.errors import CaptionerError
from captioner.training import checkpoint, fsdp
from captioner.training.ema import WeightAverage
from captioner.training.task import CaptioningTask, Losses


class OptimizerStep:
    """Takes optimizer steps; the gradient is that of the mean over all items of all processes and batches.

    Attributes:
        micro_batch: the most images in one forward pass; larger batches are split and their gradients accumulated.
        reads_late: the device skips the update after a loss that is not finite, and every later update. The host learns
            of it one step later and so never waits with an empty queue. Otherwise the host reads the loss before each
            update.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        task: CaptioningTask,
        optimizer: AcceleratedOptimizer,
        average: WeightAverage | None,
        max_grad_norm: float,
    ) -> None:
        self.accelerator = accelerator
        self.task = task
        self.optimizer = optimizer
        self.average = average
        self.max_grad_norm = max_grad_norm
        self.micro_batch = 1
        self.exact = torch.float32 if accelerator.device.type == "mps" else torch.float64
        self.reads_late = False
        # An fp16 scaler decides itself which updates count, and the parts of a sharded model have no common device.
        if accelerator.device.type == "cuda" and not accelerator.scaler and not accelerator.is_fsdp2:
            self.read_late()

    def read_late(self) -> None:
        self.reads_late = True
        self.is_broken = torch.zeros((), device=self.accelerator.device)
        self.optimizer.optimizer.found_inf = self.is_broken  # while it is 1, fused AdamW changes nothing

    def take(self, model: nn.Module, batches: Sequence[Batch], phase: PhaseConfig, step: int) -> "StepNumbers":
        """Take step number `step`, counted from 0; return the losses, each a mean over all processes.

        Args:
            model: the task as accelerate wrapped it for the phase.

        Raises:
            CaptionerError: a loss is not finite (unless `reads_late`: then `StepNumbers.read` raises it).
        """
        names = list(phase.objectives)
        batches = [part for batch in batches for part in self._micro_batches(batch, phase)]
        counted = [self.task.item_counts(batch, phase) for batch in batches]
        items = [sum(counts[name] for counts in counted) for name in [*names, "captioning"]]
        *totals, tokens = self._sum_over_processes(self._numbers(items)).unbind()
        counts = {name: count.clamp(min=1) for name, count in zip(names, totals, strict=True)}
        weights = {name: (weight / counts[name]).float() for name, weight in phase.objectives.items()}
        sums: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros_like(tokens))
        for number, batch in enumerate(batches):
            with self._gradients_synchronised(model, number == len(batches) - 1):
                losses, logged = self._forward_backward(model, batch, phase, weights, step)
            for name in names:
                sums[f"loss/{name}"] += losses[name].detach() / counts[name]
            for name, total in logged.items():
                sums[name] += total / counts[name]
        means = dict(zip(sums, self._sum_over_processes(torch.stack(list(sums.values()))).unbind(), strict=True))
        loss = sum((weight * means[f"loss/{name}"] for name, weight in phase.objectives.items()), 0 * tokens)
        norms = self._clip_gradients()
        ids = [identifier for batch in batches for identifier in batch.ids]
        numbers = StepNumbers(step + 1, {"loss": loss, **means, **norms, "tokens": tokens}, ids)
        if self.reads_late:
            self.is_broken.copy_(self.is_broken.maximum((~loss.isfinite()).float()))
        else:
            numbers.read()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update()
        return numbers

    def fit_micro_batch(self, model: nn.Module, batch: Batch, phase: PhaseConfig, size: int) -> None:
        """Set `micro_batch` to `size`, or to the largest of its halvings at which a pass over `batch` fits the memory.

        Raises:
            CaptionerError: not even a single image fits.
        """
        self.micro_batch = largest_that_fits(size, lambda size: self.fits(model, batch.split(size)[0], phase))

    def fits(self, model: nn.Module, batch: Batch, phase: PhaseConfig) -> bool:
        """Does a pass over the batch succeed on every process? It leaves no gradients and no other trace.

        Within the pass no process waits for another, which may have run out of memory by then.
        """
        random_state, fits = checkpoint.random_state(self.accelerator.device), 1.0
        try:
            with self._gradients_synchronised(model, False):
                self._forward_backward(model, batch, phase, phase.objectives, 0, gather=False)
        except torch.OutOfMemoryError:
            fits = 0.0
        self.optimizer.zero_grad()
        torch.cuda.empty_cache()
        checkpoint.restore_random_state(random_state, self.accelerator.device)
        return float(self._sum_over_processes(self._numbers([fits]))) == self.accelerator.num_processes

    def _micro_batches(self, batch: Batch, phase: PhaseConfig) -> list[Batch]:
        """Split a batch; where a loss compares images across processes, every process gets as many parts."""
        parts = batch.split(self.micro_batch)
        if "contrastive" in phase.objectives and self.accelerator.num_processes > 1:
            counts = self.accelerator.gather(torch.tensor([len(parts)], device=self.accelerator.device))
            parts += [batch.without_targets()] * (int(counts.max()) - len(parts))
        return parts

    def _forward_backward(
        self,
        model: nn.Module,
        batch: Batch,
        phase: PhaseConfig,
        weights: Mapping[Objective, Any],
        step: int,
        gather: bool = True,
    ) -> tuple[Losses, Losses]:
        is_slow = self.accelerator.device.type == "cpu" and self.accelerator.mixed_precision == "bf16"
        with fast_bfloat16_gradients() if is_slow else nullcontext():
            with self.accelerator.autocast():
                losses, logged = model(batch, phase, step, gather)
            loss = sum(weights[name] * losses[name] for name in phase.objectives)
            # accelerate averages gradients over processes; times their number, that is the mean over all items.
            self.accelerator.backward(loss * self.accelerator.num_processes)
        return losses, logged

    def _clip_gradients(self) -> dict[str, Tensor]:
        """Clip the gradient; return its norm before clipping, and the norm of each part's gradient."""
        total = fsdp.whole(self.accelerator.clip_grad_norm_(self.task.parameters(), self.max_grad_norm)).to(self.exact)
        gradients: defaultdict[str, list[Tensor]] = defaultdict(list)
        for group in self.optimizer.param_groups:
            gradients[group["place"].part] += [p.grad for p in group["params"] if p.grad is not None]
        clipped = {
            part: fsdp.whole(nn.utils.get_total_norm(own)).to(self.exact) for part, own in gradients.items() if own
        }
        norm = torch.stack(list(clipped.values())).norm()
        unclipped = torch.where(norm > 0, total / norm, 0.0)
        return {"grad_norm": total, **{f"grad_norm/{part}": own * unclipped for part, own in clipped.items()}}

    def _numbers(self, values: Sequence[float]) -> Tensor:
        return to_device(torch.tensor(values, dtype=self.exact), self.accelerator.device)

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return values
        summed: Tensor = self.accelerator.reduce(values, "sum")
        return summed

    def _gradients_synchronised(self, model: nn.Module, synchronise: bool) -> AbstractContextManager:
        return nullcontext() if synchronise else self.accelerator.no_sync(model)


class StepNumbers:
    """The numbers a step logs, on their way from the device: only `read` waits for them."""

    def __init__(self, step: int, values: Mapping[str, Tensor], ids: Sequence[str | int]) -> None:
        """`step`, counted from 1, over the images `ids`; `values` are scalars on one device, among them "loss"."""
        self.step, self.names, self.ids = step, list(values), ids
        stacked = torch.stack(list(values.values()))
        self.values = stacked.to("cpu", non_blocking=stacked.is_cuda)
        self.arrived = torch.cuda.Event() if stacked.is_cuda else None
        if self.arrived is not None:
            self.arrived.record()

    def read(self) -> dict[str, float]:
        """Return the numbers by name.

        Raises:
            CaptionerError: the loss is not finite.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        values: dict[str, float] = dict(zip(self.names, self.values.tolist(), strict=True))
        if not math.isfinite(values["loss"]):
            images = ", ".join(map(str, self.ids))
            raise CaptionerError(f"step {self.step}: the loss is {values['loss']}; images: {images}")
        return values


def largest_that_fits(size: int, fits: Callable[[int], bool]) -> int:
    """Return `size`, or the largest of its halvings that fits.

    Raises:
        CaptionerError: not even one fits.
    """
    while not fits(size):
        if size == 1:
            raise CaptionerError("out of memory with a single image: a smaller model or image_size is needed")
        size //= 2
    return size
