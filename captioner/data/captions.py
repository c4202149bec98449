"""Captions: checked and encoded."""

import unicodedata
from collections.abc import Sequence
from typing import Any

from captioner.model.caption_cleaning import clean_caption


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text by a tokenizer of transformers, without start or end of sequence.

    Text that spells a special token is encoded as text: "a sign that says </s>" does not end there.
    """
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True).input_ids


def has_words(caption: str) -> bool:
    """Does a caption hold a letter, a digit or a symbol? One of punctuation alone says nothing."""
    return any(unicodedata.category(character)[0] in "LNS" for character in caption)


def encode_captions(captions: Sequence[Sequence[str]], tokenizer: Any, max_tokens: int) -> list[list[list[int]]]:
    """Ids of every image's captions, end-of-sequence last; longer captions are cut before it."""
    texts = [clean_caption(caption) for group in captions for caption in group]
    encoded = ([*ids[: max_tokens - 1], tokenizer.eos_token_id] for ids in encode_texts(tokenizer, texts))
    return [[next(encoded) for _ in group] for group in captions]
