"""A training under FSDP2, as torchrun starts it for test_sharding.py: RECIPE RESHARD BREAKS_AT.

`moved.json` tells of each stretch which parts moved. Where BREAKS_AT is not 0 a second training, of the same recipe in
the folder `broken`, breaks off before that step and is resumed.
"""

import json
import sys
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from captioner.config import PhaseConfig, load_config
from captioner.data.batches import Batch
from captioner.training.optimizer_step import StepNumbers
from captioner.training.phases import parameter_places
from captioner.training.trainer import Trainer


class WatchedTrainer(Trainer):
    moved: list[list[str]]

    def weights(self) -> dict[str, Tensor]:
        with self.whole.gathered() as model:
            return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def _run_stretch(self, *arguments: Any) -> None:
        before = self.weights()
        super()._run_stretch(*arguments)
        after = self.weights()
        places = parameter_places(self.model)
        self.moved.append(sorted({places[name].part for name in before if not before[name].equal(after[name])}))


def main(recipe: str, reshard: str, breaks_at: str) -> None:
    state = Accelerator(cpu=True).state
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=reshard == "true",
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["TransformerLayer", "Block"],
    )
    PartialState().distributed_type = DistributedType.FSDP  # which accelerate leaves out on CPUs
    end_training = Accelerator.end_training
    Accelerator.end_training = Accelerator.wait_for_everyone  # the processes stay together for the next training
    config = load_config(recipe)
    watched = WatchedTrainer(config, resume=False)
    layers = sum(isinstance(module, FSDPModule) for module in watched.task.modules())
    assert layers == 1 + 2 + 2 and all(isinstance(part, DTensor) for part in watched.task.parameters())
    watched.moved = []
    watched.run()
    if watched.accelerator.is_main_process:
        (watched.folder.path / "moved.json").write_text(json.dumps(watched.moved))
    if int(breaks_at):
        config = config.model_copy(update={"output_dir": str(watched.folder.path / "broken")})
        breaking = Trainer(config, resume=False)
        take = breaking.step.take

        def take_until(model: nn.Module, batches: list[Batch], phase: PhaseConfig, step: int) -> StepNumbers:
            if step == int(breaks_at):
                raise KeyboardInterrupt
            return take(model, batches, phase, step)

        breaking.step.take = take_until  # type: ignore[method-assign]
        try:
            breaking.run()
        except KeyboardInterrupt:
            Trainer(config, resume=True).run()
    end_training(watched.accelerator)  # gloo's threads abort a process that exits while its group is alive


if __name__ == "__main__":
    main(*sys.argv[1:])
