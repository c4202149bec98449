"""Processor: the preprocessing of images and the tokenizer for captions, saved beside the weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs, ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .caption_cleaning import clean_caption
from .preprocessing import RESAMPLING, Preprocessing

FORMER_NAMES = {"image_size": "size", "interpolation": "resample", "mean": "image_mean", "std": "image_std"}
"""Names of fields in checkpoints of captioner 0.1."""


class CaptionerImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """transformers' settings, and those of `Preprocessing` that transformers does not have."""

    resize_mode: str
    crop_pct: float


class CaptionerImageProcessor(PilBackend):
    """`Preprocessing` with transformers' interface and field names.

    Accepts what transformers' image processors accept: Pillow images, arrays and tensors with channels first or last.
    Images from `captioner.data.images` are already upright and RGB.
    """

    valid_kwargs = CaptionerImageProcessorKwargs
    model_input_names = ["pixel_values"]  # noqa: RUF012 - transformers' form

    size = {"height": 224, "width": 224}  # noqa: RUF012 - transformers' form
    resample = PILImageResampling.BICUBIC
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)
    resize_mode = "crop"
    crop_pct = 1.0
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{FORMER_NAMES.get(name, name): value for name, value in kwargs.items()})

    def _standardize_kwargs(self, resample: Any = None, **kwargs: Any) -> dict[str, Any]:
        if isinstance(resample, str):  # timm's name, as in `Preprocessing`
            resample = PILImageResampling(RESAMPLING[resample])
        return super()._standardize_kwargs(resample=resample, **kwargs)

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing as captioner itself uses it.

        Raises:
            ValueError: it leaves out a step, or its size is not a square.
        """
        for step in ("do_resize", "do_rescale", "do_normalize"):
            if not getattr(self, step):
                raise ValueError(f"the image processor has {step} off, which captioner does not support")
        return _spec(self.size, self.resample, self.image_mean, self.image_std, self.resize_mode, self.crop_pct)

    def _preprocess(
        self,
        images: list[np.ndarray],
        do_resize: bool,
        size: SizeDict,
        resample: Any,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | Sequence[float],
        image_std: float | Sequence[float],
        resize_mode: str,
        crop_pct: float,
        return_tensors: Any,
        **kwargs: Any,
    ) -> BatchFeature:
        """Images [channels, height, width] -> `pixel_values` float32, [B, channels, size, size] if they are resized."""
        pixel_values = []
        for image in images:
            if do_resize:
                image = _resize(image, _spec(size, resample, image_mean, image_std, resize_mode, crop_pct))
            # The operations of `Preprocessing.normalize`, to the bit.
            pixels = image.astype(np.float32)
            if do_rescale:
                pixels /= 1 / rescale_factor
            if do_normalize:
                pixels -= np.asarray(image_mean, dtype=np.float32).reshape(-1, 1, 1)
                pixels /= np.asarray(image_std, dtype=np.float32).reshape(-1, 1, 1)
            pixel_values.append(pixels)
        return BatchFeature({"pixel_values": pixel_values}, tensor_type=return_tensors)


def _spec(
    size: Any,
    resample: int,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    resize_mode: str,
    crop_pct: float,
) -> Preprocessing:
    height, width = size["height"], size["width"]
    if height is None or height != width:
        raise ValueError(f"size {dict(size)}: captioner's images are squares; give the same height and width")
    interpolation = Image.Resampling(resample).name.lower()
    rgb_mean, rgb_std = (tuple(np.resize(values, 3).tolist()) for values in (mean, std))
    return Preprocessing(height, resize_mode, crop_pct, interpolation, rgb_mean, rgb_std)


def _resize(image: np.ndarray, spec: Preprocessing) -> np.ndarray:
    """Resize [channels, height, width]; other images than 8-bit RGB one channel at a time, as floats."""
    if image.dtype == np.uint8 and len(image) == 3:
        return np.asarray(spec.resize(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))))).transpose(
            2, 0, 1
        )
    if spec.resize_mode == "pad":
        raise ValueError("resize_mode pad needs 8-bit RGB images")
    channels = [Image.fromarray(np.ascontiguousarray(channel, dtype=np.float32)) for channel in image]
    return np.stack([np.asarray(spec.resize(channel)) for channel in channels])


class CaptionerProcessor(ProcessorMixin):
    """Converts images to pixels, and captions to token ids and back.

    The tokenizer is a `CaptionerTokenizer`, or that of a converted model if it encodes in the same way: no start token,
    and the end of sequence last.
    """

    def __init__(self, image_processor: CaptionerImageProcessor, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(image_processor, tokenizer)

    def __call__(self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Any) -> BatchFeature:
        """Return `pixel_values` of images, `input_ids` and `attention_mask` of captions; `kwargs` go to transformers.

        Captions are cleaned with `clean_caption`, so that other trainers get the same labels.
        """
        if isinstance(text, str):
            text = clean_caption(text)
        elif text is not None:
            text = [clean_caption(caption) if isinstance(caption, str) else caption for caption in text]
        return super().__call__(images=images, text=text, **kwargs)


# So that save_pretrained copies this code into the folder, for trust_remote_code=True.
CaptionerImageProcessor.register_for_auto_class()
CaptionerProcessor.register_for_auto_class()
