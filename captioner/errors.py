"""The one exception that means "the user can mend this": printed as one line, never as a traceback."""


class CaptionerError(Exception):
    """A mistake in what the user gave (a file, a key, a value); the message names it and the cause."""
