"""Contrastive steps on two processes, one of which finds less memory, as torchrun starts it for test_trainer.py."""

import sys
from typing import Any

import torch

from captioner.config import load_config
from captioner.training.task import CaptioningTask
from captioner.training.trainer import Trainer


def main(recipe: str) -> None:
    trainer = Trainer(load_config(recipe), resume=False)
    rank = trainer.accelerator.process_index
    phase = trainer.config.schedule()[0].phase
    model, train_set, _ = trainer.enter(phase)
    batch = next(trainer._loader(train_set, [[(0, index) for index in range(8)]]))
    forward = CaptioningTask.forward

    def short_of_memory(self: CaptioningTask, batch: Any, *arguments: Any) -> Any:
        if rank == 0 and len(batch.ids) > 4:
            raise torch.OutOfMemoryError
        return forward(self, batch, *arguments)

    CaptioningTask.forward = short_of_memory  # type: ignore[method-assign]
    assert not trainer.step.fits(model, batch, phase), "on process 0"
    assert trainer.step.fits(model, batch.split(4)[0], phase)
    CaptioningTask.forward = forward  # type: ignore[method-assign]
    for micro_batches in ((2, 8), (8, 3), (1, 1)):
        trainer.step.micro_batch = micro_batches[rank]
        share = batch.split(5 - rank)[0]
        losses = trainer.step.take(model, [share, batch], phase, 0).read()
        assert losses["loss/contrastive"] > 0
    parameters = torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
    both = trainer.accelerator.gather(parameters[None])
    assert torch.equal(both[0], both[1])
    trainer.accelerator.wait_for_everyone()  # with torch 2.11, exiting while gloo frees what it gathered hangs
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1])
