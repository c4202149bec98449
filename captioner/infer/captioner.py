"""`Captioner`: the one object users hold. Images in, captions out.

It loads no torch: an exported model does without.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, overload

import numpy as np

from captioner.data.images import ImageInput
from captioner.decoding.defaults import options_with
from captioner.decoding.options import GenerationOptions, word_options
from captioner.errors import CaptionerError
from captioner.hub.find import find_model
from captioner.infer.caption import Caption, as_several, pixel_batches
from captioner.infer.export_format import is_export
from captioner.model.preprocessing import Preprocessing

if TYPE_CHECKING:
    import torch


WORTH_TUNING = 1000
"""Images from which on `Captioner.tune` pays: it takes about as long as captioning 60 of them."""


class Captioner(ABC):
    """A model and all it needs, ready to caption: `TorchCaptioner` or `OnnxCaptioner`, as its files are.

    Attributes:
        name: says in outputs which model wrote a caption.
        folder: where its files are.
        precision: of weights and arithmetic; "auto" is that which a model was exported in.
        batch_size: images captioned at once where nobody says how many.
        defaults: fields of `GenerationOptions` that the model's `generation_config.json` sets.
        preprocessing: an upright RGB image -> pixel values [3, H, W], as the model was trained on. Safe in threads.

    Example:
        >>> cap = Captioner.from_pretrained()
        >>> cap("photo.jpg").text
        >>> [caption.text for caption in cap(["a.jpg", "b.jpg"], num_beams=5)]
    """

    name: str
    folder: Path
    precision: str
    batch_size: int = 16
    defaults: Mapping[str, Any]
    preprocessing: Preprocessing

    @staticmethod
    def from_pretrained(
        model: str | Path | None = None,
        device: "str | torch.device" = "auto",
        precision: str = "auto",
        adapter: str | Path | None = None,
    ) -> "Captioner":
        """Load the bundled checkpoint (None or "default"), a folder that training or `captioner export` wrote, or a
        model of the Hugging Face Hub.

        Args:
            model: an existing folder is read as such; any other `owner/name` is asked of the Hub, through its cache,
                and of the cache alone where HF_HUB_OFFLINE=1.
            device: a torch device; "auto" takes an accelerator where there is one. Where it names no number, processes
                that were launched together on a machine take one each.
            precision: of weights and arithmetic; "auto" is bf16 on an accelerator (fp16 where it has no bf16), fp32 on
                a CPU until `tune` finds bf16 faster.
            adapter: a LoRA adapter to merge into the model: a folder with PEFT's files, a training's folder, or a model
                of the Hub.

        Raises:
            CaptionerError: no such model, or one that cannot be read; the message says which and why.
        """
        folder, name = find_model(model)
        if is_export(folder):
            if adapter is not None:
                raise CaptionerError(f"{name}: an exported model takes no adapter; export the model with it")
            from captioner.infer.onnx_stream import OnnxCaptioner

            return OnnxCaptioner(folder, name, device, precision)
        from captioner.infer.torch_backend import TorchCaptioner

        captioner = TorchCaptioner.load(folder, name, device, precision, adapter)
        captioner.folder = folder
        return captioner

    @overload
    def __call__(self, images: ImageInput, *, batch_size: int | None = ..., **options: Any) -> Caption: ...
    @overload
    def __call__(
        self, images: Iterable[ImageInput], *, batch_size: int | None = ..., **options: Any
    ) -> list[Caption]: ...
    def __call__(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        batch_size: int | None = None,
        prefix: str = "",
        banned_words: str | Iterable[str] = (),
        forced_words: str | Iterable[str] = (),
        **options: Any,
    ) -> Caption | list[Caption]:
        """Caption one image, or each of several.

        Args:
            images: an image, or an iterable of images: paths, the bytes of image files, files open for reading bytes,
                PIL images, arrays or tensors of pixels (see `array_to_image`). An array of four dimensions is a batch.
            batch_size: images captioned at once; default: the captioner's.
            prefix: how every caption starts: "a photo of".
            banned_words: words or phrases that no caption uses, as the tokenizer spells them here.
            forced_words: words or phrases that every caption holds; they need beam search.
            options: fields of `GenerationOptions`; defaults are the model's own, where it has any.

        Raises:
            ImageError: an image cannot be read; the message names it.
            CaptionerError: an option is unknown or out of range.
        """
        several = as_several(images)
        if several is None:
            words = {"prefix": prefix, "banned_words": banned_words, "forced_words": forced_words}
            return self([cast(ImageInput, images)], batch_size=batch_size, **words, **options)[0]
        batches = pixel_batches(several, self.preprocessing, self.batch_size if batch_size is None else batch_size)
        stream = self.stream(self.options(**options | self.word_options(prefix, banned_words, forced_words)))
        captions: list[Caption] = []
        for pixel_values in batches:
            captions += stream.add(pixel_values)
        return captions + stream.finish()

    def options(self, **given: Any) -> GenerationOptions:
        """Complete these with the model's own defaults.

        Raises:
            CaptionerError: an option is unknown or out of range.
        """
        return options_with(self.defaults, given)

    def word_options(
        self, prefix: str, banned_words: str | Iterable[str], forced_words: str | Iterable[str]
    ) -> dict[str, Any]:
        """Turn the words that `__call__` takes into fields of `GenerationOptions`."""
        return word_options(self._token_ids, self._start, prefix, banned_words, forced_words)

    @abstractmethod
    def tune(self, options: GenerationOptions, batch_size: int | None = None) -> None:
        """Set what a short probe finds fastest on this machine, as images by the thousand are worth: on a CPU bf16 in
        place of fp32, where `precision` was "auto"; on an accelerator the batch size, unless `batch_size` names it.

        The batch size on a CPU stays: from 8 images on, sizes differ little there.
        """

    @abstractmethod
    def stream(self, options: GenerationOptions) -> "CaptionStream":
        """Where preprocessed images go in, batch after batch, and captions come out."""

    @property
    @abstractmethod
    def _start(self) -> int:
        """The token that every sequence starts with."""

    @abstractmethod
    def _token_ids(self, text: str) -> tuple[int, ...]:
        """How the tokenizer spells it, without the end of sequence."""


class CaptionStream(Protocol):
    """Captions of any number of images, in their order."""

    def add(self, pixel_values: np.ndarray) -> list[Caption]:
        """Take in a batch of preprocessed images [B, 3, H, W]; give the captions that are next and there by now."""

    def finish(self) -> list[Caption]:
        """The captions of all images that are left."""
