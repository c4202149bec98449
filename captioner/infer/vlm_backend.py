"""The backend of large image-text models that are asked in words: transformers' `AutoModelForImageTextToText`."""

import copy
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, PreTrainedModel, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from captioner.decoding.hypothesis import Hypothesis
from captioner.decoding.options import GenerationOptions
from captioner.errors import CaptionerError
from captioner.hub.describe import read_config
from captioner.hub.load import quiet_transformers
from captioner.infer.caption import Caption, CaptionMaker
from captioner.infer.devices import DTYPES, choose_device, choose_precision
from captioner.infer.torch_backend import ProcessorTokenizer

PROMPT = "Describe the photo in one sentence."
LARGEST_SIDE = 2048
"""Pixels of a photo's longer side; the model's own processor scales it further."""

SEARCH = ("num_beams", "num_return_sequences", "no_repeat_ngram_size", "length_penalty", "repetition_penalty")
LENGTHS = ("max_new_tokens", "min_new_tokens")
SAMPLING = ("temperature", "top_k", "top_p")
UNKNOWN = {"prefix_ids": "a prefix", "force_words_ids": "forced words", "seed": "a seed"}
"""Options that transformers' `generate` lacks for these models."""


def is_vlm(folder: Path, trust_remote_code: bool) -> bool:
    """Whether transformers reads this folder as an image-text model, by its own code or, if trusted, the folder's."""
    config = read_config(folder)
    is_foreign = "AutoModelForImageTextToText" in (config.get("auto_map") or {})
    return config.get("model_type") in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or (trust_remote_code and is_foreign)


class VlmBackend:
    """A `Backend` that shows the model one image at a time, in batches, with the same words."""

    batch_size = 4

    def __init__(
        self, model: PreTrainedModel, processor: ProcessorMixin, prompt: str, device: torch.device, precision: str
    ) -> None:
        self.model = model.to(device).eval()
        self.processor = processor
        self.prompt = prompt
        self.precision = precision
        self.tokenizer = ProcessorTokenizer(processor)
        self.preprocessing = WholeImage()
        self.defaults: dict[str, Any] = {"num_beams": 1, "max_new_tokens": 100}
        text = model.config.get_text_config()
        self.longest = getattr(text, "max_position_embeddings", None) or 1 << 15
        ends = model.generation_config.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends])
        self.start = getattr(text, "bos_token_id", None) or 0
        own = processor.tokenizer
        own.padding_side = "left"
        if own.pad_token is None:
            own.pad_token = own.eos_token

    @classmethod
    def load(
        cls,
        folder: Path,
        name: str,
        device: str | torch.device,
        precision: str,
        prompt: str | None,
        trust_remote_code: bool,
    ) -> "VlmBackend":
        """Read a model's folder.

        Raises:
            CaptionerError: it cannot be read, or has no chat template and no prompt was given.
        """
        place = choose_device(device)
        chosen = choose_precision(precision, place)
        options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
        try:
            with quiet_transformers():
                processor = AutoProcessor.from_pretrained(folder, **options)
                model = AutoModelForImageTextToText.from_pretrained(
                    folder, dtype=DTYPES[chosen], use_safetensors=True, **options
                )
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError) as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise CaptionerError(f"{name}: cannot be read as an image-text model: {reason[:300]}") from error
        if prompt is None and not processor.chat_template:
            raise CaptionerError(f"{name}: has no chat template; say with a prompt (--prompt) how it is to be asked")
        return cls(model, processor, PROMPT if prompt is None else prompt, place, chosen)

    def tune(self, options: GenerationOptions, batch_size: int | None) -> None:
        self.batch_size = batch_size or self.batch_size

    def stream(self, options: GenerationOptions) -> "VlmStream":
        for name, words in UNKNOWN.items():
            if getattr(options, name):
                raise CaptionerError(f"a model that is asked by a prompt takes no {words.removeprefix('a ')}")
        if options.num_beam_groups > 1:
            raise CaptionerError("a model that is asked by a prompt takes no num_beam_groups")
        if options.merged_ids:
            raise CaptionerError("a model that is asked by a prompt takes no neutral_people; say it in the prompt")
        return VlmStream(self, options)

    def token_maps(self, photo: Image.Image, token_ids: Sequence[int], method: str) -> np.ndarray:
        raise CaptionerError("a model that is asked by a prompt has no heat maps")


class WholeImage:
    """Images as they are, of at most `LARGEST_SIDE`: each model has a processor of its own."""

    min_size = LARGEST_SIDE

    def window(self, width: int, height: int) -> tuple[float, float, float, float]:
        return 0, 0, width, height

    def __call__(self, image: Image.Image) -> np.ndarray:
        """-> uint8 [height, width, 3]."""
        if max(image.size) > LARGEST_SIDE:
            image = image.copy()
            image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        return np.asarray(image)


class VlmStream:
    """Captions a batch as soon as it comes."""

    def __init__(self, backend: VlmBackend, options: GenerationOptions) -> None:
        self.backend = backend
        self.options = options
        self.make = CaptionMaker(backend.tokenizer, options)
        self.config = _generation_config(backend.model.generation_config, options)
        self.config.pad_token_id = backend.processor.tokenizer.pad_token_id

    @torch.inference_mode()
    def add(self, images: Sequence[np.ndarray] | np.ndarray) -> list[Caption]:
        model = self.backend.model
        inputs = self._inputs([Image.fromarray(pixels) for pixels in images]).to(model.device, model.dtype)
        found = model.generate(
            **inputs, generation_config=self.config, return_dict_in_generate=True, output_logits=True
        )
        log_probs = model.compute_transition_scores(
            found.sequences, found.logits, getattr(found, "beam_indices", None), normalize_logits=True
        )
        hypotheses = self._hypotheses(found.sequences[:, -log_probs.shape[1] :], log_probs)
        count = self.options.num_return_sequences
        groups = [hypotheses[first : first + count] for first in range(0, len(hypotheses), count)]
        return [self.make(group) for group in groups]

    def finish(self) -> list[Caption]:
        return []

    def _inputs(self, images: list[Image.Image]) -> Any:
        processor, prompt = self.backend.processor, self.backend.prompt
        if not processor.chat_template:  # PaliGemma, Florence-2: the processor knows where the image goes
            return processor(images=images, text=[prompt] * len(images), padding=True, return_tensors="pt")
        chats = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt}]}]
            for image in images
        ]
        return processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"padding": True, "return_tensors": "pt"},
        )

    def _hypotheses(self, tokens: Tensor, log_probs: Tensor) -> list[Hypothesis]:
        """Rows of new tokens and their log-probabilities, both [N, T], cut at the end of sequence."""
        found = []
        for ids, values in zip(tokens.tolist(), log_probs.float().tolist(), strict=True):
            length = next((place for place, token in enumerate(ids) if token in self.backend.ends), None)
            end = None if length is None else values[length]
            found.append(Hypothesis(tuple(ids[:length]), tuple(values[:length]), end))
        return found


def _generation_config(own: GenerationConfig, options: GenerationOptions) -> GenerationConfig:
    """The model's special tokens, and our options."""
    given = asdict(options)
    config = copy.deepcopy(own)
    chosen = {name: given[name] for name in (*SEARCH, *LENGTHS)} | {"do_sample": options.do_sample, "max_length": None}
    chosen |= {name: given[name] if options.do_sample else None for name in SAMPLING}
    chosen["early_stopping"] = given["early_stopping"]
    chosen["bad_words_ids"] = [list(ids) for ids in options.bad_words_ids] or None
    config.update(**chosen)
    return config
