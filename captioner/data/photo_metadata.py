"""Descriptions of images in their own metadata or in XMP sidecars, without decoding a pixel."""

import re
from typing import Any, NamedTuple

from PIL import ImageFile, IptcImagePlugin

from captioner.data.caption_checks import caption_problem
from captioner.data.images import open_header
from captioner.data.text_files import decode_text
from captioner.data.xmp import read_xmp

_IMAGE_DESCRIPTION = 0x010E  # EXIF 2.3
_IPTC_CAPTION = (2, 120)  # IIM 4.2
_CAMERA_DEFAULTS = re.compile(
    r"(olympus|minolta|kodak|konica|sony|vivitar|polaroid)?\s*(digital (still )?camera|dsc)|exif[ _-]jpeg|samsung|"
    r"jpeg|default|(dsc|img|dcim|p)[ _-]?\d*|created (with|by) .*|screenshot|ascii",
    re.IGNORECASE,
)
"""Image descriptions that cameras and programs write, not people."""


class Description(NamedTuple):
    """A description, and who wrote it as far as the metadata says (photoshop:CaptionWriter), or ""."""

    text: str
    writer: str


def xmp_description(packet: bytes) -> Description | None:
    """The description in an XMP packet, else its long or its short alternative text."""
    fields = read_xmp(packet)
    text = fields.get("description") or fields.get("long") or fields.get("alt")
    return Description(text, fields.get("writer", "")) if text and not caption_problem(text) else None


def embedded_description(data: bytes) -> Description | None:
    """The description in an encoded image: XMP's, else IPTC's, else EXIF's, else a PNG's."""
    try:
        with open_header(data) as image:
            packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
            found = xmp_description(packet.encode() if isinstance(packet, str) else packet)
            texts = [_iptc(image), image.getexif().get(_IMAGE_DESCRIPTION), image.info.get("Description")]
    except Exception:  # damaged metadata raises many kinds; the image's own decoder reports what is wrong with it
        return None
    if found:
        return found
    for text in texts:
        text = " ".join(text.split()).strip("\0 ") if isinstance(text, str) else ""
        if not caption_problem(text) and not _CAMERA_DEFAULTS.fullmatch(text):
            return Description(text, "")
    return None


def _iptc(image: ImageFile.ImageFile) -> str | None:
    records: dict[Any, Any] = IptcImagePlugin.getiptcinfo(image) or {}
    caption = records.get(_IPTC_CAPTION)
    return decode_text(caption) if isinstance(caption, bytes) else None
