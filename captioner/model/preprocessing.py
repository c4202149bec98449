"""Turns an upright RGB image into model input, with Pillow and NumPy, in training, inference and exported models."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
RESIZE_MODES = ("crop", "squash", "pad", "scale_then_crop", "squash_then_crop")
MAX_ASPECT = 16
"""Of images that are resampled as a whole: a line of pixels would become a huge one."""


@dataclass(frozen=True)
class Preprocessing:
    """The whole preprocessing spec, as saved with a checkpoint.

    Args:
        image_size: height and width of the result, pixels.
        resize_mode: "crop" scales the shorter side to `image_size / crop_pct` and cuts the centre; "squash" does so
            with both sides, each by its own factor; "pad" scales the longer side to `image_size` and fills with the
            mean colour. "scale_then_crop" and "squash_then_crop" are "crop" and "squash" in two steps, as transformers'
            image processors have them, which round each to whole pixels. Captions tell of the whole picture, so
            crop_pct is 1 unless a trunk wants otherwise.
        mean, std: of the RGB channels scaled to [0, 1].
    """

    image_size: int
    resize_mode: str = "crop"
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if self.resize_mode not in RESIZE_MODES:
            raise ValueError(f"resize_mode {self.resize_mode!r} is not one of {', '.join(RESIZE_MODES)}")
        if self.interpolation not in RESAMPLING:
            raise ValueError(f"interpolation {self.interpolation!r} is not one of {', '.join(RESAMPLING)}")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct {self.crop_pct} is not in (0, 1]")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std} are not three numbers, std above 0")

    @property
    def min_size(self) -> int:
        """Pixels of a photo's shorter side that `load_image` has to keep: twice what is used, so that scaling the rest
        of the way still averages over the photo's own pixels."""
        return math.ceil(2 * self.image_size / self.crop_pct)

    def resize(self, image: Image.Image) -> Image.Image:
        """An RGB image of any size -> `image_size` squared."""
        size, (width, height) = self.image_size, image.size
        if (width, height) == (size, size) and self.crop_pct == 1.0:
            return image
        resampling = RESAMPLING[self.interpolation]
        if self.resize_mode.endswith("_then_crop"):
            return self._resize_then_crop(image)
        if self.resize_mode == "pad":
            scale = size / max(width, height)
            inner = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), resampling)
            canvas = Image.new("RGB", (size, size), tuple(round(255 * channel) for channel in self.mean))
            canvas.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
            return canvas
        # One resampling straight from the kept box: no intermediate image, however large the photo.
        return image.resize((size, size), resampling, box=self.window(width, height))

    def window(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Which part of a photo of this size the model sees: left, top, right, bottom in its pixels. With padding, it
        reaches beyond the photo."""
        if self.resize_mode == "squash":
            sides = width * self.crop_pct, height * self.crop_pct
        elif self.resize_mode == "crop":
            sides = (min(width, height) * self.crop_pct,) * 2
        else:
            sides = (float(max(width, height)),) * 2
        left, top = (width - sides[0]) / 2, (height - sides[1]) / 2
        return left, top, left + sides[0], top + sides[1]

    def _resize_then_crop(self, image: Image.Image) -> Image.Image:
        """Pixel for pixel what transformers' image processors give: all of the image is resampled, to whole pixels."""
        size, resampling = self.image_size, RESAMPLING[self.interpolation]
        scaled, shorter = round(size / self.crop_pct), min(image.size)
        if max(image.size) > MAX_ASPECT * shorter:
            width, height = (min(side, MAX_ASPECT * shorter) for side in image.size)
            image = ImageOps.fit(image, (width, height))
        whole = [scaled if self.resize_mode == "squash_then_crop" else int(scaled * x / shorter) for x in image.size]
        left, top = ((side - size) // 2 for side in whole)
        return image.resize((whole[0], whole[1]), resampling).crop((left, top, left + size, top + size))

    def normalize(self, image: Image.Image) -> np.ndarray:
        """RGB image -> float32 [3, height, width], normalized by mean and std."""
        # By channel and in place: seven times as fast as with interleaved channels.
        pixels = np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")
        pixels /= 255.0
        pixels -= np.asarray(self.mean, dtype=np.float32)[:, None, None]
        pixels /= np.asarray(self.std, dtype=np.float32)[:, None, None]
        return pixels

    def __call__(self, image: Image.Image) -> np.ndarray:
        return self.normalize(self.resize(image))
