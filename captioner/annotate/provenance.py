"""Who wrote a caption, as one line for the fields of formats: "default 1a2b3c4d (model)", "Ann (person)"."""

import json
import os
from pathlib import Path

PROVENANCE = "captioner.provenance.jsonl"
"""Beside files that have no field for it: an object a file with `file`, `text`, `writer`, `kind` and `verified`."""

_UNVERIFIED = " (model)"


def writer_line(kind: str, name: str, version: str, verdict: str | None, reviewer: str | None) -> str:
    """Say who wrote a caption, and who has accepted what a model wrote."""
    if kind != "model":
        return f"{name or 'unknown'} (person)"
    accepted = f", accepted by {reviewer}" if verdict == "accepted" else ""
    return f"{name} {version[:8]}".strip() + f" (model{accepted})"


def is_unverified_model(line: str) -> bool:
    """Does a `writer_line` name a model whose words nobody has accepted?"""
    return line.endswith(_UNVERIFIED)


def written_by_model(folder: str) -> dict[str, str]:
    """The texts that a model wrote into the files of a folder, and nobody has accepted, by file name."""
    texts: dict[str, str] = {}
    try:
        lines = Path(folder, PROVENANCE).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError):
        return texts
    for line in lines:
        try:
            record = json.loads(line)
            if record["kind"] == "model" and not record["verified"]:
                texts[os.path.basename(record["file"])] = record["text"]
        except (ValueError, KeyError, TypeError):
            continue  # a line that somebody has edited
    return texts
