"""What only a GPU shows of training: steps that never wait, memory that runs out, precision, one-process groups."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor

from captioner.config import PhaseConfig, RunConfig
from captioner.data.batches import Batch
from captioner.errors import CaptionerError
from captioner.infer.captioner import Captioner
from captioner.training.optimizer_step import OptimizerStep
from captioner.training.phases import set_modes
from captioner.training.trainer import Trainer, train

pytestmark = pytest.mark.gpu

Recipe = Callable[..., RunConfig]

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""What deterministic matrix products ask for, before the first of the process."""

LEARNT = ("optimization.mixed_precision=bf16", "phases.0.epochs=1")


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """As `accelerate launch` starts the one process of a group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
    for name, value in launch.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    forget_accelerators()
    yield monkeypatch
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    forget_accelerators()


@pytest.fixture(autouse=True)
def forget_precision() -> Iterator[None]:
    """accelerate keeps a process to the precision of its first `Accelerator`."""
    forget_accelerators()
    yield
    forget_accelerators()


def forget_accelerators() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize(
    "more",
    [(), ("optimization.ema_decay=0.9", "optimization.gradient_accumulation_steps=2"),
     ("phases.0.learning_rates={decoder: 0.001}",)],
    ids=["joint", "averaged and accumulated", "frozen, cached features"],
)  # fmt: skip
def test_a_step_never_waits_for_the_device(recipe: Recipe, more: tuple[str, ...]) -> None:
    trainer = Trainer(recipe(*LEARNT, *more), resume=False)
    stretch = trainer.config.schedule()[0]
    model, train_set, _ = trainer.enter(stretch.phase)
    steps = trainer.data.steps(train_set, stretch, 0, 0, 1)
    loader = trainer._loader(train_set, [places for step in steps for places in step])
    set_modes(trainer.model, stretch.phase)
    batches = [[next(loader) for _ in step] for step in steps]

    def step(number: int) -> None:
        trainer.step.take(
            model, [batch.to(trainer.accelerator.device) for batch in batches[number]], stretch.phase, number
        )

    step(0)  # AdamW makes its state
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(1)
        step(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_losses_and_captions_come_out_in_each_precision(recipe: Recipe, tmp_path: Path, shapes: Path) -> None:
    found = {}
    for precision in ("no", "bf16", "fp16"):
        forget_accelerators()
        folder = tmp_path / precision
        best = train(recipe(f"optimization.mixed_precision='{precision}'", f"output_dir={folder}", "phases.0.epochs=3"))
        found[precision] = losses(folder)
        assert found[precision][-1] < found[precision][0] - 0.3
        if precision == "fp16":
            assert json.loads((folder / "last" / "progress.json").read_text())["scaler"]["scale"] > 0
        assert Captioner.from_pretrained(best)(str(shapes.parent / "00000.png")).text
    for precision in ("bf16", "fp16"):
        assert found[precision][:3] == pytest.approx(found["no"][:3], rel=0.02)


def test_a_loss_that_is_not_finite_stops_before_the_update(recipe: Recipe) -> None:
    trainer = Trainer(recipe("optimization.ema_decay=0.9"), resume=False)
    with torch.no_grad():
        trainer.model.decoder.norm.weight[0] = torch.nan
    weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with pytest.raises(CaptionerError, match=r"step 1: the loss is nan; images: \d+\.png"):
        trainer.run()
    for name, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_broken_training_resumes_to_the_same_bits(
    recipe: Recipe, tmp_path: Path, precision: str, deterministic: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = [f"optimization.mixed_precision={precision}", "model.dropout=0.1", "optimization.ema_decay=0.9"]
    whole, broken = (
        recipe(*same, f"output_dir={tmp_path / 'whole'}"),
        recipe(*same, f"output_dir={tmp_path / 'broken'}"),
    )
    train(whole)
    take = OptimizerStep.take

    def breaking(self: OptimizerStep, model: nn.Module, batches: list[Batch], phase: PhaseConfig, step: int) -> object:
        if step == 7:
            raise KeyboardInterrupt
        return take(self, model, batches, phase, step)

    forget_accelerators()
    monkeypatch.setattr(OptimizerStep, "take", breaking)
    with pytest.raises(KeyboardInterrupt):
        train(broken)
    monkeypatch.setattr(OptimizerStep, "take", take)
    forget_accelerators()
    train(broken, resume=True)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    for file in ("last/model", "best/model", "last/training_state"):
        expected, found = (load_file(tmp_path / run / f"{file}.safetensors") for run in ("whole", "broken"))
        assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_a_batch_that_exceeds_the_memory_is_halved_and_learnt_all_the_same(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = [
        "model.encoder_kwargs={patch_size: 2, embed_dim: 64, depth: 2, num_heads: 4}",
        "optimization.batch_size=64",
    ]
    trainer = Trainer(recipe(*large, f"output_dir={tmp_path / 'measured'}"), resume=False)
    phase = trainer.config.phases[0]
    model, train_set, _ = trainer.enter(phase)
    batch = next(trainer._loader(train_set, [[(0, index) for index in range(64)]])).to(trainer.accelerator.device)
    peaks = []
    for part in (batch, batch.split(32)[0]):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        assert trainer.step.fits(model, part, phase)
        peaks.append(torch.cuda.max_memory_reserved())
    del trainer, model, batch
    forget_accelerators()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(sum(peaks) / 2 / total)
    try:
        train(recipe(*large, "phases.0.epochs=1"))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "a batch of 64 images exceeds the memory: split into parts of 32" in capsys.readouterr().err
    found = losses(tmp_path / "run")
    assert len(found) == 3 and found[-1] < found[0]


def test_a_group_of_one_process_learns_as_a_process_without_one(
    recipe: Recipe, tmp_path: Path, one_process: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(
        recipe("optimization.gradient_accumulation_steps=2", f"output_dir={tmp_path / 'group'}"), resume=False
    )
    assert trainer.accelerator.state.backend == "nccl"
    trainer.run()
    torch.distributed.destroy_process_group()
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        one_process.delenv(name)
    forget_accelerators()
    train(recipe("optimization.gradient_accumulation_steps=2", f"output_dir={tmp_path / 'alone'}"))
    assert losses(tmp_path / "group") == pytest.approx(losses(tmp_path / "alone"), rel=1e-3)


def test_a_model_in_one_part_learns_as_a_whole_one(
    recipe: Recipe, tmp_path: Path, one_process: pytest.MonkeyPatch, shapes: Path
) -> None:
    parts = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "TransformerLayer,Block",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    }
    for name, value in parts.items():
        one_process.setenv(name, value)
    trainer = Trainer(recipe("optimization.ema_decay=0.9", f"output_dir={tmp_path / 'parts'}"), resume=False)
    assert all(isinstance(parameter, DTensor) for parameter in trainer.task.parameters())
    best = trainer.run()
    torch.distributed.destroy_process_group()
    for name in (*parts, "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        one_process.delenv(name)
    forget_accelerators()
    train(recipe("optimization.ema_decay=0.9", f"output_dir={tmp_path / 'alone'}"))
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "alone"), rel=1e-3)
    assert Captioner.from_pretrained(best)(str(shapes.parent / "00000.png")).text


def test_rewards_are_learnt_from_on_a_gpu(recipe: Recipe, tmp_path: Path) -> None:
    train(recipe(*LEARNT, "phases.0.objectives={reward: 1.0, captioning: 0.1}"))
    assert len(losses(tmp_path / "run")) == 5
