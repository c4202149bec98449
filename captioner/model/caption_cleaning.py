"""How captions are cleaned before they are tokenized; imports neither torch nor transformers."""

import re


def clean_caption(caption: str) -> str:
    """Collapse white space and drop a final full stop: half of all captions have one, and it says nothing."""
    return re.sub(r"\s*[.。]+$", "", " ".join(caption.split()))
