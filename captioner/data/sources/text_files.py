"""Text files: their encodings and lines, and captions without images."""

import codecs
import re
from collections.abc import Callable
from typing import TextIO

from captioner.data.captions import has_words
from captioner.errors import CaptionerError

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def open_text(path: str) -> TextIO:
    """Open a text file of any encoding that `decode_text` knows; line ends stay as they are."""
    with open(path, "rb") as file:
        encoding = _encoding(file.read(4))
    return open(path, encoding=encoding, errors=_on_errors(encoding), newline="")


def decode_text(data: bytes) -> str:
    """UTF-8, or UTF-16 or UTF-32 that says so by its byte order mark (UTF-16 of ASCII letters needs none).

    Bytes that are not UTF-8 become lone surrogates, for `encoding_problem` to name.
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
    """What is wrong with decoded text that was in another encoding, or was damaged; None if nothing is."""
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
    """The lines of a text, with the blank ones, whichever system wrote it."""
    return re.split("\r\n|\r|\n", text)


def load_text(path: str, report: Callable[[str, str], object]) -> list[str]:
    """The lines of a text file, a caption each. Those that hold no word are left out; of those that are not blank,
    `report` hears where and why.

    Raises:
        CaptionerError: the file is missing, not UTF-8, or has no captions.
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
