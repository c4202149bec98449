"""Turns samples into items: pixels with the token ids of captions. All random choices are reproducible."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from captioner.config import AugmentationConfig, DataConfig
from captioner.data.captions import encode_captions
from captioner.data.images import ImageError, load_image
from captioner.data.sources import Sample
from captioner.data.tags import UNTAGGED, TagTargets
from captioner.model.modeling_captioner import IGNORE_INDEX
from captioner.model.preprocessing import Preprocessing

CROP_RATIOS = (3 / 4, 4 / 3)  # width / height of a random crop


class Processor(Protocol):
    """The parts of a processor that data sets need."""

    image_processor: Any
    tokenizer: Any


Place = tuple[int, int]
"""A pass and an index. The random choices for an item depend on these and the seed alone. If an epoch uses every item
once, passes are epochs.

The index ~i is image i without targets, a filler: every process must run as many forward passes as the others, so one
that has no image of its own in a step runs an image that contributes no loss.
"""


class CaptionDataset(Dataset):
    """An item for each image, with all its captions, by index or `Place`. Random choices depend on these and the seed
    alone, not on the number of workers or processes."""

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: Processor,
        config: DataConfig,
        augmentation: AugmentationConfig | None = None,
        features: Sequence[Tensor] | None = None,
        seed: int = 0,
        tags: Sequence[TagTargets] | None = None,
        num_tags: int = 0,
        weights: Sequence[float] | None = None,
    ) -> None:
        """`tags` has the targets of each sample, over `num_tags` tags; `weights` says how often an epoch uses each
        sample (default: once)."""
        self.samples = samples
        self.preprocessing: Preprocessing = processor.image_processor.preprocessing
        self.captions = encode_captions(
            [sample.captions for sample in samples], processor.tokenizer, config.max_caption_tokens
        )
        self.captions_per_image = config.captions_per_image
        self.features = features
        self.augment = _augmentation(augmentation, self.preprocessing.image_size) if augmentation else None
        self.min_size = _min_size(augmentation, self.preprocessing)
        self.seed = seed
        self.tags = tags
        self.num_tags = num_tags
        self.weights = weights

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int | Place) -> dict[str, Any]:
        epoch, index = place if isinstance(place, tuple) else (0, place)
        if isinstance(place, tuple) and index < 0:
            return self._without_targets(self[epoch, ~index]) | {"error": ""}
        sample = self.samples[index]
        captions = self._draw_captions(epoch, index)
        item: dict[str, Any] = {"id": sample.id, "captions": captions, "weight": sample.weight, "error": None}
        if self.tags is not None:
            item["tags"] = self._tag_row(self.tags[index])
        if self.features is not None:
            item["trunk_features"] = self.features[index]
            readable = bool(item["trunk_features"].any())  # all zeros: the image could not be read
            return item if readable else self._without_targets(item)
        try:
            return item | {"pixel_values": self._pixels(load_image(sample.image, self.min_size), epoch, index)}
        except ImageError as error:
            size = self.preprocessing.image_size
            blank = {"pixel_values": torch.zeros(3, size, size), "error": str(error)}
            return self._without_targets(item | blank)

    def _without_targets(self, item: dict[str, Any]) -> dict[str, Any]:
        return item | {"captions": []} | ({"tags": self._tag_row(UNTAGGED)} if self.tags is not None else {})

    def _tag_row(self, tags: TagTargets) -> Tensor:
        row = torch.full((self.num_tags,), IGNORE_INDEX, dtype=torch.int8)
        row[list(tags.known)] = 0
        row[list(tags.present)] = 1
        return row

    def places(self, epoch: int) -> list[Place]:
        """Return the places of an epoch: each sample as often as its weight, spread evenly over the epochs."""
        return epoch_places(len(self), epoch, self.weights)

    def epoch_size(self, epoch: int) -> int:
        """Return the number of places of an epoch."""
        first, end = _passes(len(self), epoch, self.weights)
        return int((end - first).sum())

    def fingerprint(self) -> str:
        """Return a digest of what determines the batches and their losses: the samples' ids, lengths and weights."""
        weights = [sample.weight for sample in self.samples]
        weighted = [weights] if any(weight != 1 for weight in weights) else []
        return _digest([[sample.id for sample in self.samples], self.lengths(), self.weights, *weighted])

    def lengths(self) -> list[int]:
        """Return the total caption tokens of each image; the expected total if captions are sampled.

        Images without captions borrow the lengths of others, so that bucketing mixes both kinds.
        """
        drawn = [min(self.captions_per_image / max(len(captions), 1), 1) for captions in self.captions]
        tokens = [round(share * sum(map(len, captions))) for share, captions in zip(drawn, self.captions, strict=True)]
        known = [length for length in tokens if length] or [0]
        return [length or known[index % len(known)] for index, length in enumerate(tokens)]

    def _draw_captions(self, epoch: int, index: int) -> list[list[int]]:
        captions = self.captions[index]
        if len(captions) <= self.captions_per_image:
            return captions
        draw = np.random.default_rng((self.seed, epoch, index))
        return [captions[i] for i in draw.choice(len(captions), self.captions_per_image, replace=False)]

    def _pixels(self, image: Any, epoch: int, index: int) -> Tensor:
        if self.augment is None:
            return torch.from_numpy(self.preprocessing(image))
        with torch.random.fork_rng(devices=[]):  # transforms only draw from the CPU's generator
            torch.default_generator.manual_seed(int(np.random.default_rng((self.seed, epoch, index)).integers(2**31)))
            return torch.from_numpy(self.preprocessing.normalize(self.augment(image)))


