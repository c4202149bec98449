"""Maps a checkpoint's weights to the captioner's names.

A family describes its two halves, encoder and decoder, each as a `Part`; `map_weights` does the rest.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from captioner.errors import CaptionerError

Weights = dict[str, Tensor]


@dataclass
class Part:
    """Half of a checkpoint as the captioner has it.

    Attributes:
        settings: fields of `CaptionerConfig`.
        origins: for each tensor of the captioner, those of the checkpoint to concatenate along the first dimension.
        unused: regular expressions of names of tensors that a captioner has no use for.
        prepare: changes the checkpoint's tensors in place, before anything else.
    """

    settings: dict[str, Any]
    origins: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    prepare: Callable[[Weights], None] = lambda weights: None

    def add(self, ours: str, *theirs: str, kinds: Iterable[str] = ("weight", "bias")) -> None:
        """Take a module's tensors from the modules of these names."""
        for kind in kinds:
            self.origins[f"{ours}.{kind}"] = tuple(f"{name}.{kind}" for name in theirs)


def map_weights(weights: Mapping[str, Tensor], *parts: Part) -> Weights:
    """Return the captioner's state dict.

    Raises:
        CaptionerError: tensors are missing, or there are others than the parts name.
    """
    prepared = dict(weights)
    for part in parts:
        part.prepare(prepared)
    origins = {name: keys for part in parts for name, keys in part.origins.items()}
    unused = re.compile("|".join(pattern for part in parts for pattern in part.unused))
    known = {key for keys in origins.values() for key in keys}
    missing = known - prepared.keys()
    unknown = {key for key in prepared.keys() - known if not unused.fullmatch(key)}
    for problem, keys in {"missing": missing, "unknown": unknown}.items():
        if keys:
            names = f"{', '.join(sorted(keys)[:10])}{', ...' if len(keys) > 10 else ''}"
            raise CaptionerError(f"weights {problem}: {names}")
    return {name: torch.cat([prepared[key] for key in keys]).float() for name, keys in origins.items()}


def require_settings(part: str, config: Any, **needed: Any) -> None:
    """Check that a part's configuration says what a captioner has built in.

    Raises:
        CaptionerError: it says otherwise.
    """
    for name, value in needed.items():
        if getattr(config, name) != value:
            raise CaptionerError(f"its {part} has {name} {getattr(config, name)!r}; a captioner has {value!r}")


def activation(name: object) -> str:
    """An activation's name in transformers, the fastest of those for the same formula.

    Raises:
        CaptionerError: there is no such activation.
    """
    from transformers.activations import ACT2FN

    if not isinstance(name, str) or name not in ACT2FN:
        raise CaptionerError(f"its decoder's activation {name!r} is unknown")
    return "gelu_pytorch_tanh" if name == "gelu_new" else name
