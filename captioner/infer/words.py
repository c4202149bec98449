"""Which tokens of a caption make up each of its words."""

from collections.abc import Sequence
from typing import NamedTuple

STARTS = ("▁", "Ġ")
"""How SentencePiece and byte-level tokenizers mark a token that starts a word."""


class Word(NamedTuple):
    """A word of a caption, with the probability that people who describe the image use it.

    Without a calibration `confidence` is the product of the probabilities that the model gave the word's tokens.
    """

    text: str
    confidence: float


def tokens_of_words(text: str, pieces: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Each word of a caption's text, and the places of its tokens among `pieces`, the caption's tokens as the tokenizer
    spells them.

    A token that the text does not show as it is spelled, such as one of the bytes of a letter, goes with its
    neighbours. A word has one token at least, unless there is none.
    """
    words = text.split()
    if not words or not pieces:
        return [(word, []) for word in words]
    places: list[list[int]] = [[] for _ in words]
    has_marks = any(piece.startswith(STARTS) for piece in pieces)
    word = offset = 0
    for place, piece in enumerate(pieces):
        is_start = piece.startswith(STARTS)
        surface = piece[1:] if is_start else piece.removeprefix("##").removesuffix("</w>")
        is_next = is_start if has_marks else offset >= len(words[word])
        if offset and is_next and word + 1 < len(words):
            word, offset = word + 1, 0
        places[word].append(place)
        if surface:
            offset += len(surface) if words[word].startswith(surface, offset) else 1
    for number, found in enumerate(places):
        if not found:
            found += places[number - 1][-1:] or [0]
    return list(zip(words, places, strict=True))
