"""Pixels that a program holds already, as NumPy arrays or torch tensors, to Pillow images."""

import sys
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

CHANNELS = (1, 3, 4)
"""Grey, RGB and RGBA."""


@runtime_checkable
class Array(Protocol):
    """What NumPy can read as an array; torch tensors are."""

    def __array__(self) -> Any: ...


def array_to_image(source: Array) -> Image.Image:
    """Pixels [H, W], [H, W, channels] or [channels, H, W] to a Pillow image; channels are grey, RGB or RGBA.

    Integers and booleans are levels of 0..255 (of 0..65535 for uint16 in grey), floats of 0..1. Where both readings of
    a shape are possible, channels come first in a torch tensor and last in any other array.

    Raises:
        ValueError: another shape or type, or values outside that range.
    """
    torch = sys.modules.get("torch")  # whoever holds a tensor has imported it; we run where it is not installed
    if torch is None or not isinstance(source, torch.Tensor):
        return Image.fromarray(_levels(_channels_last(np.asarray(source), channels_first=False)))
    tensor: Any = source.detach().cpu()
    pixels = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return Image.fromarray(_levels(_channels_last(pixels, channels_first=True)))


def _channels_last(pixels: np.ndarray, channels_first: bool) -> np.ndarray:
    """[H, W, 3 or 4], or [H, W] in grey."""
    first, last = (pixels.ndim == 3 and pixels.shape[axis] in CHANNELS for axis in (0, -1))
    if pixels.ndim != 2 and not first and not last:
        raise ValueError(f"an array of shape {pixels.shape} is not an image: [H, W], [H, W, 3] or [3, H, W]")
    if pixels.ndim == 3 and first and (channels_first or not last):
        pixels = pixels.transpose(1, 2, 0)
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels


def _levels(pixels: np.ndarray) -> np.ndarray:
    """As uint8; grey of 16 bits as it is."""
    if pixels.size == 0:
        raise ValueError(f"an array of shape {pixels.shape} has no pixels")
    if pixels.dtype == np.uint8 or (pixels.dtype == np.uint16 and pixels.ndim == 2):
        return np.ascontiguousarray(pixels)
    if pixels.dtype.kind not in "biuf":
        raise ValueError(f"an array of type {pixels.dtype} is not an image: uint8, or floats from 0 to 1")
    ceiling = 255 if pixels.dtype.kind in "iu" else 1
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= ceiling):  # nor NaN
        kind = "integers" if ceiling == 255 else "floats"
        raise ValueError(f"{kind} must be from 0 to {ceiling}; these go from {low:.4g} to {high:.4g}")
    return np.rint(pixels.astype(np.float32) * (255 / ceiling)).astype(np.uint8)
