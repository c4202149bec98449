"""Downloads images by URL, for callers who ask for it."""

import http.client
import urllib.error
import urllib.request

from captioner.data.images import ImageError

MAX_BYTES = 2**28
TIMEOUT = 30
"""Seconds that a server may stay silent."""


def fetch_image(url: str) -> bytes:
    """Download an encoded image by its http, https or data URL.

    Raises:
        ImageError: it cannot be downloaded, or is larger than `MAX_BYTES`.
    """
    name = url if len(url) <= 200 else f"{url[:40]}..."
    if not url.lower().startswith(("http://", "https://", "data:")):
        raise ImageError(name, "unsupported", "only http, https and data URLs are fetched")
    try:
        with urllib.request.urlopen(urllib.request.Request(url), timeout=TIMEOUT) as response:
            data: bytes = response.read(MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        raise ImageError(name, "missing", f"cannot be fetched: HTTP status {error.code}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise ImageError(name, "missing", f"cannot be fetched: {reason}") from error
    if len(data) > MAX_BYTES:
        raise ImageError(name, "too_large", f"the file is over the limit of {MAX_BYTES:,} bytes")
    return data
