"""What both web applications check and send: host names, origins, and the headers of every answer.

A page of another site can make a browser send requests to a server on the same machine, across origins or under a name
of its own that it points to this machine (DNS rebinding). Neither gets through.
"""

from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1")

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""A page loads and asks nothing but this server's files and answers, and never turns text into script."""

SAFE_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def host_name(host: str) -> str | None:
    """Return the name or address in a Host header, without brackets and port; None if it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        is_plain = parts.netloc == host and (parts.port is None or parts.port >= 0)
    except ValueError:  # a port that is no number, an unclosed bracket
        return None
    return parts.hostname if is_plain else None


def is_own_origin(origin: str | None, host: str) -> bool:
    """Does a request with this Origin header come from a page of this server? Browsers omit it where none is needed."""
    if origin is None:
        return True
    try:
        return urlsplit(origin).netloc == host
    except ValueError:
        return False
