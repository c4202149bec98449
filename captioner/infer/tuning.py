"""What captions fastest on this machine, by a short probe: the precision on a CPU, the batch size on an accelerator."""

import copy
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from captioner.infer.options import GenerationOptions
from captioner.infer.packed import multiplies_bf16

if TYPE_CHECKING:
    from captioner.infer.trained import TorchCaptioner

PROBED_TOKENS = 12
WORTH_ROUNDING = 1.2
"""How many times as fast bf16 has to be on a CPU: it changes some captions, if not how good they are."""
STILL_RISING = 1.05
LARGEST_BATCH = 512


def faster_precision(captioner: "TorchCaptioner", options: GenerationOptions) -> "TorchCaptioner":
    """The captioner itself, in fp32 on a CPU, or a copy in bf16 where that is clearly faster: that is, where the
    processor has instructions for it."""
    if not multiplies_bf16():
        return captioner
    rounded = type(captioner)(
        copy.deepcopy(captioner.model), captioner.processor, captioner.name, captioner.device, "bf16"
    )
    plain, fast = (images_per_second(one, options, batch_size=8) for one in (captioner, rounded))
    return rounded if fast > WORTH_ROUNDING * plain else captioner


def best_batch_size(captioner: "TorchCaptioner", options: GenerationOptions) -> int:
    """For an accelerator: doubled for as long as speed rises by more than 5 % and memory suffices."""
    best, speed = captioner.batch_size, images_per_second(captioner, options, captioner.batch_size)
    while 2 * best <= LARGEST_BATCH:
        try:
            doubled = images_per_second(captioner, options, 2 * best)
        except torch.OutOfMemoryError:
            break
        if doubled < STILL_RISING * speed:
            break
        best, speed = 2 * best, doubled
    return best


def images_per_second(captioner: "TorchCaptioner", options: GenerationOptions, batch_size: int) -> float:
    """The speed at which preprocessed images are captioned, with captions of equal length, so that it is comparable.

    Two batches at a time, since a stream decodes one and holds the next.
    """
    tokens = min(PROBED_TOKENS, options.max_new_tokens, captioner.model.config.max_position_embeddings)
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
