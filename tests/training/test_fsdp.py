"""Under FSDP2 on two CPU processes, whose parts travel by gloo."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file

from captioner.config import RunConfig
from captioner.errors import CaptionerError
from captioner.infer.captioner import Captioner
from captioner.training.trainer import Trainer, train

SCRIPT = Path(__file__).parent / "train_in_parts.py"
Recipe = Callable[..., RunConfig]


def train_in_parts(config: RunConfig, reshard: bool, breaks_at: int = 0) -> list[list[str]]:
    """Train on two processes; gives what moved in each stretch."""
    recipe = Path(config.output_dir).with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    arguments = [str(recipe), str(reshard).lower(), str(breaks_at)]
    finished = subprocess.run(
        command + arguments, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.returncode == 0, finished.stderr[-6000:]
    return json.loads((Path(config.output_dir) / "moved.json").read_text())


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_two_processes_with_parts_learn_as_one_with_the_whole_and_the_doubled_batch(
    recipe: Recipe, shapes: Path, tmp_path: Path
) -> None:
    """With every objective there is, accumulation, weights averaged; and the best is a model folder like any other."""
    teacher, words = tmp_path / "teacher.safetensors", tmp_path / "words.txt"
    save_file(timm.create_model("test_efficientnet").state_dict(), teacher)
    words.write_text("a red square\n" * 50 + "a blue circle left of a green square\n" * 110)
    config = recipe(
        "optimization.gradient_accumulation_steps=2",
        "optimization.batch_size=16",
        "optimization.ema_decay=0.9",
        "tags={source: captions, num_words: 9}",
        f"teacher={{name: test_efficientnet, weights: {teacher}}}",
        f"data.text={words}",
        "phases=[{name: words, epochs: 1, objectives: {language_modeling: 1.0}, learning_rates: {decoder: 0.002}}, "
        "{name: joint, epochs: 1, learning_rates: {trunk: 0.002, bridge: 0.002, decoder: 0.002, heads: 0.002}, "
        "objectives: {captioning: 1.0, reward: 0.5, tags: 1.0, contrastive: 0.5, distillation: 0.1}}, "
        "{name: cached, epochs: 1, learning_rates: {bridge: 0.002, decoder: 0.002}}]",
    )
    train(config)
    half = config.optimization.model_copy(update={"batch_size": 8})
    moved = train_in_parts(
        config.model_copy(update={"optimization": half, "output_dir": str(tmp_path / "parts")}), reshard=True
    )
    words_alone, cached = ["decoder", "embeddings"], ["bridge", "decoder", "embeddings"]
    assert moved == [words_alone, ["bridge", "decoder", "embeddings", "heads", "trunk"], cached]
    assert len(losses(tmp_path / "run")) == 15
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "run"), abs=1e-4)
    for file in ("best/model", "last/model", "last/training_state"):
        expected, found = (load_file(tmp_path / run / f"{file}.safetensors") for run in ("run", "parts"))
        assert expected.keys() == found.keys()
        for name in expected.keys() - {"random_states"}:
            torch.testing.assert_close(found[name], expected[name], atol=1e-3, rtol=0)
    captioner = Captioner.from_pretrained(tmp_path / "parts" / "best")
    assert captioner(str(shapes.parent / "00000.png")).text


def test_what_rests_keeps_every_bit_and_a_broken_training_resumes_to_the_same_bits(
    recipe: Recipe, tmp_path: Path
) -> None:
    """In alternation, the trunk running where it rests too; weights that stay together between the passes."""
    config = recipe(
        "optimization.batch_size=16",
        "model.dropout=0.1",
        "optimization.ema_decay=0.9",
        "phases=[{repeat: 2, phases: [{name: encoder, epochs: 1, learning_rates: {trunk: 0.001, bridge: 0.001}}, "
        "{name: decoder, epochs: 1, learning_rates: {decoder: 0.001}, augmentation: {color_jitter: 0.1}}]}]",
    )
    moved = train_in_parts(config, reshard=False, breaks_at=7)
    assert moved == [["bridge", "trunk"], ["decoder", "embeddings"]] * 2
    whole, broken = tmp_path / "run", tmp_path / "run" / "broken"
    assert len(losses(whole)) > 7 and losses(broken) == losses(whole)
    for file in ("best/model", "last/model", "last/training_state"):
        expected, found = (load_file(run / f"{file}.safetensors") for run in (whole, broken))
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), f"{file}: {name}"


@pytest.mark.parametrize(
    ("kind", "message"),
    [(DistributedType.DEEPSPEED, "zero2_8gpu.yaml"), (DistributedType.FSDP, "fsdp_version 1")],
)
def test_a_launch_that_would_not_train_as_it_says_is_refused(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, kind: DistributedType, message: str
) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", kind)
    with pytest.raises(CaptionerError, match=message):
        Trainer(recipe(), resume=False)


def test_processes_that_do_not_know_of_one_another_are_refused(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun starts them on a machine without GPUs: each would take itself for the main one."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CaptionerError, match="ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2"):
        Trainer(recipe(), resume=False)
