"""Converts NumPy arrays and torch tensors of pixels to Pillow images."""

import sys
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

CHANNELS = (1, 3, 4)
"""Grey, RGB and RGBA."""


@runtime_checkable
class Array(Protocol):
    """Anything NumPy can read as an array, including torch tensors."""

    def __array__(self) -> Any: ...


def array_to_image(source: Array) -> Image.Image:
    """Convert pixels [H, W], [H, W, channels] or [channels, H, W] to a Pillow image; channels are grey, RGB or RGBA.

    Integers and booleans range from 0 to 255 (grey uint16: to 65535), floats from 0 to 1. If the shape is ambiguous,
    channels come first in a torch tensor and last in any other array.

    Raises:
        ValueError: the shape, the type or the range of the values is another.
    """
    torch = sys.modules.get("torch")  # a tensor implies that torch is imported; we also run without it
    if torch is None or not isinstance(source, torch.Tensor):
        return Image.fromarray(_levels(_channels_last(np.asarray(source), channels_first=False)))
    tensor: Any = source.detach().cpu()
    pixels = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return Image.fromarray(_levels(_channels_last(pixels, channels_first=True)))


def _channels_last(pixels: np.ndarray, channels_first: bool) -> np.ndarray:
    """Pixels as [H, W, 3 or 4], or [H, W] if grey."""
    first, last = (pixels.ndim == 3 and pixels.shape[axis] in CHANNELS for axis in (0, -1))
    if pixels.ndim != 2 and not first and not last:
        raise ValueError(f"an array of shape {pixels.shape} is not an image: [H, W], [H, W, 3] or [3, H, W]")
    if pixels.ndim == 3 and first and (channels_first or not last):
        pixels = pixels.transpose(1, 2, 0)
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels


def _levels(pixels: np.ndarray) -> np.ndarray:
    """Pixels as uint8; 16-bit grey stays as it is."""
    if pixels.size == 0:
        raise ValueError(f"an array of shape {pixels.shape} has no pixels")
    if pixels.dtype == np.uint8 or (pixels.dtype == np.uint16 and pixels.ndim == 2):
        return np.ascontiguousarray(pixels)
    if pixels.dtype.kind not in "biuf":
        raise ValueError(f"an array of type {pixels.dtype} is not an image: uint8, or floats from 0 to 1")
    ceiling = 255 if pixels.dtype.kind in "iu" else 1
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= ceiling):  # also catches NaN
        kind = "integers" if ceiling == 255 else "floats"
        raise ValueError(f"{kind} must be from 0 to {ceiling}; these go from {low:.4g} to {high:.4g}")
    return np.rint(pixels.astype(np.float32) * (255 / ceiling)).astype(np.uint8)
