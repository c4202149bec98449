"""Text files beside images, photo.txt or photo.caption, as trainers of image generators read them."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from captioner.annotate.annotations import Annotation, Report
from captioner.annotate.formats.records import json_line
from captioner.annotate.provenance import PROVENANCE, read_provenance
from captioner.errors import CaptionerError
from captioner.files import whole_file


@dataclass(frozen=True)
class SidecarOptions:
    """What a sidecar holds beside the caption.

    Attributes:
        suffix: of the files: ".txt" or ".caption".
        before, after: text around the caption.
        tags: append the tags, after commas.
        overwrite_human: replace what somebody else wrote into a sidecar.
    """

    suffix: str = ".txt"
    before: str = ""
    after: str = ""
    tags: bool = False
    overwrite_human: bool = False

    def text(self, annotation: Annotation) -> str:
        tags = [str(tag["tag"]) for tag in annotation.tags] if self.tags else []
        return ", ".join([self.before + annotation.caption + self.after, *tags])


def to_sidecars(
    annotations: Iterable[Annotation], output: Path | None, report: Report, options: SidecarOptions
) -> None:
    """Write sidecars beside the images, or into the folder `output` in the same tree.

    Text files have no field for who wrote them: captioner.provenance.jsonl in each folder says so. By it the next
    writing knows its own files from people's, which it leaves alone.
    """
    folders: dict[Path, dict[str, dict[str, object]]] = {}
    for annotation in annotations:
        path = sidecar_path(annotation, output, report, options.suffix, stem=True)
        if path is None:
            continue
        known = folders.setdefault(path.parent, {})
        if not known:
            path.parent.mkdir(parents=True, exist_ok=True)
            known |= read_provenance(str(path.parent))
        text = options.text(annotation)
        if not options.overwrite_human and _is_anothers(path, text, known.get(path.name)):
            report(str(path), "holds words of a person; kept (--overwrite-human replaces them)")
            continue
        with whole_file(path) as file:
            file.write(text + "\n")
        known[path.name] = {
            "file": path.name,
            "text": text,
            "caption": annotation.caption,
            "writer": annotation.writer,
            "verified": annotation.verified,
        }
    for folder, records in folders.items():
        with whole_file(folder / PROVENANCE) as file:
            file.writelines(map(json_line, records.values()))


def sidecar_path(annotation: Annotation, output: Path | None, report: Report, suffix: str, stem: bool) -> Path | None:
    """Where an image's sidecar goes: photo.txt (`stem`) or photo.jpg.txt."""
    if output is None and annotation.member:
        report(annotation.name, "is inside an archive: give a folder with -o for what goes beside it")
        return None
    image = annotation.name if output is None else str(output / annotation.place)
    return Path((os.path.splitext(image)[0] if stem else image) + suffix)


def _is_anothers(path: Path, text: str, record: dict[str, object] | None) -> bool:
    try:
        there = path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CaptionerError(f"{path}: cannot be read: {error.strerror}") from error
    return there not in ("", text) and (record is None or there != record.get("text"))