def _augmentation(config: AugmentationConfig, size: int) -> v2.Transform | None:
    """Return a transform from a PIL image to one of the model's size, or None if nothing is augmented."""
    if not config.active:
        return None
    amount = config.color_jitter
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, config.crop_scale, CROP_RATIOS, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(config.horizontal_flip),
            v2.ColorJitter(brightness=amount, contrast=amount, saturation=amount),
        ]
    )


def _min_size(augmentation: AugmentationConfig | None, preprocessing: Preprocessing) -> int:
    """Return `load_image`'s `min_size`: as in inference, or enough for the smallest random crop."""
    if augmentation is None or not augmentation.active:
        return preprocessing.min_size
    # A crop of area s and aspect ratio 3/4 to 4/3 keeps at least sqrt(3/4 * s) of the image's shorter side.
    share = math.sqrt(min(CROP_RATIOS) * augmentation.crop_scale[0])
    return replace(preprocessing, crop_pct=share).min_size


class TextDataset(Dataset):
    """Captions without images, one per item, for language modeling."""

    captions_per_image = 1
    features: None = None

    def __init__(self, captions: Sequence[str], tokenizer: Any, max_caption_tokens: int) -> None:
        self.captions = encode_captions([[caption] for caption in captions], tokenizer, max_caption_tokens)

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, place: int | Place) -> dict[str, Any]:
        index = place[1] if isinstance(place, tuple) else place
        if isinstance(place, tuple) and index < 0:
            return {"id": ~index, "captions": [], "error": ""}
        return {"id": index, "captions": self.captions[index], "error": None}

    def fingerprint(self) -> str:
        return _digest(self.lengths())

    def lengths(self) -> list[int]:
        return [len(ids) for (ids,) in self.captions]

    def places(self, epoch: int) -> list[Place]:
        return epoch_places(len(self), epoch)

    def epoch_size(self, epoch: int) -> int:
        return len(self)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def epoch_places(count: int, epoch: int, weights: Sequence[float] | None = None) -> list[Place]:
    """Return the places of an epoch over `count` items; each item counts its own passes."""
    first, end = _passes(count, epoch, weights)
    return [(number, index) for index in range(count) for number in range(first[index], end[index])]


def _passes(count: int, epoch: int, weights: Sequence[float] | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the passes of each item before an epoch, and before the epoch after it.

    Item i of weight w has had floor(w * e + shift) passes before epoch e. The shift, a multiple of the golden ratio
    modulo 1, spreads items with a weight below 1 evenly over the epochs; at weight 1, pass and epoch are equal.
    """
    shifts = (np.arange(count) * 0.6180339887498949) % 1
    rates = np.ones(count) if weights is None else np.asarray(weights)
    before, after = (np.floor(rates * e + shifts).astype(int) for e in (epoch, epoch + 1))
    return before, after
