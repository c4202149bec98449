"""Which captions can be used, whoever wrote them."""

from captioner.data.captions import has_words
from captioner.data.text_files import encoding_problem

MAX_CAPTION_CHARACTERS = 10_000


def one_line(caption: object) -> str:
    """Return a caption with white space collapsed, or "" for what is no text."""
    return " ".join(caption.split()) if isinstance(caption, str) else ""


def caption_problem(caption: object) -> str | None:
    """Return what is wrong with a caption, or None."""
    text = one_line(caption)
    if caption is not None and not isinstance(caption, str):
        return f"the caption is not text: {caption!r:.60}"
    if not text:
        return "the caption is empty"
    if len(text) > MAX_CAPTION_CHARACTERS:
        return f"the caption has {len(text):,} characters, over the limit of {MAX_CAPTION_CHARACTERS:,}"
    if "\0" in text:
        return f"the caption holds a NUL character: {text!r:.60}"
    if problem := encoding_problem(text):
        return f"the caption is {problem}"
    return None if has_words(text) else f"the caption holds no word: {text!r:.60}"
