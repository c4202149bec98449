"""A trained checkpoint in `Captioner`'s place: computed by torch."""

import math
from collections import deque
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from captioner.cpu.memory import reuse_blocks
from captioner.cpu.packed_linears import pack_linears
from captioner.cpu.threads import brief_waits
from captioner.data.captions import encode_texts
from captioner.decoding.cuda_graph import Captures
from captioner.decoding.defaults import generation_defaults
from captioner.decoding.options import GenerationOptions
from captioner.decoding.stream import GenerationStream, Hypothesis
from captioner.distributed import this_process
from captioner.errors import CaptionerError
from captioner.hub.adapters import merge_adapter
from captioner.hub.load import load_model
from captioner.infer.autotune import best_batch_size, faster_precision
from captioner.infer.caption import Caption, Tag, Token, likely_tags
from captioner.infer.captioner import Captioner
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration
from captioner.model.processing_captioner import CaptionerProcessor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchCaptioner(Captioner):
    """A `Captioner` whose model is a `CaptionerForConditionalGeneration`."""

    def __init__(
        self,
        model: CaptionerForConditionalGeneration,
        processor: CaptionerProcessor,
        name: str,
        device: str | torch.device = "auto",
        precision: str = "auto",
    ) -> None:
        """Move `model` to `device` and `precision`; `name` says in outputs which model wrote a caption.

        Raises:
            CaptionerError: there is no such device or precision; the model's generation defaults are no options.
        """
        self.device = _device(device)
        self.precision = _precision(precision, self.device)
        self.may_round = precision == "auto" and self.precision == "fp32"
        self.dtype = DTYPES[self.precision]
        self.model = model.to(device=self.device, dtype=self.dtype).eval()
        if self.device.type == "cpu":
            pack_linears(self.model)
            reuse_blocks()
        self.captures = Captures() if self.device.type == "cuda" else None
        self.defaults = generation_defaults(model.generation_config)
        try:
            self.options()
        except (TypeError, CaptionerError) as error:
            raise CaptionerError(f"{name}: generation_config.json: {error}") from error
        self.processor = processor
        self.preprocessing = processor.image_processor.preprocessing
        self.name = name

    @classmethod
    def load(
        cls,
        folder: Path,
        name: str,
        device: str | torch.device,
        precision: str,
        adapter: str | Path | None = None,
    ) -> "TorchCaptioner":
        """Read a checkpoint's folder, and merge an adapter into the model if one is named.

        Raises:
            CaptionerError: either cannot be read, or there is no such device or precision.
        """
        _precision(precision, _device(device))  # a wrong name should not cost the reading of weights
        model, processor = load_model(folder, name)
        if adapter is not None:
            name = f"{name} with {merge_adapter(model, adapter)}"
        return cls(model, processor, name, device, precision)

    def tune(self, options: GenerationOptions, batch_size: int | None = None) -> None:
        if self.device.type != "cpu":
            self.batch_size = batch_size or best_batch_size(self, options)
        elif self.may_round and this_process().count == 1:  # several would have to agree
            faster = faster_precision(self, options)
            self.model, self.dtype, self.precision = faster.model, faster.dtype, faster.precision
            self.may_round = False

    @property
    def _start(self) -> int:
        return self.model.config.decoder_start_token_id

    def _token_ids(self, text: str) -> tuple[int, ...]:
        return tuple(encode_texts(self.processor.tokenizer, [text])[0])

    def stream(self, options: GenerationOptions) -> "TorchCaptionStream":
        return TorchCaptionStream(self, options)

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
            tokens=tuple(Token(piece or "", value) for piece, value in zip(pieces, best.log_probs, strict=True)),
            alternatives=tuple(self._caption([other]) for other in others),
            tags=tags,
        )


class TorchCaptionStream:
    """A `GenerationStream` with images before it and words behind it. On a CUDA device it works a batch behind."""

    def __init__(self, captioner: TorchCaptioner, options: GenerationOptions) -> None:
        self.captioner = captioner
        self.generation = GenerationStream(captioner.model, options, self._encode, captioner.captures)
        self.copies = CudaCopies(captioner.device, captioner.dtype) if captioner.device.type == "cuda" else None
        self.tags: deque[tuple[Tag, ...]] = deque()  # of the images whose captions are not there yet
        self.computing = brief_waits if captioner.device.type == "cpu" else nullcontext

    def add(self, pixel_values: np.ndarray) -> list[Caption]:
        pixels = torch.from_numpy(pixel_values)
        if self.copies is None:
            with self.computing():
                return self._decode(pixels.to(self.captioner.device))
        before = self.copies.take()
        self.copies.send(pixels)
        return [] if before is None else self._decode(before)

    def finish(self) -> list[Caption]:
        last = None if self.copies is None else self.copies.take()
        with self.computing():
            captions = [] if last is None else self._decode(last)
            return captions + self._captions(self.generation.finish())

    def _encode(self, pixel_values: Tensor) -> Tensor:
        """On a CPU a few images at a time, whose tensors are small enough for the C library to use their memory again:
        by `reuse_blocks`, blocks of up to 31 MiB."""
        on_cpu = pixel_values.device.type == "cpu"
        parts = pixel_values.split(max(4, 2 * torch.get_num_threads())) if on_cpu else (pixel_values,)
        image_tokens = [self.captioner.model.encoder(pixel_values=part).last_hidden_state for part in parts]
        return image_tokens[0] if len(parts) == 1 else torch.cat(image_tokens)

    @torch.inference_mode()
    def _decode(self, pixel_values: Tensor) -> list[Caption]:
        groups = self.generation.add(pixel_values)
        self.tags.extend(self.captioner._tags(self.generation.image_tokens[: len(pixel_values)]))
        return self._captions(groups)

    def _captions(self, groups: list[list[Hypothesis]]) -> list[Caption]:
        return [self.captioner._caption(group, self.tags.popleft()) for group in groups]


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


def _device(name: str | torch.device) -> torch.device:
    if name == "auto":
        name = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    try:
        device = torch.device(name)
        process, devices = this_process(), torch.accelerator.device_count()
        if process.local_count > 1 and devices > 1 and device.type != "cpu" and device.index is None:
            device = torch.device(device.type, process.local_rank % devices)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # what torch raises for a device it lacks
        raise CaptionerError(f"device {str(name)!r}: {str(error).splitlines()[0]}") from error
    return device


def _precision(name: str, device: torch.device) -> str:
    if name == "auto":
        if device.type == "cpu":
            return "fp32"
        return "fp16" if device.type == "cuda" and not torch.cuda.is_bf16_supported() else "bf16"
    if name not in DTYPES:
        raise CaptionerError(f"precision {name!r}: choose auto, {', '.join(DTYPES)}")
    return name
