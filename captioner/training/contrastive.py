"""The contrastive loss between images and captions, over all processes.

Source: J. Yu et al., "CoCa: Contrastive Captioners are Image-Text Foundation Models", https://arxiv.org/abs/2205.01917,
eq. 2. Shapes: N pairs of this process, M of all processes, E width.
"""

import torch
from torch import Tensor, distributed
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, gather: bool = True) -> Tensor:
    """Sum -log p(text | image) / 2 - log p(image | text) / 2 over this process's pairs.

    Row i of `images` and of `texts`, unit vectors [N, E], are a pair. With `gather`, the other pairs are those of all
    processes, which must all call this; otherwise those of this process.
    """
    start, (all_images, all_texts) = 0, (images, texts)
    if gather and distributed.is_initialized() and distributed.get_world_size() > 1:
        start, (all_images, all_texts) = _gather_rows(images, texts)
    own = torch.arange(start, start + len(images), device=images.device)
    to_texts = F.cross_entropy(scale * images @ all_texts.T, own, reduction="sum")
    to_images = F.cross_entropy(scale * texts @ all_images.T, own, reduction="sum")
    return (to_texts + to_images) / 2


def _gather_rows(*tensors: Tensor) -> tuple[int, list[Tensor]]:
    """Gather the rows of all processes, [N, E] -> [M, E], with gradients; also return the index of our first row."""
    size = torch.tensor([len(tensors[0])], device=tensors[0].device)
    sizes = [torch.zeros_like(size) for _ in range(distributed.get_world_size())]
    distributed.all_gather(sizes, size)
    counts = [int(count) for count in sizes]
    gathered = []
    for tensor in tensors:
        padded = F.pad(tensor, (0, 0, 0, max(counts) - len(tensor)))
        parts = all_gather(padded)
        gathered.append(torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]))
    return sum(counts[: distributed.get_rank()]), gathered
