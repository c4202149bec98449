"""Samples to tensors: the images of a batch and all their captions, in length-bucketed, reproducible batches.

Shapes: B images, K captions an image, T tokens of the longest caption in the batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from captioner.config import AugmentationConfig, DataConfig
from captioner.data.images import ImageError, load_image
from captioner.data.sources import Sample
from captioner.data.tokenizer import clean_caption

IGNORE_INDEX = -100  # the label that torch's cross-entropy leaves out


class Processor(Protocol):
    """What of a processor the data needs."""

    image_processor: Any
    tokenizer: Any


@dataclass
class Batch:
    """Images, or the trunk's tokens for them, with their captions.

    `encoder_inputs` holds `pixel_values` [B, 3, height, width] or `trunk_features` [B, P, C]; `labels` is [B * K, T].
    An image that could not be read stays as a blank one without captions; `errors` gives its row and the reason.
    """

    ids: list[str | int]
    encoder_inputs: dict[str, Tensor]
    labels: Tensor
    errors: dict[int, str]

    def to(self, device: torch.device) -> "Batch":
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in self.encoder_inputs.items()}
        return Batch(self.ids, inputs, self.labels.to(device, non_blocking=True), self.errors)


class CaptionDataset(Dataset):
    """One item an image, with all its captions. What is drawn at random depends on (seed, epoch, index) alone,
    so that neither the number of workers nor of processes changes it."""

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: Processor,
        config: DataConfig,
        augmentation: AugmentationConfig | None = None,
        features: Sequence[Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        self.samples = samples
        self.image_processor = processor.image_processor
        self.captions = encode_captions(samples, processor.tokenizer, config.max_caption_tokens)
        self.captions_per_image = config.captions_per_image
        self.features = features
        self.augment = _augmentation(augmentation, processor.image_processor) if augmentation else None
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        item: dict[str, Any] = {"id": sample.id, "captions": self._draw_captions(index), "error": None}
        if self.features is not None:
            features = self.features[index]
            readable = bool(features.any())  # zeros stand for a photo that could not be read
            return item | {"trunk_features": features, "captions": item["captions"] if readable else []}
        size = self.image_processor.image_size
        try:
            item["pixel_values"] = self._pixels(load_image(sample.image), index)
        except ImageError as error:
            item |= {"pixel_values": torch.zeros(3, size, size), "captions": [], "error": str(error)}
        return item

    def lengths(self) -> list[int]:
        """Tokens of each image's longest caption: what a batch is padded to."""
        return [max(map(len, captions), default=0) for captions in self.captions]

    def _draw_captions(self, index: int) -> list[list[int]]:
        captions = self.captions[index]
        if len(captions) <= self.captions_per_image:
            return captions
        draw = np.random.default_rng((self.seed, self.epoch, index))
        return [captions[i] for i in draw.choice(len(captions), self.captions_per_image, replace=False)]

    def _pixels(self, image: Any, index: int) -> Tensor:
        if self.augment is None:
            return torch.from_numpy(self.image_processor.preprocessing(image))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.default_rng((self.seed, self.epoch, index)).integers(2**31)))
            return torch.from_numpy(self.image_processor.preprocessing.normalize(self.augment(image)))


def _augmentation(config: AugmentationConfig, image_processor: Any) -> v2.Transform | None:
    """PIL image -> PIL image of the model's size."""
    if not config.active:
        return None
    size, amount = image_processor.image_size, config.color_jitter
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=config.crop_scale, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(config.horizontal_flip),
            v2.ColorJitter(brightness=amount, contrast=amount, saturation=amount),
        ]
    )


def encode_captions(samples: Sequence[Sample], tokenizer: Any, max_tokens: int) -> list[list[list[int]]]:
    """Ids of every caption of every sample, end-of-sequence last; longer captions are cut before it."""
    texts = [clean_caption(caption) for sample in samples for caption in sample.captions]
    encoded: Iterator[list[int]] = iter(tokenizer(texts).input_ids if texts else [])
    end = tokenizer.eos_token_id
    return [[[*ids[: max_tokens - 1], end] if len(ids) > max_tokens else ids
             for ids in (next(encoded) for _ in sample.captions)] for sample in samples]  # fmt: skip


def collate(items: list[dict[str, Any]], captions_per_image: int) -> Batch:
    """Items of `CaptionDataset` -> `Batch`; an image with fewer captions gets rows without labels."""
    length = max((len(ids) for item in items for ids in item["captions"]), default=1)
    labels = torch.full((len(items) * captions_per_image, max(length, 1)), IGNORE_INDEX)
    for row, item in enumerate(items):
        for offset, ids in enumerate(item["captions"]):
            labels[row * captions_per_image + offset, : len(ids)] = torch.tensor(ids)
    name = "trunk_features" if "trunk_features" in items[0] else "pixel_values"
    return Batch(
        ids=[item["id"] for item in items],
        encoder_inputs={name: torch.stack([item[name] for item in items])},
        labels=labels,
        errors={row: item["error"] for row, item in enumerate(items) if item["error"]},
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
    dataset: CaptionDataset, batches: Sequence[Sequence[int]], num_workers: int, pin_memory: bool = False
) -> DataLoader:
    """A loader over just these index batches. Its own generator keeps it from drawing on the training's."""
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]  # any sized iterable of index lists will do
        collate_fn=partial(collate, captions_per_image=dataset.captions_per_image),
        num_workers=0 if dataset.features is not None else num_workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )
