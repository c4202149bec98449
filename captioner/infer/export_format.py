"""The ONNX graphs in a model's folder: an exported folder's, or those that stand beside the model's weights.

Beside the configuration, the preprocessing and the tokenizer of its model, a folder with graphs holds `encoder.onnx`,
`decoder.onnx` and `graphs.json`. An exported folder's graphs hold their weights. Graphs beside `model.safetensors` read
theirs from that file, and `graphs.json` has its SHA-256, so that graphs of other weights are never used.
"""

import hashlib
import json
import mmap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from captioner.errors import CaptionerError

FORMAT = "graphs.json"
FORMAT_VERSION = 5
WEIGHTS = "model.safetensors"
GRAPHS = ("encoder.onnx", "decoder.onnx")


@dataclass(frozen=True)
class Graphs:
    """The graphs of a folder.

    Attributes:
        folder: where they are.
        precision: of their weights and arithmetic.
        weights_digest: SHA-256 of the file `WEIGHTS` that they were made from, in hexadecimal; None if they hold their
            weights themselves.
        num_prefix_tokens, grid: how many image tokens stand before those of the grid, and its rows and columns.
    """

    folder: Path
    precision: str
    weights_digest: str | None
    num_prefix_tokens: int
    grid: tuple[int, int]

    @cached_property
    def weights(self) -> mmap.mmap | None:
        """The content of `WEIGHTS`, if the graphs read it."""
        if self.weights_digest is None:
            return None
        with (self.folder / WEIGHTS).open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @property
    def are_stale(self) -> bool:
        """Have the weights changed since the graphs were made?"""
        try:
            return self.weights is not None and hashlib.sha256(self.weights).hexdigest() != self.weights_digest
        except (OSError, ValueError):  # gone, unreadable, empty
            return True


def find_graphs(folder: Path) -> Graphs | None:
    """Return the graphs in a model's folder; None if there are none.

    Raises:
        CaptionerError: they were written in another format.
    """
    path = folder / FORMAT
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        if (version := content["format_version"]) != FORMAT_VERSION:
            raise ValueError(f"exported in format {version!r}, and this captioner reads {FORMAT_VERSION}; export again")
        tokens = content["image_tokens"]
        return Graphs(folder, content["precision"], content["weights"], tokens["prefix"], tuple(tokens["grid"]))
    except FileNotFoundError:
        if (folder / "decoder.onnx").is_file() and not (folder / WEIGHTS).is_file():
            raise CaptionerError(f"{folder}: exported in an older format; export the model again") from None
        return None
    except OSError as error:
        raise CaptionerError(f"{path}: {error.strerror}") from error
    except KeyError as error:
        raise CaptionerError(f"{path}: without {error}") from error
    except ValueError as error:
        raise CaptionerError(f"{path}: {error}") from error


def is_export(folder: Path) -> bool:
    """Does a folder hold graphs in place of weights?"""
    return any((folder / name).is_file() for name in (FORMAT, *GRAPHS)) and not (folder / WEIGHTS).is_file()
