"""What captions fastest on this machine, by a short probe: the precision on a CPU, the batch size on an accelerator."""

import copy
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from captioner.cpu.packed_linears import multiplies_bf16
from captioner.decoding.options import GenerationOptions

if TYPE_CHECKING:
    from captioner.infer.torch_backend import TorchCaptioner

CAPTION_TOKENS = 12
"""About what a caption has: encoder and decoder have the weight in a probe that they have in a run."""
WORTH_ROUNDING = 1.2
"""How many times as fast bf16 has to be on a CPU: it changes some captions, if not how good they are."""
STILL_RISING = 1.05


def faster_precision(captioner: "TorchCaptioner", options: GenerationOptions) -> "TorchCaptioner":
    """The captioner itself, in fp32 on a CPU, or a copy in bf16 where that is clearly faster: that is, where the
    processor has instructions for it."""
    if not multiplies_bf16():
        return captioner
    rounded = type(captioner)(
        copy.deepcopy(captioner.model), captioner.processor, captioner.name, captioner.device, "bf16"
    )
    tokens = min(CAPTION_TOKENS, options.max_new_tokens)
    plain, fast = (images_per_second(one, options, 8, tokens) for one in (captioner, rounded))
    return rounded if fast > WORTH_ROUNDING * plain else captioner


def best_batch_size(captioner: "TorchCaptioner", options: GenerationOptions) -> int:
    """For an accelerator: doubled for as long as speed rises by more than 5 % and memory suffices for the longest
    captions."""
    best, speed = captioner.batch_size, 0.0
    for size in (captioner.batch_size * 2**doublings for doublings in range(6)):
        try:
            reached = images_per_second(captioner, options, size, options.max_new_tokens)
        except torch.OutOfMemoryError:
            break
        finally:
            if captioner.captures is not None:
                captioner.captures.clear()
        if reached < STILL_RISING * speed:
            break
        best, speed = size, reached
    return best


def images_per_second(
    captioner: "TorchCaptioner", options: GenerationOptions, batch_size: int, num_tokens: int
) -> float:
    """The speed of captioning preprocessed images in so many tokens each, whatever the model would have said.

    Two batches at a time, since a stream decodes one and holds the next.
    """
    tokens = min(num_tokens, captioner.model.config.max_position_embeddings)
    probe = replace(options, prefix_ids=(), force_words_ids=(), min_new_tokens=tokens, max_new_tokens=tokens)
    size = captioner.preprocessing.image_size
    pixel_values = np.zeros((batch_size, 3, size, size), dtype=np.float32)
    seconds = 0.0
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        stream = captioner.stream(probe)
        stream.add(pixel_values)
        stream.add(pixel_values)
        stream.finish()
        seconds = time.perf_counter() - start
    return 2 * batch_size / seconds
