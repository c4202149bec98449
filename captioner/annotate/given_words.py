"""The words that people gave with a photo: in a file beside it, or embedded in it; and what becomes of them.

Rules where several texts meet: a person beats the model; of two people's texts both are kept, the one that a reviewer
decided on stays in force, and the photo is flagged. What a model wrote into these files is not taken for a person's.
"""

import functools
import os
from pathlib import Path
from typing import Any

from captioner.annotate.project import Project
from captioner.annotate.project_records import Writer, WriterKind
from captioner.annotate.provenance import PROVENANCE, is_unverified_model, read_provenance
from captioner.data.caption_checks import caption_problem, one_line
from captioner.data.photo_metadata import Description, embedded_description, xmp_description
from captioner.data.text_files import decode_text, lines_of

TEXT_SIDECARS = (".txt", ".caption")
MAX_SIDECAR_BYTES = 2**20


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
        text = _of_person(xmp_description(data)) if path.endswith(".xmp") else _first_line(data)
        if text and not _is_model_s(path, text):
            return text
    return None


def _first_line(data: bytes) -> str | None:
    return next((one_line(line) for line in lines_of(decode_text(data)) if not caption_problem(line)), None)


def embedded_words(data: bytes) -> str | None:
    """The words of a person in an encoded image."""
    return _of_person(embedded_description(data))


def _of_person(description: Description | None) -> str | None:
    return None if description is None or is_unverified_model(description.writer) else description.text


def _is_model_s(path: str, text: str) -> bool:
    """Did we write this text into this file, as the words of a model that nobody has accepted?"""
    folder, name = os.path.split(path)
    try:
        state = os.stat(os.path.join(folder, PROVENANCE)).st_mtime_ns
    except OSError:
        return False
    record = _provenance(folder, state).get(name, {})
    return record.get("text") == text and is_unverified_model(str(record.get("writer")))


@functools.lru_cache(maxsize=64)
def _provenance(folder: str, mtime: int) -> dict[str, dict[str, Any]]:
    """`read_provenance`, again only if the file has another `mtime`."""
    return read_provenance(folder)


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
