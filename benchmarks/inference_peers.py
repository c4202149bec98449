"""The models of inference.py: checkpoints of transformers with random weights, in the shapes of public ones."""

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    CLIPImageProcessor,
    GitConfig,
    GitForCausalLM,
    GPT2Config,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)
from transformers.image_processing_utils import BaseImageProcessor

END = "<|endoftext|>"
Peer = tuple[PreTrainedModel, PreTrainedTokenizerFast, BaseImageProcessor]


def byte_level_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """GPT-2's, but for the words, which are told apart, and that is all we need."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = [END, *byte_level.alphabet()]
    words += [f"<{index}>" for index in range(len(words), size)]
    bpe = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    bpe.pre_tokenizer, bpe.decoder = byte_level, decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END)


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """BERT's, but for the words; its special tokens are where BERT has them."""
    words = {f"<{index}>": index for index in range(size)}
    names = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]"}
    words = {names.get(index, word): index for word, index in words.items()}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _vit_gpt2(encoder: ViTConfig, **decoder: int) -> Peer:
    tokenizer = byte_level_tokenizer(GPT2Config().vocab_size)
    end = tokenizer.eos_token_id
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"), end)
    gpt2 = GPT2Config(bos_token_id=end, eos_token_id=end, **decoder)
    model = VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, gpt2, **ids))
    model.generation_config.update(**ids)
    return model, tokenizer, ViTImageProcessor()


def small() -> Peer:
    """ViT-S/16 and six layers of width 384."""
    encoder = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536)
    return _vit_gpt2(encoder, n_positions=64, n_embd=384, n_layer=6, n_head=6)


def vit_gpt2() -> Peer:
    """nlpconnect/vit-gpt2-image-captioning."""
    return _vit_gpt2(ViTConfig())


def blip_base() -> Peer:
    """Salesforce/blip-image-captioning-base."""
    text = {"num_attention_heads": 12, "encoder_hidden_size": 768}
    config = BlipConfig(text_config=text, vision_config={"initializer_range": 0.02})
    return BlipForConditionalGeneration(config), word_tokenizer(30522), BlipImageProcessor()


def git_base() -> Peer:
    """microsoft/git-base-coco."""
    return GitForCausalLM(GitConfig()), word_tokenizer(30522), CLIPImageProcessor()


FAMILIES: dict[str, Callable[[], Peer]] = {
    "small": small,
    "vit-gpt2": vit_gpt2,
    "blip-base": blip_base,
    "git-base": git_base,
}


def write_peer(folder: Path, family: str) -> type[PreTrainedModel]:
    """Save a family's model, tokenizer and image processor; return the class that reads the model."""
    torch.manual_seed(0)
    parts = FAMILIES[family]()
    for part in parts:
        part.save_pretrained(folder)
    return type(parts[0])
