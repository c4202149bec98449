"""Cleans captions before they are tokenized; imports neither torch nor transformers."""

import re


def clean_caption(caption: str) -> str:
    """Collapse white space and remove a final full stop, which half of all captions have."""
    return re.sub(r"\s*[.。]+$", "", " ".join(caption.split()))
