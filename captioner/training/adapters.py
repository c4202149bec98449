"""Training low-rank adapters in place of weights: LoRA by PEFT on the linear layers of named parts."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from captioner.config import AdaptersConfig
from captioner.errors import CaptionerError
from captioner.hub.adapters import CONFIG, WEIGHTS, import_peft
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration

FUSED = {"qkv_proj": 3, "kv_proj": 2, "qkv": 3, "kv": 2}
"""Linear layers, here and in timm, that compute several projections at once, and how many."""

PEFT_PREFIX = "base_model.model."
"""How PEFT's files name the model that an adapter is for."""


def add_adapters(
    model: CaptionerForConditionalGeneration, config: AdaptersConfig, say: Callable[[str], None]
) -> dict[str, Any]:
    """Add an untrained adapter to each linear layer of the parts, in place; return PEFT's configuration of it.

    A fused projection gets as many times the rank as it has projections, at the same scale, so that queries, keys and
    values can each change by the full rank.

    Raises:
        CaptionerError: PEFT is not installed; a part has no linear layer that an adapter reaches.
    """
    peft = import_peft()
    layers, unreached = _linear_layers(model, config)
    if unreached:
        say(f"adapters do not reach {len(unreached)} layers whose weights are used directly: {unreached[0]} ...")
    fused = {name: FUSED[name.rpartition(".")[2]] for name in layers if name.rpartition(".")[2] in FUSED}
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=layers,
        rank_pattern={name: config.rank * count for name, count in fused.items()},
        alpha_pattern={name: config.alpha * count for name, count in fused.items()},
    )
    peft.inject_adapter_in_model(settings, model)
    described: dict[str, Any] = settings.to_dict() | {"target_modules": layers}
    return described


def _linear_layers(model: CaptionerForConditionalGeneration, config: AdaptersConfig) -> tuple[list[str], list[str]]:
    """The names of the parts' linear layers that are called, and of those whose weights are used without a call."""
    parts = {"trunk": "encoder.trunk.", "bridge": "encoder.bridge.", "decoder": "decoder."}
    called: set[nn.Module] = set()
    hooks = [
        module.register_forward_pre_hook(lambda module, _: called.add(module)) for module in _linears(model).values()
    ]
    size = model.config.image_size
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size), torch.zeros(1, 1, dtype=torch.long))
    for hook in hooks:
        hook.remove()
    reached: list[str] = []
    unreached: list[str] = []
    for part in config.parts:
        inside = {name: module for name, module in _linears(model).items() if name.startswith(parts[part])}
        own = [name for name, module in inside.items() if module in called]
        if not own:
            raise CaptionerError(f"adapters.parts: the {part} of this model has no linear layer for an adapter")
        reached += own
        unreached += [name for name in inside if name not in own]
    return reached, unreached


def _linears(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def plain_weights(model: nn.Module, merged: bool) -> dict[str, Tensor]:
    """The weights of a model with adapters, by the names that they have without, with or without the update."""
    weights = {
        name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if ".lora_" not in name
    }
    if merged:
        for name, layer in _adapted(model):
            weights[f"{name}.weight"] = weights[f"{name}.weight"] + layer.get_delta_weight("default")
    return weights


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            yield name, module


def save_adapter(model: nn.Module, settings: dict[str, Any], base: str, folder: Path) -> None:
    """Write the adapter as PEFT does: `PeftModel.from_pretrained(model, folder)` reads it.

    Args:
        settings: as `add_adapters` returned them.
        base: the model that the adapter is for, by its name.
    """
    peft = import_peft()
    folder.mkdir()
    tensors = {_stored(name): tensor.contiguous() for name, tensor in _adapter_tensors(model).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    written = peft.LoraConfig(**settings | {"base_model_name_or_path": base, "inference_mode": True})
    written.save_pretrained(str(folder))
    assert (folder / CONFIG).is_file()


@torch.no_grad()
def load_adapter(model: nn.Module, folder: Path) -> None:
    """Put the tensors of a saved adapter back where they were."""
    stored = load_file(folder / WEIGHTS)
    for name, tensor in _adapter_tensors(model).items():
        tensor.copy_(stored[_stored(name)])


def _adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if ".lora_" in name}


def _stored(name: str) -> str:
    return PEFT_PREFIX + name.replace(".default.", ".")
