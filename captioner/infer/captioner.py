"""`Captioner`: the one object users hold. Images in, captions out.

It loads no torch, which exported models do without.
"""

import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

from captioner.data.images import ImageInput
from captioner.decoding.defaults import options_with
from captioner.decoding.numpy_search import lacks
from captioner.decoding.options import GenerationOptions, word_options
from captioner.errors import CaptionerError
from captioner.files import new_folder
from captioner.hub.adapters import find_adapter
from captioner.hub.find import find_model
from captioner.infer.backend import Backend, CaptionStream, Preprocess
from captioner.infer.caption import Caption
from captioner.infer.explain import METHODS, Explanation, explanation_of
from captioner.infer.inputs import as_several, image_batches, read_image
from captioner.infer.load_backend import load_backend

if TYPE_CHECKING:
    import torch


_log = logging.getLogger(__name__)

WORTH_TUNING = 1000
"""Images from which on `Captioner.tune` pays: it takes about as long as captioning 60 of them."""

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""torch's names of types, and ours."""


class Captioner:
    """A model, ready to caption.

    Attributes:
        backend: what computes: torch or ONNX Runtime.
        name: says in outputs which model wrote a caption.
        folder: the model's files.
        load_torch: loads the model anew for options that the backend lacks; None if there is nothing to change to.

    Example:
        >>> cap = Captioner.from_pretrained()
        >>> cap("photo.jpg").text
        >>> [caption.text for caption in cap(["a.jpg", "b.jpg"], num_beams=5)]
    """

    def __init__(
        self, backend: Backend, name: str, folder: Path, load_torch: Callable[[], Backend] | None = None
    ) -> None:
        """Caption with a loaded model.

        Raises:
            CaptionerError: the model's own defaults are not valid options.
        """
        self.backend = backend
        self.name = name
        self.folder = folder
        self.load_torch = load_torch
        try:
            self.options()
        except (TypeError, CaptionerError) as error:
            raise CaptionerError(f"{name}: generation_config.json: {error}") from error

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        device: "str | torch.device" = "auto",
        dtype: "str | torch.dtype" = "auto",
        adapter: str | Path | None = None,
        backend: str = "auto",
        prompt: str | None = None,
        trust_remote_code: bool = False,
    ) -> "Captioner":
        """Load a model.

        Args:
            model: None or "default" for the bundled model; a folder that training or `captioner export` wrote, or a
                checkpoint that `captioner convert` reads, which is converted once, or any image-text model of
                transformers (`AutoModelForImageTextToText`); else `owner/name` or `owner/name@revision` on the Hugging
                Face Hub, downloaded or taken from the cache (from the cache only if HF_HUB_OFFLINE=1).
            revision: branch, tag or commit on the Hub.
            token: the Hub's access token; None uses the saved one, False none.
            cache_dir: the folder that downloads are cached in; default: huggingface_hub's.
            device: a torch device; "auto" takes an accelerator if there is one. Processes that were launched together
                on a machine take one each, unless the device has a number.
            dtype: of weights and arithmetic: "float32", "bfloat16", "float16" (or "fp32", "bf16", "fp16") or torch's
                own; "auto" is bfloat16 on an accelerator (float16 if it has no bfloat16), and float32 on a CPU until
                `tune` finds bfloat16 faster.
            adapter: a LoRA adapter to merge into the model: a folder with PEFT's files, a training's folder, or a model
                on the Hub.
            backend: "torch", "onnx" (ONNX Runtime, for folders with graphs), or "auto": ONNX Runtime on a CPU if the
                folder has graphs, else torch. With "auto", options that graphs lack (forced words, diverse beams) load
                torch when they are first asked for.
            prompt: for an image-text model: how it is asked. Default: "Describe the photo in one sentence."
            trust_remote_code: run the code that comes with an image-text model. It can do anything on this machine.

        Raises:
            CaptionerError: there is no such model, or it cannot be read; the message says which and why.
        """
        folder, name = find_model(model, revision, token, cache_dir, with_code=trust_remote_code)
        dtype_name = str(dtype).removeprefix("torch.")
        precision = PRECISIONS.get(dtype_name, dtype_name)
        loaded = load_backend(folder, name, backend, device, precision, adapter, prompt, trust_remote_code, cache_dir)
        if adapter is not None:
            name = f"{name} with {find_adapter(adapter)[1]}"
        if prompt is not None:
            name = f"{name} asked {prompt!r}"
        return cls(loaded.backend, name, loaded.folder, loaded.load_torch)

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
        fetch_urls: bool = False,
        prefix: str = "",
        banned_words: str | Iterable[str] = (),
        forced_words: str | Iterable[str] = (),
        neutral_people: bool = False,
        **options: Any,
    ) -> Caption | list[Caption]:
        """Caption one image, or each of several.

        Args:
            images: an image, or an iterable of images: paths, the bytes of image files, files open for reading bytes,
                PIL images, arrays or tensors of pixels (see `array_to_image`). An array of four dimensions is a batch.
            batch_size: images captioned at once; default: the backend's.
            fetch_urls: download images that are named by a URL (http, https or data).
            prefix: the text that every caption starts with: "a photo of".
            banned_words: words or phrases that no caption uses, as the tokenizer spells them here.
            forced_words: words or phrases that every caption contains; they need beam search.
            neutral_people: say a person, a child, people and the like in place of words that tell a gender (English).
            options: fields of `GenerationOptions`; unset ones default to the model's own.

        Raises:
            ImageError: an image cannot be read; the message names it.
            CaptionerError: an option is unknown or out of range, or the model cannot do what it asks for.
        """
        several = as_several(images)
        if several is None:
            words: dict[str, Any] = {"prefix": prefix, "banned_words": banned_words, "forced_words": forced_words}
            words |= {"neutral_people": neutral_people, "batch_size": batch_size, "fetch_urls": fetch_urls}
            return self([cast(ImageInput, images)], **words, **options)[0]
        size = self.batch_size if batch_size is None else batch_size
        batches = image_batches(several, self.preprocessing, size, fetch_urls)
        words = self.word_options(prefix, banned_words, forced_words, neutral_people)
        stream = self.stream(self.options(**options | words))
        captions: list[Caption] = []
        for batch in batches:
            captions += stream.add(batch)
        return captions + stream.finish()

    def explain(
        self, image: ImageInput, *, caption: Caption | None = None, method: str = "attention", **options: Any
    ) -> Explanation:
        """Show where in an image the words of its caption come from.

        Args:
            image: as for captioning.
            caption: what this model said of the image; default: caption it now, with `options` as for captioning.
            method: "attention", or "gradient", the careful mode; see `captioner.infer.explain.METHODS`.

        Raises:
            ImageError: the image cannot be read.
            CaptionerError: the model cannot explain its captions, or not by this method; an option is unknown.
        """
        if method not in METHODS:
            raise CaptionerError(f"method {method!r}: choose {', '.join(METHODS)}")
        photo = read_image(image, self.preprocessing.min_size)
        caption = caption or self(photo, **options)
        token_ids = [self.backend.tokenizer.token_to_id(token.text) for token in caption.tokens]
        if method != "attention":
            self._change_to_torch("gradients")
        maps = self.backend.token_maps(photo, token_ids, method)
        return explanation_of(photo, caption, maps, self.preprocessing.window(*photo.size), method)

    def options(self, **given: Any) -> GenerationOptions:
        """Complete these with the model's own defaults.

        Raises:
            CaptionerError: an option is unknown or out of range.
        """
        return options_with(self.backend.defaults, given)

    def word_options(
        self,
        prefix: str = "",
        banned_words: str | Iterable[str] = (),
        forced_words: str | Iterable[str] = (),
        neutral_people: bool = False,
    ) -> dict[str, Any]:
        """Turn the words that `__call__` takes into fields of `GenerationOptions`."""
        replaced: Mapping[str, str] = {}
        if neutral_people:
            from captioner.metrics.gendered_words import NEUTRAL

            replaced = NEUTRAL
        encode, start = self.backend.tokenizer.encode, self.backend.start
        return word_options(encode, start, prefix, banned_words, forced_words, replaced)

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy the model's files, as they were loaded, into a new folder.

        Raises:
            CaptionerError: `folder` exists, or cannot be written.
        """
        with new_folder(Path(folder).expanduser()) as partial:
            for path in _files(self.folder):
                shutil.copyfile(path, partial / path.name)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a captioner",
        create_pr: bool = False,
    ) -> str:
        """Upload the model's files, as they were loaded, to the Hugging Face Hub.

        Args:
            repo_id: `owner/name`; the repository is created if it does not exist.
            private: of a new repository; default: the owner's default.
            token: the Hub's access token; default: the saved one.
            revision: the branch to commit to; default: main.
            create_pr: open a pull request in place of a commit.

        Returns:
            The URL of the commit.

        Raises:
            CaptionerError: the Hub refused, or cannot be reached.
        """
        from huggingface_hub import HfApi

        from captioner.hub.publish import uploading

        api = HfApi(token=token)
        with uploading(repo_id):
            repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            commit = api.upload_folder(
                repo_id=repository,
                folder_path=self.folder,
                allow_patterns=[path.name for path in _files(self.folder)],
                revision=revision,
                commit_message=commit_message,
                create_pr=create_pr,
            )
        return str(commit.commit_url)

    def tune(self, options: GenerationOptions, batch_size: int | None = None) -> None:
        """Set what a short probe finds fastest on this machine, before captioning images by the thousand: on a CPU bf16
        in place of fp32 if `dtype` was "auto"; on an accelerator the batch size, unless `batch_size` names it.

        The batch size on a CPU stays: from 8 images on, sizes differ little there.
        """
        self.backend.tune(options, batch_size)

    def stream(self, options: GenerationOptions) -> CaptionStream:
        """Start captioning preprocessed images: batches go in, captions come out in order.

        Raises:
            CaptionerError: the model cannot do what the options ask for.
        """
        if lacking := lacks(options):
            self._change_to_torch(lacking)
        return self.backend.stream(options)

    def _change_to_torch(self, lacking: str) -> None:
        """Have torch compute from now on, if the graphs lack something and torch may be loaded."""
        if self.load_torch is not None:
            _log.warning("%s: torch is loaded, because the ONNX graphs have no %s", self.name, lacking)
            self.backend, self.load_torch = self.load_torch(), None

    @property
    def precision(self) -> str:
        """Of weights and arithmetic: fp32, bf16, fp16 or int8."""
        return self.backend.precision

    @property
    def batch_size(self) -> int:
        """Images captioned at once if the caller does not say how many."""
        return self.backend.batch_size

    @property
    def preprocessing(self) -> Preprocess:
        """From an upright RGB image to what `stream` takes. Safe in threads."""
        return self.backend.preprocessing


def _files(folder: Path) -> list[Path]:
    """A model's files: those directly in its folder."""
    return sorted(path for path in folder.iterdir() if path.is_file())
