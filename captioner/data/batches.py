"""Items to batches: the images of a batch and all their captions, of like lengths and in a reproducible order.

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

from captioner.data.dataset import IGNORE_INDEX, CaptionDataset, Place, TextDataset


@dataclass
class Batch:
    """Images, or the trunk's tokens for them, or neither where there are words alone, with their captions.

    `encoder_inputs` holds `pixel_values` [B, 3, height, width] or `trunk_features` [B, P, width]; `labels` is
    [B * K, T]; `tags` [B, C] is 0 or 1, `IGNORE_INDEX` where nobody has said whether the image has the tag. Labels and
    tags stay on the host, where they can be counted without waiting for the device.
    An image that could not be read stays as a blank one without captions or tags; `errors` gives its row and why. ""
    marks an image that was only taken along.
    """

    ids: list[str | int]
    encoder_inputs: dict[str, Tensor]
    labels: Tensor
    errors: dict[int, str]
    tags: Tensor | None = None

    @property
    def captioned(self) -> Tensor:
        """[B], True for images with a caption."""
        return (self.labels != IGNORE_INDEX).view(len(self.ids), -1).any(1)

    def to(self, device: torch.device) -> "Batch":
        """The encoder's inputs on the device, or on their way to it."""
        return replace(self, encoder_inputs={name: send(value, device) for name, value in self.encoder_inputs.items()})

    def split(self, size: int) -> list["Batch"]:
        """The same items in batches of at most `size`."""
        captions = len(self.labels) // len(self.ids)
        return [
            Batch(
                self.ids[start : start + size],
                {name: tensor[start : start + size] for name, tensor in self.encoder_inputs.items()},
                self.labels[start * captions : (start + size) * captions],
                {row - start: error for row, error in self.errors.items() if start <= row < start + size},
                None if self.tags is None else self.tags[start : start + size],
            )
            for start in range(0, len(self.ids), size)
        ]

    def without_targets(self) -> "Batch":
        """The first image, taken along without captions and tags."""
        first = self.split(1)[0]
        tags = None if first.tags is None else torch.full_like(first.tags, IGNORE_INDEX)
        return Batch(first.ids, first.encoder_inputs, torch.full_like(first.labels, IGNORE_INDEX), {0: ""}, tags)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device; a CUDA device gets it in its turn, and the host does not wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def collate(items: list[dict[str, Any]], captions_per_image: int) -> Batch:
    """Items of `CaptionDataset` -> `Batch`; an image with fewer captions gets rows without labels."""
    length = max((len(ids) for item in items for ids in item["captions"]), default=1)
    labels = torch.full((len(items) * captions_per_image, max(length, 1)), IGNORE_INDEX)
    for row, item in enumerate(items):
        for offset, ids in enumerate(item["captions"]):
            labels[row * captions_per_image + offset, : len(ids)] = torch.tensor(ids)
    inputs = {"pixel_values", "trunk_features"} & items[0].keys()
    return Batch(
        ids=[item["id"] for item in items],
        encoder_inputs={name: torch.stack([item[name] for item in items]) for name in inputs},
        labels=labels,
        errors={row: item["error"] for row, item in enumerate(items) if item["error"] is not None},
        tags=torch.stack([item["tags"] for item in items]) if "tags" in items[0] else None,
    )


def bucketed_batches(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int, bucket: int = 32
) -> list[list[int]]:
    """Every index once, in batches of like lengths, shuffled anew each epoch.

    Shuffled runs of `bucket` batches are sorted by length and cut up, so that padding is small and batches still vary.
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
    """A loader over these batches of indices or places. Its own generator keeps it from drawing on the training's."""
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]  # any sized iterable of index lists will do
        collate_fn=partial(collate, captions_per_image=dataset.captions_per_image),
        num_workers=0 if dataset.features is not None else num_workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )
