"""Checkpoints of the families that are converted, with random weights: tiny, but in kind, names and files as published.

`KINDS` names them; `save_checkpoint` writes one. Weights that start as zeros or ones are made random, because they
would hide a tensor gone astray.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BeitConfig,
    BeitImageProcessor,
    BertConfig,
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    CLIPImageProcessor,
    DeiTConfig,
    DeiTImageProcessor,
    GitConfig,
    GitForCausalLM,
    GPT2Config,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    SwinConfig,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

from captioner.convert.vision_encoder_decoder import restore_sinusoids

END = "<|endoftext|>"
TEXTS = ["a man rides a horse", "two dogs play in the snow", "a bus in the street", "a picture of a dog's bowl"]
TRUNK = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
IMAGES = {"image_size": 32, "patch_size": 8, "initializer_range": 0.2}
BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 80,
    "initializer_range": 0.3,
    "max_position_embeddings": 24,
}


def gpt2_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2's, whose last token starts, ends and pads."""
    tokenizer = _byte_level_bpe()
    tokenizer.add_special_tokens([END])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)


def roberta_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with RoBERTa's special tokens first."""
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = _byte_level_bpe(list(special.values()))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>", **special)


def bert_tokenizer() -> BertTokenizerFast:
    """WordPiece in lower case; `[CLS]` and `[SEP]` are 2 and 3."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted({word for text in TEXTS for word in text.replace("'", " ' ").split()})
    letters = sorted(set("".join(words)))
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *words]  # a trainer's order would vary
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return BertTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=True)


def _byte_level_bpe(special: list[str] | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=special or [])
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return tokenizer


def _encoder_decoder(encoder: Any, decoder: Any, **ids: int) -> VisionEncoderDecoderModel:
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder, **ids)
    model = VisionEncoderDecoderModel(config)
    model.generation_config.update(**ids)
    return model


def _gpt2(encoder: Any, **decoder: Any) -> tuple[PreTrainedModel, Any]:
    tokenizer = gpt2_tokenizer()
    end = tokenizer.eos_token_id
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": end}
    sizes = {"vocab_size": len(tokenizer), "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 2}
    settings = {**sizes, "bos_token_id": end, "eos_token_id": end, "initializer_range": 0.3, **decoder}
    return _encoder_decoder(encoder, GPT2Config(**settings), **ids), tokenizer


def _bert(encoder: Any, **decoder: Any) -> tuple[PreTrainedModel, Any]:
    tokenizer = bert_tokenizer()
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "decoder_start_token_id": 2}
    return _encoder_decoder(encoder, BertConfig(**BERT, vocab_size=len(tokenizer), **decoder), **ids), tokenizer


def _roberta(encoder: Any) -> tuple[PreTrainedModel, Any]:
    tokenizer = roberta_tokenizer()
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
    config = RobertaConfig(**BERT | {"max_position_embeddings": 26}, vocab_size=len(tokenizer), type_vocab_size=1)
    return _encoder_decoder(encoder, config, **ids), tokenizer


def _trocr(encoder: Any, **decoder: Any) -> tuple[PreTrainedModel, Any]:
    tokenizer = roberta_tokenizer()
    sizes = {"d_model": 48, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 80}
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    settings = {"max_position_embeddings": 24, "init_std": 0.3, "cross_attention_hidden_size": 32, **decoder}
    config = TrOCRConfig(**sizes, vocab_size=len(tokenizer), **settings)
    return _encoder_decoder(encoder, config, **ids), tokenizer


def _blip(**vision: Any) -> tuple[PreTrainedModel, Any]:
    tokenizer = bert_tokenizer()
    sizes = TRUNK | IMAGES | vision
    # As published: the start comes after BERT's tokens, and one more after that. eos_token_id is not the end.
    ids = {"bos_token_id": len(tokenizer), "sep_token_id": 3, "pad_token_id": 0, "eos_token_id": 2}
    text = BERT | ids | {"vocab_size": len(tokenizer) + 2, "encoder_hidden_size": sizes["hidden_size"]}
    return BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=sizes)), tokenizer


def _git(**vision: Any) -> tuple[PreTrainedModel, Any]:
    tokenizer = bert_tokenizer()
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    config = GitConfig(**BERT, **ids, vocab_size=len(tokenizer), vision_config=TRUNK | IMAGES | vision)
    return GitForCausalLM(config), tokenizer


BEIT = {"use_mask_token": True, "use_relative_position_bias": True}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4}
KINDS: dict[str, Callable[[], tuple[PreTrainedModel, Any]]] = {
    "vit, gpt2": lambda: _gpt2(ViTConfig(**TRUNK, **IMAGES)),
    "vit, wider gpt2": lambda: _gpt2(ViTConfig(**TRUNK, **IMAGES), n_embd=48, n_inner=80, activation_function="relu"),
    "deit, gpt2": lambda: _gpt2(DeiTConfig(**TRUNK, **IMAGES), tie_word_embeddings=False, reorder_and_upcast_attn=True),
    "vit, bert": lambda: _bert(ViTConfig(**TRUNK, **IMAGES), hidden_act="gelu_new"),
    "swin, bert": lambda: _bert(SwinConfig(**SWIN, initializer_range=0.2), tie_word_embeddings=False),
    "beit, roberta": lambda: _roberta(BeitConfig(**TRUNK, **IMAGES, **BEIT)),
    "shared beit, roberta": lambda: _roberta(
        BeitConfig(
            **TRUNK,
            **IMAGES,
            use_shared_relative_position_bias=True,
            use_absolute_position_embeddings=True,
            use_mean_pooling=False,
            layer_scale_init_value=0.0,
        )
    ),
    "deit, small trocr": lambda: _trocr(
        DeiTConfig(**TRUNK, **IMAGES), scale_embedding=True, activation_function="relu"
    ),
    "vit, printed trocr": lambda: _trocr(
        ViTConfig(**TRUNK, **IMAGES, qkv_bias=False),
        scale_embedding=True,
        use_learned_position_embeddings=False,
        layernorm_embedding=False,
        tie_word_embeddings=False,
        activation_function="relu",
    ),
    "blip": _blip,
    "blip, wider images": lambda: _blip(hidden_size=48),
    "git": _git,
    "git, wider images": lambda: _git(hidden_size=48, patch_size=16, hidden_act="gelu"),
}


def save_checkpoint(kind: str, folder: Path) -> None:
    torch.manual_seed(13)
    model, tokenizer = KINDS[kind]()
    family = kind.split(",")[0].split()[-1]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or any(part in name for part in ("token", "position", "class_embedding")):
                parameter += 0.2 * torch.randn_like(parameter)
        end = 3 if family in ("blip", "git") else model.generation_config.eos_token_id
        writer = {"blip": "text_decoder", "git": ""}.get(family, "decoder")
        if "gpt2" not in kind:  # whose captions have many lengths without it
            model.get_submodule(writer).get_output_embeddings().weight[end] *= 3
    model.generation_config.update(num_beams=4, max_length=12)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    square = {"height": 32, "width": 32}
    match family:
        case "deit":
            DeiTImageProcessor(size={"height": 64, "width": 64}, crop_size=square).save_pretrained(folder)
        case "beit":
            BeitImageProcessor(size={"height": 40, "width": 40}, crop_size=square, do_center_crop=True).save_pretrained(
                folder
            )
        case "blip":
            BlipImageProcessor(size=square).save_pretrained(folder)
        case "git":
            CLIPImageProcessor(size={"shortest_edge": 36}, crop_size=square).save_pretrained(folder)
        case _:
            ViTImageProcessor(size=square).save_pretrained(folder)


def load_original(folder: Path) -> PreTrainedModel:
    """A checkpoint as transformers reads it."""
    architecture = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
    model = architecture.from_pretrained(folder).eval()
    restore_sinusoids(model)
    return model


def logits(model: PreTrainedModel, images: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
    """The original's logits of tokens [N, T], start token included."""
    name = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    return model(pixel_values=images, **{name: captions}).logits[:, -captions.shape[1] :]


def generated(model: PreTrainedModel, images: torch.Tensor, **options: Any) -> list[list[int]]:
    """The tokens that transformers' `generate` writes, without start, end and padding."""
    end = model.generation_config.eos_token_id
    if isinstance(model, BlipForConditionalGeneration):
        end = model.config.text_config.sep_token_id
    rows = model.generate(pixel_values=images, **options)[:, 1:].tolist()
    return [ids[: ids.index(end)] if end in ids else ids for ids in rows]
