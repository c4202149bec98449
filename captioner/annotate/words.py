"""The words that people gave with a photo: in a file beside it, or embedded in it; and what becomes of them.

Rules where several texts meet: a person beats the model; of two people's texts both are kept, the one that a reviewer
decided on stays in force, and the photo is flagged. What a model wrote into these files is not taken for a person's.
"""

import functools
import io
import os
import re
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile, IptcImagePlugin

from captioner.annotate.project import Project
from captioner.annotate.provenance import PROVENANCE, is_unverified_model, written_by_model
from captioner.annotate.records import Writer, WriterKind
from captioner.annotate.xmp import read_xmp
from captioner.data.captions import has_words
from captioner.data.sources.sample import usable_captions
from captioner.data.sources.text_files import decode_text, lines_of

TEXT_SIDECARS = (".txt", ".caption")
MAX_SIDECAR_BYTES = 2**20

_IMAGE_DESCRIPTION = 0x010E  # EXIF 2.3
_IPTC_CAPTION = (2, 120)  # IIM 4.2
_CAMERA_DEFAULTS = re.compile(
    r"(olympus|minolta|kodak|konica|sony|vivitar|polaroid)?\s*(digital (still )?camera|dsc)|exif[ _-]jpeg|samsung|"
    r"jpeg|default|(dsc|img|dcim|p)[ _-]?\d*|created (with|by) .*|screenshot|ascii",
    re.IGNORECASE,
)
"""Image descriptions that cameras and programs write, not people."""


def sidecars_of(image: str) -> list[str]:
    """The paths at which words about an image may be: photo.txt, photo.caption, photo.jpg.xmp, photo.xmp."""
    stem = os.path.splitext(image)[0]
    return [*(stem + suffix for suffix in TEXT_SIDECARS), f"{image}.xmp", f"{stem}.xmp"]


def sidecar_state(image: str) -> str:
    """Sizes and times of the sidecars that exist, in one line."""
    states = []
    for path in sidecars_of(image):
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            continue
        states.append(f"{os.path.basename(path)} {status.st_size} {status.st_mtime_ns}")
    return ", ".join(states)


def read_sidecars(image: str) -> str | None:
    """The words of a person in the first of an image's sidecars that has any."""
    for path in sidecars_of(image):
        try:
            if os.path.getsize(path) > MAX_SIDECAR_BYTES:
                continue
            data = Path(path).read_bytes()
        except (OSError, ValueError):
            continue
        text = _of_person(read_xmp(data)) if path.endswith(".xmp") else _first_line(data)
        if text and _written_by_model(os.path.dirname(path)).get(os.path.basename(path)) != text:
            return text
    return None


def _first_line(data: bytes) -> str | None:
    lines = [" ".join(line.split()) for line in lines_of(decode_text(data))]
    return next(filter(_is_usable, lines), None)


def _is_usable(text: str) -> bool:
    problems: list[str] = []
    return bool(usable_captions(text, "", lambda where, reason: problems.append(reason)))


def _of_person(fields: dict[str, str]) -> str | None:
    if is_unverified_model(fields.get("writer", "")):
        return None
    text = fields.get("description") or fields.get("long") or fields.get("alt")
    return text if text and _is_usable(text) else None


@functools.lru_cache(maxsize=64)
def _provenance(folder: str, mtime: int) -> dict[str, str]:
    return written_by_model(folder)


def _written_by_model(folder: str) -> dict[str, str]:
    try:
        return _provenance(folder, os.stat(os.path.join(folder, PROVENANCE)).st_mtime_ns)
    except OSError:
        return {}


def embedded_words(data: bytes) -> str | None:
    """The description of a person in an encoded image: XMP's, else IPTC's, else EXIF's. The pixels are not decoded."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
            fields = read_xmp(packet.encode() if isinstance(packet, str) else packet)
            if is_unverified_model(fields.get("writer", "")):
                return None
            found = [_of_person(fields), _iptc(image), image.getexif().get(_IMAGE_DESCRIPTION)]
            found.append(image.info.get("Description"))  # PNG
    except Exception:  # damaged metadata raises many kinds; the image's own decoder reports what is wrong with it
        return None
    for text in found:
        text = " ".join(text.split()).strip("\0 ") if isinstance(text, str) else ""
        if text and has_words(text) and not _CAMERA_DEFAULTS.fullmatch(text) and _is_usable(text):
            return text
    return None


def _iptc(image: ImageFile.ImageFile) -> str | None:
    records: dict[Any, Any] = IptcImagePlugin.getiptcinfo(image) or {}
    caption = records.get(_IPTC_CAPTION)
    return decode_text(caption) if isinstance(caption, bytes) else None


def merge_words(project: Project, image: int, kind: WriterKind, text: str | None) -> None:
    """Enter what a person wrote beside a photo ("sidecar") or into it ("embedded"), if it is new.

    The text last read from there is the common ancestor. Unchanged, or a text that the model wrote: nothing to do.
    Changed, and no reviewer has decided: it counts from now on. Changed on both sides: both are kept, and flagged.
    """
    if text is None:
        return
    captions = project.captions(image)
    known = [caption for caption in captions if caption.writer.kind == kind]
    if (known and known[-1].text == text) or any(c.text == text for c in captions if c.writer.kind == "model"):
        return
    current = project.image(image)
    in_force = next((caption for caption in captions if caption.id == current.caption), None)
    if in_force is not None and in_force.text == text:
        return
    with project.transaction():
        sidecar_first = kind == "embedded" and in_force is not None and in_force.writer.kind == "sidecar"
        new = project.add_words(image, text, project.writer_id(Writer(kind)), counts=not sidecar_first)
        if in_force is not None and (current.verdict or in_force.writer.kind not in ("model", kind)):
            project.flag(image, "two texts", f"{kind}: {text}", new)
