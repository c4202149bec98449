"""Who wrote a caption, as one line for the fields of formats: "default 1a2b3c4d (model)", "Ann (person)"."""

import json
import os
from pathlib import Path
from typing import Any

PROVENANCE = "captioner.provenance.jsonl"
"""Beside files that have no field for it: an object a file, with `file`, `text`, `caption`, `writer` and `verified`."""

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


def read_provenance(folder: str) -> dict[str, dict[str, Any]]:
    """What we wrote into the files of a folder, by file name."""
    records: dict[str, dict[str, Any]] = {}
    try:
        lines = Path(folder, PROVENANCE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return records
    for line in lines:
        try:
            record = json.loads(line)
            records[os.path.basename(record["file"])] = record
        except (ValueError, KeyError, TypeError):
            continue  # a line that somebody has edited
    return records
