"""Captions without images: what a decoder may read before it sees a picture."""

from pathlib import Path

from captioner.errors import CaptionerError


def load_text(path: str) -> list[str]:
    """The lines of a text file, a caption each, without the blank ones.

    Raises:
        CaptionerError: the file is missing, not UTF-8, or empty.
    """
    try:
        captions = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise CaptionerError(f"{path}: cannot be read as text: {error}") from error
    if not captions:
        raise CaptionerError(f"{path}: no captions")
    return captions
