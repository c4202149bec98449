"""Each shipped launcher file says only what accelerate knows, and starts what its name promises."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin, prepare_multi_gpu_env
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from captioner.config import load_config
from captioner.model.configuration_captioner import CaptionerConfig
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration

CONFIGS = Path(__file__).parents[1] / "configs"

EXPECTED: dict[str, dict[str, Any]] = {
    "one_gpu": {"num_processes": 1, "multi_gpu": False, "use_fsdp": False, "use_deepspeed": False},
    "ddp_8gpu": {"num_processes": 8, "multi_gpu": True},
    "fsdp2_8gpu": {"num_processes": 8, "use_fsdp": True, "fsdp_version": 2, "fsdp_reshard_after_forward": True},
    "zero2_8gpu": {"num_processes": 8, "use_fsdp": True, "fsdp_version": 2, "fsdp_reshard_after_forward": False},
    "multi_node": {"num_processes": 16, "num_machines": 2, "multi_gpu": True, "main_process_port": 29500},
}


def path(name: str) -> str:
    return str(CONFIGS / "accelerate" / f"{name}.yaml")


def launched(name: str) -> Any:
    """What `accelerate launch --config_file` makes of the file."""
    arguments = launch_command_parser().parse_args(["--config_file", path(name), "train.py", "--config", "x.yaml"])
    return _validate_launch_command(arguments)[0]


def test_every_file_is_tested() -> None:
    assert {file.stem for file in (CONFIGS / "accelerate").iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_knows_every_key_and_starts_what_the_name_promises(name: str) -> None:
    config = load_config_from_file(path(name))  # refuses unknown keys, of the top level alone
    options = vars(launch_command_parser().parse_args(["train.py"]))
    sections = [getattr(config, field.name) for field in dataclasses.fields(ClusterConfig)]
    assert {key for section in sections if isinstance(section, dict) for key in section} <= options.keys()
    arguments = launched(name)
    assert {key: getattr(arguments, key) for key in EXPECTED[name]} == EXPECTED[name]
    assert arguments.training_script_args == ["--config", "x.yaml"]


@pytest.mark.parametrize(("name", "reshards"), [("fsdp2_8gpu", True), ("zero2_8gpu", False)])
def test_fsdp_shards_the_layers_of_the_recipe_that_its_file_names(
    monkeypatch: pytest.MonkeyPatch, name: str, reshards: bool
) -> None:
    monkeypatch.setenv("CAPTIONER_COCO_IMAGES", "/somewhere")
    fields = load_config(CONFIGS / "coco_vit_base.yaml").model.model_dump(include=set(CaptionerConfig().to_dict()))
    with torch.device("meta"):
        model = CaptionerForConditionalGeneration(CaptionerConfig(**fields, vocab_size=10))
    for variable, value in prepare_multi_gpu_env(launched(name)).items():
        monkeypatch.setenv(variable, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, reshards)
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy
    layers = plugin.transformer_cls_names_to_wrap
    sharded = {name for name, module in model.named_modules() if type(module).__name__ in layers}
    expected = {f"encoder.trunk.model.blocks.{i}" for i in range(12)} | {f"decoder.layers.{i}" for i in range(6)}
    assert sharded == expected
