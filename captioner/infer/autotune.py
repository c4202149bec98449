"""Short probes of what captions fastest on this machine: the precision on a CPU, the batch size on an accelerator."""

import time
from dataclasses import replace

import torch
from PIL import Image

from captioner.decoding.cuda_graph import Captures
from captioner.decoding.options import GenerationOptions
from captioner.infer.backend import Backend

CAPTION_TOKENS = 12
"""About the length of a caption, so that encoder and decoder weigh as much in a probe as in a run."""
WORTH_ROUNDING = 1.2
"""How many times as fast bf16 must be on a CPU, because it changes some captions, though not how good they are."""
STILL_RISING = 1.05


def is_worth_rounding(plain: Backend, rounded: Backend, options: GenerationOptions) -> bool:
    """Return whether the backend with rounded weights is clearly faster."""
    tokens = min(CAPTION_TOKENS, options.max_new_tokens)
    before, after = (images_per_second(backend, options, 8, tokens) for backend in (plain, rounded))
    return after > WORTH_ROUNDING * before


def best_batch_size(backend: Backend, options: GenerationOptions, captures: Captures | None) -> int:
    """Return the best batch size on an accelerator: doubled while speed rises by more than 5 % and memory suffices for
    the longest captions. The graphs that a probe has captured are dropped."""
    best, speed = backend.batch_size, 0.0
    for size in (backend.batch_size * 2**doublings for doublings in range(6)):
        try:
            reached = images_per_second(backend, options, size, options.max_new_tokens)
        except torch.OutOfMemoryError:
            break
        finally:
            if captures is not None:
                captures.clear()
        if reached < STILL_RISING * speed:
            break
        best, speed = size, reached
    return best


def images_per_second(backend: Backend, options: GenerationOptions, batch_size: int, num_tokens: int) -> float:
    """Measure the speed of captioning preprocessed images with so many tokens each, whatever the model would have said.

    Two batches at a time, because a stream decodes one while it holds the next.
    """
    tokens = min(num_tokens, backend.longest)
    probe = replace(options, prefix_ids=(), force_words_ids=(), min_new_tokens=tokens, max_new_tokens=tokens)
    images = [backend.preprocessing(Image.new("RGB", (64, 64)))] * batch_size
    seconds = 0.0
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        stream = backend.stream(probe)
        stream.add(images)
        stream.add(images)
        stream.finish()
        seconds = time.perf_counter() - start
    return 2 * batch_size / seconds
