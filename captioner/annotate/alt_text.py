"""Alternative texts (WCAG 2.2, 1.1.1): captions in the form that screen readers want."""

import re
from collections.abc import Callable

MAX_CHARACTERS = 125
"""Common advice: some screen readers cut longer alternative texts into pieces."""

_MEDIUM = "image|picture|photo|photograph|graphic|screenshot"
STATES_THE_OBVIOUS = re.compile(rf"^\W*((an?|the|this is an?) )?((\w+ )?({_MEDIUM})s?) (of|showing|that shows) ", re.I)
"""A screen reader says that it is an image already."""

BANNED_PHRASES = tuple(f"{noun} of" for noun in _MEDIUM.split("|"))
"""For the search, so that a model finds another sentence instead of losing half of one."""

_DANGLING = frozenset("a an and as at by for from in into its near of on or over the their to under with while".split())


def alt_text(caption: str, max_characters: int = MAX_CHARACTERS) -> str:
    """Bring a caption into the form of an alternative text: a sentence of at most `max_characters`, with a capital and
    a full stop, that does not begin with "a picture of". A longer one ends at a comma, else between words."""
    text = " ".join(caption.split())
    text = STATES_THE_OBVIOUS.sub("", text)
    text = _shortened(text.rstrip(" .,;:"), max_characters - 1)
    if not text:
        return ""
    end = "" if text[-1] in "!?…" else "."
    return text[0].upper() + text[1:] + end


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head = text[: limit + 1]
    clause = head.rfind(",")
    if clause > limit // 2:
        return head[:clause]
    words = head.rpartition(" ")[0].split(" ") if " " in head else [head[:limit]]
    while len(words) > 1 and words[-1].lower() in _DANGLING:
        words.pop()
    return " ".join(words).rstrip(" .,;:")


SHAPES: dict[str, Callable[[str], str]] = {"caption": str, "alt": alt_text}
"""Styles of captions, and what brings a model's text into each."""
