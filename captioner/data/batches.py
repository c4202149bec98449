"""Collates items into batches of images with all their captions; groups similar lengths in a reproducible order.

Shapes: B images, K captions an image, T tokens of the longest caption in the batch, C tags.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from captioner.data.dataset import CaptionDataset, Place, TextDataset
from captioner.model.modeling_captioner import IGNORE_INDEX


@dataclass
class Batch:
    """Images or their trunk features (neither for text alone), with captions.

    `weights` [B] is what the captions of each image count in the captioning loss; None: all the same.
    `encoder_inputs` holds `pixel_values` [B, 3, height, width] or `trunk_features` [B, P, width]; `labels` is
    [B * K, T]; `tags` [B, C] is 0 or 1, or `IGNORE_INDEX` if unknown. Labels and tags stay on the host, so that they
    can be counted without waiting for the device.
    An unreadable image is replaced by a blank one without captions or tags; `errors` maps its row to the reason. An
    empty reason marks a filler (see `Place`).
    """

    ids: list[str | int]
    encoder_inputs: dict[str, Tensor]
    labels: Tensor
    errors: dict[int, str]
    tags: Tensor | None = None
    weights: Tensor | None = None

    @property
    def captioned(self) -> Tensor:
        """[B], True for each image with a caption."""
        return (self.labels != IGNORE_INDEX).view(len(self.ids), -1).any(1)

    def to(self, device: torch.device) -> "Batch":
        """Move the encoder's inputs to the device, asynchronously on CUDA."""
        return replace(
            self, encoder_inputs={name: to_device(value, device) for name, value in self.encoder_inputs.items()}
        )

    def split(self, size: int) -> list["Batch"]:
        """Split into batches of at most `size` items."""
        captions = len(self.labels) // len(self.ids)
        return [
            Batch(
                self.ids[start : start + size],
                {name: tensor[start : start + size] for name, tensor in self.encoder_inputs.items()},
                self.labels[start * captions : (start + size) * captions],
                {row - start: error for row, error in self.errors.items() if start <= row < start + size},
                None if self.tags is None else self.tags[start : start + size],
                None if self.weights is None else self.weights[start : start + size],
            )
            for start in range(0, len(self.ids), size)
        ]

    def without_targets(self) -> "Batch":
        """Return the first image as a filler, without captions or tags."""
        first = self.split(1)[0]
        tags = None if first.tags is None else torch.full_like(first.tags, IGNORE_INDEX)
        return Batch(first.ids, first.encoder_inputs, torch.full_like(first.labels, IGNORE_INDEX), {0: ""}, tags)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to the device; to CUDA asynchronously, from pinned memory."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def collate(items: list[dict[str, Any]], captions_per_image: int) -> Batch:
    """Collate items; an image with fewer than `captions_per_image` captions gets rows without labels."""
    length = max((len(ids) for item in items for ids in item["captions"]), default=1)
    labels = torch.full((len(items) * captions_per_image, max(length, 1)), IGNORE_INDEX)
    for row, item in enumerate(items):
        for offset, ids in enumerate(item["captions"]):
            labels[row * captions_per_image + offset, : len(ids)] = torch.tensor(ids)
    weights = torch.tensor([item.get("weight", 1.0) for item in items])
    inputs = {"pixel_values", "trunk_features"} & items[0].keys()
    return Batch(
        ids=[item["id"] for item in items],
        encoder_inputs={name: torch.stack([item[name] for item in items]) for name in inputs},
        labels=labels,
        errors={row: item["error"] for row, item in enumerate(items) if item["error"] is not None},
        tags=torch.stack([item["tags"] for item in items]) if "tags" in items[0] else None,
        weights=weights if bool((weights != 1).any()) else None,
    )


def bucketed_batches(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int, bucket: int = 32
) -> list[list[int]]:
    """Return every index once, in batches of similar lengths, reshuffled each epoch.

    Each shuffled run of `bucket` batches is sorted by length and cut into batches: padding is small, yet batches vary.
    """
    draw = np.random.default_rng((seed, epoch))
    order = draw.permutation(len(lengths)).tolist()
    batches = []
    for start in range(0, len(order), batch_size * bucket):
        run = sorted(order[start : start + batch_size * bucket], key=lambda index: lengths[index])
        batches += [run[i : i + batch_size] for i in range(0, len(run), batch_size)]
    return [batches[i] for i in draw.permutation(len(batches))]


def load_batches(
    dataset: CaptionDataset | TextDataset,
    batches: Sequence[Sequence[int]] | Sequence[Sequence[Place]],
    num_workers: int,
    pin_memory: bool = False,
) -> DataLoader:
    """Make a loader over batches of indices or places. It has its own generator, to leave the training's alone."""
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]  # torch accepts any sized iterable of index lists
        collate_fn=partial(collate, captions_per_image=dataset.captions_per_image),
        num_workers=0 if dataset.features is not None else num_workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )
