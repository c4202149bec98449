"""XMP in sidecars (photo.jpg.xmp), or embedded in the images: descriptions, alternative texts, and who wrote them.

Embedding, and editing sidecars of other programs, goes through exiftool, which changes metadata alone: the pixels stay
as they are, to the bit.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from captioner.annotate.annotations import Annotation, Report, with_bytes
from captioner.annotate.formats.sidecars import sidecar_path
from captioner.annotate.project import Project
from captioner.annotate.provenance import is_unverified_model
from captioner.data.photo_metadata import Description, embedded_description, xmp_description
from captioner.data.xmp import OURS, xmp_packet
from captioner.errors import CaptionerError
from captioner.files import new_folder, whole_file

EXIFTOOL_TAGS = {
    "description": ("XMP-dc:Description", "IPTC:Caption-Abstract"),
    "alt": ("XMP-iptcCore:AltTextAccessibility",),
    "long": ("XMP-iptcCore:ExtDescrAccessibility",),
    "writer": ("XMP-photoshop:CaptionWriter", "IPTC:Writer-Editor"),
}
"""Our properties in exiftool's names; IPTC's are for JPEG and TIFF, and exiftool leaves them out of other files."""

IPTC_WRITER_CHARACTERS = 32


def fields_of(annotation: Annotation) -> dict[str, str]:
    fields = {"description": annotation.caption, "alt": annotation.alt, "long": annotation.long or ""}
    return {name: text for name, text in (fields | {"writer": annotation.writer}).items() if text}


def to_xmp(annotations: Iterable[Annotation], output: Path | None, report: Report, overwrite_human: bool) -> None:
    """Write a sidecar beside each image, or into the folder `output` in the same tree. In a sidecar that another
    program has written, exiftool changes our properties only."""
    edits: list[tuple[Path, Annotation]] = []
    for annotation in annotations:
        path = sidecar_path(annotation, output, report, ".xmp", stem=False)
        if path is None:
            continue
        there = path.read_bytes() if path.is_file() else b""
        if not overwrite_human and _is_anothers(xmp_description(there), annotation):
            report(str(path), "holds words of a person; kept (--overwrite-human replaces them)")
        elif there and OURS.encode() not in there:
            edits.append((path, annotation))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                file.write(xmp_packet(fields_of(annotation)))
    if edits:
        _edit(edits, report)


def to_embedded(
    annotations: Iterable[Annotation], output: Path | None, report: Report, overwrite_human: bool, project: Project
) -> None:
    """Embed captions in the images, or in copies of them in the new folder `output`.

    Raises:
        CaptionerError: exiftool is not installed.
    """
    _exiftool()
    edits: list[tuple[Path, Annotation]] = []
    with ExitStack() as stack:
        folder = stack.enter_context(new_folder(output)) if output else None
        for annotation, data in with_bytes(annotations, report):
            if folder is None and annotation.member:
                report(annotation.name, "is inside an archive: give a folder for copies with -o")
                continue
            path = Path(annotation.name) if folder is None else folder / annotation.place
            if folder is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            if not overwrite_human and _is_anothers(embedded_description(data), annotation):
                report(annotation.name, "has a description by a person; kept (--overwrite-human replaces it)")
            else:
                edits.append((path, annotation))
        _edit(edits, report)
        if folder is None:
            for path, annotation in edits:
                project.note_file(annotation.id, path)


def _is_anothers(description: Description | None, annotation: Annotation) -> bool:
    if description is None or description.text in (annotation.caption, annotation.alt):
        return False
    return not is_unverified_model(description.writer)


def _exiftool() -> str:
    program = shutil.which("exiftool")
    if program is None:
        raise CaptionerError(
            "exiftool is not installed: it writes metadata into images (Debian: apt install libimage-exiftool-perl); "
            "--format xmp writes sidecars without it"
        )
    return program


def _edit(edits: list[tuple[Path, Annotation]], report: Report) -> None:
    """Run exiftool once over all files; report those that it cannot write."""
    program = _exiftool()
    with tempfile.TemporaryDirectory() as scratch:
        arguments, failed = Path(scratch, "arguments"), Path(scratch, "failed")
        with open(arguments, "w", encoding="utf-8", errors="surrogateescape") as file:
            for path, annotation in edits:
                for name, text in fields_of(annotation).items():
                    for tag in EXIFTOOL_TAGS[name]:
                        value = text[:IPTC_WRITER_CHARACTERS] if tag == "IPTC:Writer-Editor" else text
                        file.write(_argument(f"-{tag}={value}"))
                file.write(_argument(str(path.absolute())) + "-execute\n")
        options = ["-overwrite_original", "-charset", "iptc=utf8", "-codedcharacterset=utf8", "-q", "-q", "-m"]
        command = [program, "-@", str(arguments), "-common_args", *options, "-efile", str(failed)]
        finished = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
        problems = finished.stderr.splitlines()
        names = failed.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if failed.exists() else []
    for name in names:
        why = next((line for line in problems if line.endswith(name)), "exiftool cannot write it")
        report(name, why.removesuffix(f" - {name}"))


def _argument(text: str) -> str:
    """A line of an argument file, in which line ends are written as in C."""
    if "\n" not in text and "\r" not in text and not text.startswith("#"):
        return text + "\n"
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"#[CSTR]{escaped}\n"
