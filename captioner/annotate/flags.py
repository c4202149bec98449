"""What needs a person's eyes: flags of a caption and of a photo, as {name: detail}."""

import numpy as np
from PIL import Image

from captioner.infer.caption import Caption

LOW_CONFIDENCE = 0.2
"""Below this, a caption is flagged: of such captions of a calibrated model, four of five are not acceptable."""
UNSUPPORTED = 0.25
"""Below this, so is a word: three of four such words are in no description by a person."""
DARK, FLAT = 12, 3
"""Grey values, of 255: the 99th percentile of a near-black photo is below one, the standard deviation of a blank one
below the other."""
SAMPLED = 64
"""Pixels a side that tell whether a photo is blank."""

OPEN_ENDINGS = frozenset("a an the of with and or in on at to from by for near his her its their is are while".split())
"""A caption that ends in one of these was cut off."""
BETWEEN = frozenset(("and", "or", "with", ","))
"""What may stand between a phrase and its repetition."""


def caption_flags(caption: Caption, min_confidence: float = 0.0) -> dict[str, str]:
    """Flags of a caption: `low_confidence`, `repeated_phrase`, `cut_off_ending`, `unknown_characters`,
    `unsupported_words`; the detail names the phrase or the words. Below `min_confidence`, which the user sets, also
    `abstained`."""
    flags = {}
    words = caption.text.lower().split()
    if caption.confidence < max(LOW_CONFIDENCE, min_confidence):
        flags["low_confidence"] = f"{caption.confidence:.2f}"
    if caption.confidence < min_confidence:
        flags["abstained"] = f"below {min_confidence:g}"
    if repeated := repeated_phrase(words):
        flags["repeated_phrase"] = repeated
    if caption.end_log_prob is None or not words or words[-1] in OPEN_ENDINGS:
        flags["cut_off_ending"] = words[-1] if words else ""
    if has_unknown_characters(caption):
        flags["unknown_characters"] = ""
    if unsupported := [word.text for word in caption.words if word.confidence < UNSUPPORTED]:
        flags["unsupported_words"] = ", ".join(unsupported)
    return flags


def photo_flags(photo: Image.Image) -> dict[str, str]:
    """Flags of an RGB photo: `near_black` or `blank`."""
    gray = np.asarray(photo.resize((SAMPLED, SAMPLED), Image.Resampling.NEAREST).convert("L"))
    if np.percentile(gray, 99) < DARK:
        return {"near_black": ""}
    return {"blank": ""} if gray.std() < FLAT else {}


def repeated_phrase(words: list[str]) -> str:
    """The first phrase that is said again at once, or after "and" and the like ("a dog and a dog"); "" without one."""
    for start in range(len(words)):
        for size in range(1, (len(words) - start) // 2 + 1):
            phrase, rest = words[start : start + size], words[start + size :]
            if phrase == rest[:size] or (rest[0] in BETWEEN and phrase == rest[1 : size + 1]):
                return " ".join(phrase)
    return ""


def has_unknown_characters(caption: Caption) -> bool:
    """Whether a token stands for what the vocabulary lacks, or a character cannot be read or printed."""
    is_unknown = any(token.text in ("<unk>", "[UNK]") for token in caption.tokens)
    return is_unknown or any(c in "\ufffd\u2047" or not c.isprintable() for c in caption.text)
