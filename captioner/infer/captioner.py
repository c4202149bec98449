"""`Captioner`: the one object users hold. Images in, captions out."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import torch
from PIL import Image
from torch import Tensor

from captioner.data.images import load_image
from captioner.errors import CaptionerError
from captioner.export.format import is_export
from captioner.hub import find_model, load_model
from captioner.infer.caption import Caption, ImageInput, Tag, Token, likely_tags
from captioner.infer.generation import Hypothesis, generate
from captioner.infer.options import GenerationOptions
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration
from captioner.model.processing_captioner import CaptionerProcessor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Captioner:
    """A model and its processor, ready to caption.

    Example:
        >>> cap = Captioner.from_pretrained()
        >>> cap("photo.jpg").text
        >>> [caption.text for caption in cap(["a.jpg", "b.jpg"], num_beams=5)]
    """

    def __init__(
        self,
        model: CaptionerForConditionalGeneration,
        processor: CaptionerProcessor,
        name: str,
        device: str | torch.device = "auto",
        precision: str = "auto",
    ) -> None:
        """Move `model` to `device` and `precision`; `name` says in outputs which model wrote a caption."""
        self.device = _device(device)
        self.dtype = _dtype(precision, self.device)
        self.model = model.to(device=self.device, dtype=self.dtype).eval()
        self.processor = processor
        self.name = name

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        device: str | torch.device = "auto",
        precision: str = "auto",
    ) -> "Captioner":
        """Load the bundled checkpoint (None), a folder that training or `captioner export` wrote, or a model of the
        Hugging Face Hub.

        Args:
            model: an existing folder is read as such; any other `owner/name` is asked of the Hub, through its cache,
                and of the cache alone where HF_HUB_OFFLINE=1.
            device: a torch device; "auto" takes an accelerator where there is one.
            precision: of weights and arithmetic; "auto" is bf16 on an accelerator (fp16 where it has no bf16), fp32 on
                a CPU.

        Raises:
            CaptionerError: no such model, or one that cannot be read; the message says which and why.
        """
        _dtype(precision, _device(device))  # a wrong name should not cost a download
        folder, name = find_model(model)
        if is_export(folder):
            from captioner.infer.exported import OnnxCaptioner

            return OnnxCaptioner(folder, name, device, precision)
        network, processor = load_model(folder, name)
        return cls(network, processor, name, device, precision)

    @overload
    def __call__(self, images: ImageInput, *, batch_size: int = ..., **options: Any) -> Caption: ...
    @overload
    def __call__(self, images: Sequence[ImageInput], *, batch_size: int = ..., **options: Any) -> list[Caption]: ...
    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput],
        *,
        batch_size: int = 16,
        prefix: str = "",
        banned_words: Sequence[str] = (),
        **options: Any,
    ) -> Caption | list[Caption]:
        """Caption one image, or a list of images.

        Args:
            images: a path, the bytes of an image file, a PIL image, or a list of these.
            batch_size: images captioned at once.
            prefix: how every caption starts: "a photo of".
            banned_words: words, or sequences of words, that no caption uses as the tokenizer spells them here.
            options: fields of `GenerationOptions`.

        Raises:
            ImageError: an image cannot be read; the message names it.
            CaptionerError: an option is unknown or out of range.
        """
        if isinstance(images, (str, bytes, Path, Image.Image)):
            return self([images], batch_size=batch_size, prefix=prefix, banned_words=banned_words, **options)[0]
        if batch_size < 1:
            raise CaptionerError(f"batch_size must be at least 1; it is {batch_size}")
        if prefix:
            options["prefix_ids"] = self._token_ids(prefix)
        if banned_words:
            options["banned_ids"] = tuple(map(self._token_ids, banned_words))
        chosen = _options(options)
        captions: list[Caption] = []
        for start in range(0, len(images), batch_size):
            batch = [self.preprocess(load_image(image)) for image in images[start : start + batch_size]]
            captions += self.caption(torch.stack(batch), chosen)
        return captions

    def _token_ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.processor.tokenizer(text).input_ids[:-1])  # without the end of sequence

    def preprocess(self, image: Image.Image) -> Tensor:
        """An upright RGB image -> pixel values [3, H, W], float32, as the model was trained on. Safe in threads."""
        return self.processor.image_processor(images=[image], return_tensors="pt")["pixel_values"][0]

    def caption(self, pixel_values: Tensor, options: GenerationOptions) -> list[Caption]:
        """Caption a batch of preprocessed images [B, 3, H, W]."""
        with torch.inference_mode():
            encoder_outputs = self.model.encoder(pixel_values=pixel_values.to(self.device, self.dtype))
            tags = self._tags(encoder_outputs.last_hidden_state)
        groups = generate(self.model, {"encoder_outputs": encoder_outputs}, options)
        return [self._caption(group, seen) for group, seen in zip(groups, tags, strict=True)]

    def _tags(self, encoder_hidden_states: Tensor) -> list[tuple[Tag, ...]]:
        head, config = self.model.heads.tags, self.model.config
        if head is None:
            return [()] * len(encoder_hidden_states)
        logits = head(encoder_hidden_states).float().cpu().numpy()
        return [likely_tags(row, config.tags, config.problem_type) for row in logits]

    def _caption(self, hypotheses: list[Hypothesis], tags: tuple[Tag, ...] = ()) -> Caption:
        best, *others = hypotheses
        tokenizer = self.processor.tokenizer
        pieces = tokenizer.convert_ids_to_tokens(list(best.token_ids))
        text = self.processor.batch_decode([list(best.token_ids)], skip_special_tokens=True)[0]
        return Caption(
            text=" ".join(text.split()),
            confidence=math.exp(best.mean_log_prob),
            tokens=tuple(Token(*pair) for pair in zip(pieces, best.log_probs, strict=True)),
            alternatives=tuple(self._caption([other]) for other in others),
            tags=tags,
        )


def _options(fields: dict[str, Any]) -> GenerationOptions:
    unknown = fields.keys() - GenerationOptions.__dataclass_fields__.keys()
    if unknown:
        known = ", ".join(GenerationOptions.__dataclass_fields__)
        raise CaptionerError(f"unknown option {', '.join(sorted(unknown))}; there are {known}")
    return GenerationOptions(**fields)


def _device(name: str | torch.device) -> torch.device:
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # what torch raises for a device it lacks
        raise CaptionerError(f"device {str(name)!r}: {str(error).splitlines()[0]}") from error
    return device


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.float16 if device.type == "cuda" and not torch.cuda.is_bf16_supported() else torch.bfloat16
    if precision not in DTYPES:
        raise CaptionerError(f"precision {precision!r}: choose auto, {', '.join(DTYPES)}")
    return DTYPES[precision]
