"""What commands read from and write to: stdin, stdout and stderr."""

import codecs
import os
import sys
from contextlib import suppress


def open_console() -> None:
    """Let stdout and stderr take any text, and stand in for those that whoever started us has closed.

    What their encoding lacks is written as \\xe9 or \\u2014. Names of files that are not valid text leave as the bytes
    that they are.
    """
    codecs.register_error("console", _bytes_or_escapes)
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:  # the next file to be opened would get its number
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="console")  # type: ignore[union-attr]


def _bytes_or_escapes(error: UnicodeError) -> tuple[bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    how = ("surrogateescape" if "\udc80" <= character <= "\udcff" else "backslashreplace" for character in text)
    return b"".join(map(lambda character, errors: character.encode("ascii", errors), text, how)), error.end


def close_stdout() -> None:
    """Drop what stdout cannot take, or Python would try again, and complain, at its end."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
