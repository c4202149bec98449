"""Processor: the preprocessing spec for images and the tokenizer for captions, saved beside the weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .caption_cleaning import clean_caption
from .preprocessing import Preprocessing


class CaptionerImageProcessor(BaseImageProcessor):
    """`Preprocessing` in transformers' form; images come upright and in RGB from `captioner.data.images`."""

    model_input_names = ["pixel_values"]  # noqa: RUF012 - transformers' form

    def __init__(
        self,
        image_size: int = 224,
        resize_mode: str = "crop",
        crop_pct: float = 1.0,
        interpolation: str = "bicubic",
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image_size = image_size
        self.resize_mode = resize_mode
        self.crop_pct = crop_pct
        self.interpolation = interpolation
        self.mean = list(mean)
        self.std = list(std)

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(
            self.image_size, self.resize_mode, self.crop_pct, self.interpolation, tuple(self.mean), tuple(self.std)
        )

    def preprocess(
        self, images: Image.Image | Sequence[Image.Image], return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """RGB images -> `pixel_values` float32 [B, 3, image_size, image_size]."""
        preprocessing = self.preprocessing
        batch = [images] if isinstance(images, Image.Image) else images
        pixel_values = np.stack([preprocessing(image.convert("RGB")) for image in batch])
        return BatchFeature({"pixel_values": pixel_values}, tensor_type=return_tensors)


class CaptionerProcessor(ProcessorMixin):
    """Images to pixels, captions to ids and back.

    The tokenizer is a `CaptionerTokenizer`, or a converted model's own that encodes in the same way: no start token,
    the end of sequence last.
    """

    def __init__(self, image_processor: CaptionerImageProcessor, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(image_processor, tokenizer)

    def __call__(self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Any) -> BatchFeature:
        """`pixel_values` of images, `input_ids` and `attention_mask` of captions; `kwargs` as `ProcessorMixin` takes.

        Captions are cleaned as in our own training (`clean_caption`), so that any trainer gets the same labels.
        """
        if isinstance(text, str):
            text = clean_caption(text)
        elif text is not None:
            text = [clean_caption(caption) if isinstance(caption, str) else caption for caption in text]
        return super().__call__(images=images, text=text, **kwargs)


# save_pretrained then copies this code into the folder, for trust_remote_code=True.
CaptionerImageProcessor.register_for_auto_class()
CaptionerProcessor.register_for_auto_class()
