"""The backend of trained checkpoints: torch."""

import copy
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captioner.cpu.memory import reuse_blocks
from captioner.cpu.packed_linears import multiplies_bf16, pack_linears
from captioner.cpu.threads import brief_waits
from captioner.data.captions import encode_texts
from captioner.decoding.cuda_graph import Captures
from captioner.decoding.defaults import generation_defaults
from captioner.decoding.hypothesis import Hypothesis
from captioner.decoding.options import GenerationOptions
from captioner.decoding.stream import GenerationStream
from captioner.distributed import this_process
from captioner.hub.adapters import merge_adapter
from captioner.hub.load import load_model
from captioner.infer.autotune import best_batch_size, is_worth_rounding
from captioner.infer.backend import images_together
from captioner.infer.calibration import Calibration
from captioner.infer.caption import Caption, CaptionMaker, Tag, likely_tags
from captioner.infer.devices import DTYPES, choose_device, choose_precision
from captioner.infer.torch_attention import token_maps
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration
from captioner.model.processing_captioner import CaptionerProcessor

MOST_TOGETHER = 32
"""Images that are decoded together on a CPU, unless a batch has more."""


class TorchBackend:
    """A `Backend` whose model is a `CaptionerForConditionalGeneration`."""

    batch_size = 16

    def __init__(
        self,
        model: CaptionerForConditionalGeneration,
        processor: CaptionerProcessor,
        device: str | torch.device = "auto",
        precision: str = "auto",
        calibration: Calibration | None = None,
    ) -> None:
        """Move `model` to `device` and `precision`.

        Raises:
            CaptionerError: there is no such device or precision.
        """
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.may_round = precision == "auto" and self.precision == "fp32"
        self.dtype = DTYPES[self.precision]
        self.model = model.to(device=self.device, dtype=self.dtype).eval()
        if self.device.type == "cpu":
            pack_linears(self.model)
            reuse_blocks()
        self.captures = Captures() if self.device.type == "cuda" else None
        self.defaults = generation_defaults(model.generation_config.to_dict())
        self.start = model.config.decoder_start_token_id
        self.longest = model.config.max_position_embeddings
        self.processor = processor
        self.calibration = calibration
        self.tokenizer = ProcessorTokenizer(processor)
        self.preprocessing = processor.image_processor.preprocessing

    @classmethod
    def load(
        cls,
        folder: Path,
        name: str,
        device: str | torch.device,
        precision: str,
        adapter: str | Path | None = None,
    ) -> "TorchBackend":
        """Read a checkpoint's folder, and merge an adapter into the model if one is named.

        Raises:
            CaptionerError: either cannot be read, or there is no such device or precision.
        """
        choose_precision(precision, choose_device(device))  # a wrong name should not cost the reading of weights
        model, processor = load_model(folder, name)
        if adapter is None:
            return cls(model, processor, device, precision, Calibration.load(folder))
        merge_adapter(model, adapter)
        return cls(model, processor, device, precision)  # the calibration is not the adapted model's

    def tune(self, options: GenerationOptions, batch_size: int | None) -> None:
        if self.device.type != "cpu":
            self.batch_size = batch_size or best_batch_size(self, options, self.captures)
        elif self.may_round and this_process().count == 1 and multiplies_bf16():  # several would have to agree
            rounded = TorchBackend(copy.deepcopy(self.model), self.processor, self.device, "bf16")
            if is_worth_rounding(self, rounded, options):
                self.model, self.dtype, self.precision = rounded.model, rounded.dtype, rounded.precision
            self.may_round = False

    def stream(self, options: GenerationOptions) -> "TorchStream":
        return TorchStream(self, options)

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Return image tokens [B, P, D]. A CPU encodes a few images at a time, so that the C library can reuse the
        memory of their tensors (`reuse_blocks`: blocks of up to 31 MiB)."""
        on_cpu = pixel_values.device.type == "cpu"
        parts = pixel_values.split(max(4, 2 * torch.get_num_threads())) if on_cpu else (pixel_values,)
        image_tokens = [self.model.encoder(pixel_values=part).last_hidden_state for part in parts]
        return image_tokens[0] if len(parts) == 1 else torch.cat(image_tokens)

    def token_maps(self, photo: Image.Image, token_ids: Sequence[int], method: str) -> np.ndarray:
        pixels = torch.from_numpy(self.preprocessing(photo))[None].to(self.device, self.dtype)
        return token_maps(self.model, pixels, token_ids, method).cpu().numpy()


class ProcessorTokenizer:
    """The tokenizer of a transformers processor as a `Tokenizer`."""

    def __init__(self, processor: CaptionerProcessor) -> None:
        self.processor = processor

    def encode(self, text: str) -> list[int]:
        return encode_texts(self.processor.tokenizer, [text])[0]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.processor.batch_decode([list(ids)], skip_special_tokens=True)[0]
        return text

    def id_to_token(self, index: int) -> str:
        return self.processor.tokenizer.convert_ids_to_tokens(index) or ""

    def token_to_id(self, token: str) -> int:
        return self.processor.tokenizer.convert_tokens_to_ids(token)


class TorchStream:
    """A `GenerationStream` that takes images and returns captions. On a CUDA device it works one batch behind;
    elsewhere it decodes the images of several small batches together."""

    def __init__(self, backend: TorchBackend, options: GenerationOptions) -> None:
        self.backend = backend
        self.make = CaptionMaker(backend.tokenizer, options, backend.calibration)
        self.copies = CudaCopies(backend.device, backend.dtype) if backend.device.type == "cuda" else None
        encode = None if self.copies is None else backend.encode
        self.generation = GenerationStream(backend.model, self.make.search_options, encode, backend.captures)
        self.waiting: list[Tensor] = []  # image tokens of batches that are not being decoded yet
        self.has_begun = False
        self.tags: deque[tuple[Tag, ...]] = deque()  # of the images whose captions are not ready
        self.computing = brief_waits if backend.device.type == "cpu" else nullcontext

    def add(self, images: Sequence[np.ndarray] | np.ndarray) -> list[Caption]:
        pixels = torch.from_numpy(np.asarray(images))
        if self.copies is None:
            with self.computing():
                return self._encode(pixels.to(self.backend.device))
        before = self.copies.take()
        self.copies.send(pixels)
        return [] if before is None else self._decode(before)

    def finish(self) -> list[Caption]:
        with self.computing():
            if self.copies is None:
                captions = self._decode_waiting()
            else:
                last = self.copies.take()
                captions = [] if last is None else self._decode(last)
            return captions + self._captions(self.generation.finish())

    @torch.inference_mode()
    def _encode(self, pixel_values: Tensor) -> list[Caption]:
        self.waiting.append(self.backend.encode(pixel_values))
        if not self.has_begun and sum(map(len, self.waiting)) < images_together(len(pixel_values), MOST_TOGETHER):
            return []
        return self._decode_waiting()

    def _decode_waiting(self) -> list[Caption]:
        if not self.waiting:
            return []
        image_tokens, self.waiting, self.has_begun = torch.cat(self.waiting), [], True
        return self._decode(image_tokens)

    @torch.inference_mode()
    def _decode(self, inputs: Tensor) -> list[Caption]:
        """`inputs` are pixels on a CUDA device, image tokens elsewhere."""
        groups = self.generation.add(inputs)
        self.tags.extend(self._tags(self.generation.image_tokens[: len(inputs)]))
        return self._captions(groups)

    def _tags(self, encoder_hidden_states: Tensor) -> list[tuple[Tag, ...]]:
        head, config = self.backend.model.heads.tags, self.backend.model.config
        if head is None:
            return [()] * len(encoder_hidden_states)
        logits = head(encoder_hidden_states).float().cpu().numpy()
        return [likely_tags(row, config.tags, config.problem_type) for row in logits]

    def _captions(self, groups: list[list[Hypothesis]]) -> list[Caption]:
        return [self.make(group, self.tags.popleft()) for group in groups]


class CudaCopies:
    """Takes a batch at a time to a CUDA device, from pinned memory and in a stream of its own: a batch is on its way
    while the device works on the one before."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self.stream = torch.cuda.Stream(device)
        self.sent: Tensor | None = None

    def send(self, tensor: Tensor) -> None:
        with torch.cuda.stream(self.stream):
            pinned = torch.empty(tensor.shape, dtype=self.dtype, pin_memory=True).copy_(tensor)
            self.sent = pinned.to(self.device, non_blocking=True)

    def take(self) -> Tensor | None:
        """What was sent and not taken yet; the current stream waits for it, the host does not."""
        sent, self.sent = self.sent, None
        if sent is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            sent.record_stream(current)  # its memory is from the other stream's pool
        return sent
