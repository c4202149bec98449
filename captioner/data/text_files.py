"""Reads text files: encodings, lines, and captions without images."""

import codecs
import re
from collections.abc import Callable
from typing import TextIO

from captioner.data.captions import has_words
from captioner.errors import CaptionerError

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16: its mark starts with UTF-16's
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def open_text(path: str) -> TextIO:
    """Open a text file in any encoding that `decode_text` supports; line ends are kept."""
    with open(path, "rb") as file:
        encoding = _encoding(file.read(4))
    return open(path, encoding=encoding, errors=_on_errors(encoding), newline="")


def decode_text(data: bytes) -> str:
    """Decode UTF-8, or UTF-16 or UTF-32 with a byte order mark (optional for UTF-16 that starts with ASCII).

    Invalid UTF-8 bytes become lone surrogates, which `encoding_problem` reports.
    """
    encoding = _encoding(data[:4])
    return data.decode(encoding, _on_errors(encoding))


def _encoding(start: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            return encoding
    zeros = start[::2].count(0), start[1::2].count(0)
    return {(0, 2): "utf-16-le", (2, 0): "utf-16-be"}.get(zeros, "utf-8")


def _on_errors(encoding: str) -> str:
    return "surrogateescape" if encoding.startswith("utf-8") else "replace"


def encoding_problem(text: str) -> str | None:
    """Return what is wrong if decoded text is damaged or was in another encoding, else None."""
    if text.isascii() or not any(character == "\ufffd" or "\ud800" <= character <= "\udfff" for character in text):
        return None
    problem = f"not valid Unicode text: {text!r:.60}"
    try:
        legacy = text.encode("utf-8", "surrogateescape").decode("cp1252")
    except ValueError:
        return problem
    guess = f" (perhaps Windows-1252, {legacy!r:.60})" if "\ufffd" not in text else ""
    return f"{problem}{guess}; save the file as UTF-8"


def lines_of(text: str) -> list[str]:
    """Split text into lines, including blank ones, with the line ends of any system."""
    return re.split("\r\n|\r|\n", text)


def load_text(path: str, report: Callable[[str, str], object]) -> list[str]:
    """Return the captions of a text file, one per line. Lines without a word are skipped, and reported unless blank.

    Raises:
        CaptionerError: the file is unreadable, in another encoding, or has no captions.
    """
    captions = []
    try:
        with open(path, "rb") as file:
            lines = lines_of(decode_text(file.read()))
    except OSError as error:
        raise CaptionerError(f"{path}: cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if problem := encoding_problem(line):
            raise CaptionerError(f"{path}:{number}: {problem}")
        if has_words(line):
            captions.append(line.strip())
        elif line.strip():
            report(f"{path}:{number}", f"the caption holds no word: {line.strip()!r:.60}")
    if not captions:
        raise CaptionerError(f"{path}: no captions")
    return captions
