"""The peer of training.py: the model that transformers' Trainer trains, and its examples."""

from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)

from captioner.data.batches import bucketed_batches
from captioner.data.dataset import CaptionDataset
from captioner.model.modeling_captioner import IGNORE_INDEX

IMAGE_SIZE = 224
MODEL: dict[str, Any] = {
    "encoder_name": "vit_small_patch16_224",
    "image_size": IMAGE_SIZE,
    "hidden_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "dropout": 0.1,
}


class CaptionExamples(Dataset):
    """Every caption with its image, in batches of captions of similar length."""

    def __init__(self, images: CaptionDataset, batch_size: int) -> None:
        self.images = images
        captions = [(index, ids) for index, captions in enumerate(images.captions) for ids in captions]
        batches = bucketed_batches([len(ids) for _, ids in captions], batch_size, seed=0, epoch=0)
        self.examples = [captions[i] for i in chain.from_iterable(batches)]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image, ids = self.examples[index]
        return {"pixel_values": self.images[image]["pixel_values"], "labels": torch.tensor(ids)}

    @staticmethod
    def collate(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        labels = [example["labels"] for example in examples]
        return {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        }


def build_peer(vocab_size: int, phase: str) -> Any:
    """Build a ViT-S/16 and a GPT-2 with the shape of `MODEL`."""
    encoder = ViTConfig(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        intermediate_size=1536,
        image_size=IMAGE_SIZE,
        patch_size=16,
        attn_implementation="sdpa",
    )
    decoder = GPT2Config(
        vocab_size=vocab_size,
        n_embd=MODEL["hidden_size"],
        n_layer=MODEL["num_hidden_layers"],
        n_head=MODEL["num_attention_heads"],
        n_positions=MODEL["max_position_embeddings"],
        resid_pdrop=MODEL["dropout"],
        embd_pdrop=MODEL["dropout"],
        attn_pdrop=0.0,
        activation_function="gelu",
        add_cross_attention=True,
        is_decoder=True,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="sdpa",
    )
    peer = VisionEncoderDecoderModel(
        encoder=ViTModel(encoder, add_pooling_layer=False), decoder=GPT2LMHeadModel(decoder)
    )
    peer.config.pad_token_id, peer.config.decoder_start_token_id = 0, 1
    peer.encoder.requires_grad_(phase == "joint")
    return peer
