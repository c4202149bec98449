"""Packs the captions of an image into one row, so that the decoder computes hardly any padding.

Shapes: B images, K captions an image, T tokens of the longest caption, S tokens of the longest row.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from captioner.config import Objective
from captioner.data.batches import to_device
from captioner.model.modeling_captioner import IGNORE_INDEX


class PackedCaptions(NamedTuple):
    """The decoder's inputs, and the positions of each objective's tokens in its outputs.

    `input_ids` and `position_ids` are [B, S]; with `attention_mask` [B, 1, S, S] a token sees only the earlier tokens
    of its own caption. `places` maps an objective to the indices [N] among B * S of its tokens, in the order of its
    valid labels.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    places: dict[Objective, Tensor]

    def to(self, device: torch.device) -> "PackedCaptions":
        input_ids, position_ids, attention_mask = (to_device(tensor, device) for tensor in self[:3])
        places = {name: to_device(own, device) for name, own in self.places.items()}
        return PackedCaptions(input_ids, position_ids, attention_mask, places)


def pack_captions(labels: Mapping[Objective, Tensor], decoder_inputs: Callable[[Tensor], Tensor]) -> PackedCaptions:
    """Pack the captions of all objectives, labels [B, K, T] with any K and T, so that they share one pass.

    `decoder_inputs` maps labels [B * K, T] to the decoder's input ids. Labels must be on the host: the length of the
    rows depends on them, and reading it from a CUDA device would mean waiting.
    """
    side_by_side = _side_by_side(list(labels.values()))
    valid = (side_by_side != IGNORE_INDEX).flatten(1)
    length = max(int(valid.sum(1).max()), 1)
    order = valid.logical_not().argsort(dim=1, stable=True)[:, :length]
    caption, position = order // side_by_side.shape[2], order % side_by_side.shape[2]
    visible = (caption[:, :, None] == caption[:, None]) & (position[:, :, None] >= position[:, None])

    numbers = [torch.full((captions.shape[1],), number) for number, captions in enumerate(labels.values())]
    owner = torch.cat(numbers)[caption].masked_fill(~valid.gather(1, order), -1)
    return PackedCaptions(
        input_ids=decoder_inputs(side_by_side.flatten(0, 1)).view_as(valid).gather(1, order),
        position_ids=position,
        attention_mask=visible[:, None],
        places={name: (owner == number).flatten().nonzero()[:, 0] for number, name in enumerate(labels)},
    )


def _side_by_side(labels: list[Tensor]) -> Tensor:
    """Label sets [B, K, T] of different K and T -> one [B, sum of K, longest T]."""
    longest = max(rows.shape[2] for rows in labels)
    return torch.cat([F.pad(rows, (0, longest - rows.shape[2]), value=IGNORE_INDEX) for rows in labels], dim=1)
