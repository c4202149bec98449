"""Maps a checkpoint's weights to the captioner's names."""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from captioner.errors import CaptionerError


def map_weights(
    weights: Mapping[str, Tensor],
    origins: Mapping[str, tuple[str, ...]],
    unused: re.Pattern[str],
    oriented: Callable[[str, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Return the captioner's state dict.

    Args:
        weights: the checkpoint's tensors.
        origins: for each tensor of the captioner, those of the checkpoint to concatenate along the first dimension.
        unused: names of tensors that a captioner has no use for.
        oriented: a name and a tensor of the checkpoint -> the tensor as the captioner stores it.

    Raises:
        CaptionerError: tensors are missing, or there are others than `origins` and `unused` name.
    """
    known = {key for keys in origins.values() for key in keys}
    missing = known - weights.keys()
    unknown = {key for key in weights.keys() - known if not unused.fullmatch(key)}
    for problem, keys in {"missing": missing, "unknown": unknown}.items():
        if keys:
            names = f"{', '.join(sorted(keys)[:10])}{', ...' if len(keys) > 10 else ''}"
            raise CaptionerError(f"weights {problem}: {names}")
    return {name: torch.cat([oriented(key, weights[key]) for key in keys]) for name, keys in origins.items()}
