"""Checks captions and encodes them as token ids."""

import unicodedata
from collections.abc import Sequence
from typing import Any

from captioner.model.caption_cleaning import clean_caption


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return each text's token ids from a transformers tokenizer, without start or end of sequence.

    Special tokens in the text are encoded as text: "a sign that says </s>" does not end the sequence.
    """
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True).input_ids


def has_words(caption: str) -> bool:
    """Does a caption contain a letter, digit or symbol, not just punctuation?"""
    return any(unicodedata.category(character)[0] in "LNS" for character in caption)


def encode_captions(captions: Sequence[Sequence[str]], tokenizer: Any, max_tokens: int) -> list[list[list[int]]]:
    """Return the token ids of every image's captions, truncated to `max_tokens` including the end of sequence."""
    texts = [clean_caption(caption) for group in captions for caption in group]
    encoded = ([*ids[: max_tokens - 1], tokenizer.eos_token_id] for ids in encode_texts(tokenizer, texts))
    return [[next(encoded) for _ in group] for group in captions]
