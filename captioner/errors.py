"""The exception for mistakes of the user: the command line prints it as one line, without a traceback."""


class CaptionerError(Exception):
    """The user can correct the input (a file, a key, a value); the message names it and the cause."""
