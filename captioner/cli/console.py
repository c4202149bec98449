"""Makes stdin, stdout and stderr safe to use, whatever the environment."""

import codecs
import os
import sys
from contextlib import suppress


def open_console() -> None:
    """Make stdout and stderr accept any text, and replace closed streams with the null device.

    Characters that the encoding lacks are written as \\xe9 or \\u2014, and file names that are not valid text as their
    original bytes.
    """
    codecs.register_error("console", _bytes_or_escapes)
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:  # else the next file opened would get its descriptor
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="console")  # type: ignore[union-attr]


def _bytes_or_escapes(error: UnicodeError) -> tuple[bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    how = ("surrogateescape" if "\udc80" <= character <= "\udcff" else "backslashreplace" for character in text)
    return b"".join(map(lambda character, errors: character.encode("ascii", errors), text, how)), error.end


def close_stdout() -> None:
    """Discard what stdout did not accept; else Python would write it again at exit, and complain."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
