"""Inspects the bytes of JPEGs, and removes what a PNG does not need."""

import io
import re
import struct
from collections.abc import Iterator

from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def has_all_scans(data: bytes, first_scan: int, components: list[int]) -> bool:
    """Do the scans of a JPEG contain every coefficient of every component to its last bit (ITU T.81, B.2.3)?"""
    known: dict[int, set[int]] = {component: set() for component in components}
    first = data.rfind(b"\xff\xda", 0, first_scan)
    for scan in re.finditer(rb"\xff\xda..(.)", data[first:], re.DOTALL):
        start, count = first + scan.end(), scan[1][0]
        given, band = data[start : start + 2 * count : 2], data[start + 2 * count : start + 2 * count + 3]
        if len(band) == 3 and band[2] & 15 == 0:
            for component in given:
                known.setdefault(component, set()).update(range(band[0], band[1] + 1))
    return all(len(coefficients) == 64 for coefficients in known.values())


def same_pixels(first: bytes, second: bytes) -> bool:
    try:
        return Image.open(io.BytesIO(first)).tobytes() == Image.open(io.BytesIO(second)).tobytes()
    except OSError:
        return False


def without_ancillary_chunks(data: bytes) -> bytes | None:
    """Return a PNG without the chunks that its pixels do not need; None if there are none, or for other formats.

    Pillow rejects a PNG whose colour profile or text is damaged or too large.
    """
    if not data.startswith(PNG_SIGNATURE):
        return None
    chunks = list(_png_chunks(data))
    kept = [chunk for chunk in chunks if chunk[4:5].isupper() or chunk[4:8] in (b"tRNS", b"eXIf")]
    return PNG_SIGNATURE + b"".join(kept) if len(kept) < len(chunks) else None


def _png_chunks(data: bytes) -> Iterator[bytes]:
    """Yield each chunk with its length, name and checksum; the last may be truncated."""
    start = len(PNG_SIGNATURE)
    while start + 8 <= len(data):
        end = start + 12 + struct.unpack_from(">I", data, start)[0]
        yield data[start:end]
        start = end
