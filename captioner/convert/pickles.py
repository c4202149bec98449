"""Reads `pytorch_model.bin`, a pickle, without running anything that it says.

A pickle is a program for a stack machine that can call any function of any module. Before torch sees one, every opcode
in it is checked against the list below, which is enough for tensors and the containers that hold them, and every name
that it imports against another. `torch.load(weights_only=True)` then reads it, with a list of its own.
"""

import io
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from captioner.errors import CaptionerError

OPCODES = frozenset(
    "PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINUNICODE SHORT_BINSTRING EMPTY_TUPLE TUPLE "
    "TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS BINGET LONG_BINGET BINPUT LONG_BINPUT "
    "GLOBAL REDUCE BUILD BINPERSID".split()
)
"""REDUCE calls what GLOBAL named; BUILD sets attributes, such as the versions that a state dict has in `_metadata`."""

STORAGES = ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")
GLOBALS = frozenset(
    ["collections OrderedDict"]
    + [f"torch._utils {name}" for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")]
    + [f"torch {name}Storage" for name in STORAGES]
)

MAX_PICKLE = 8 * 1024 * 1024
"""Bytes of opcodes; one of 1,000 tensors has about 150,000."""
ZIP = b"PK\x03\x04"
ZIP_MEMBERS = re.compile(
    r"data\.pkl|data/\d+|version|byteorder|\.data/serialization_id|\.format_version|\.storage_alignment"
)
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PICKLES = 5
"""Magic number, version, sizes of C's types, the tensors, names of their storages; then the storages' bytes."""


def load_pickle(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file that `torch.save` wrote.

    Raises:
        CaptionerError: an opcode or a global is not on the list, which the message names; or the file is damaged, or
            not a dictionary of tensors.
    """
    size = path.stat().st_size
    try:
        _check(path, size)
        with warnings.catch_warnings(action="ignore"):  # of protocols other than 2
            weights = torch.load(path, map_location="cpu", weights_only=True)
        return _tensors(weights, size)
    except CaptionerError as error:
        raise CaptionerError(f"{path.name}: {error}") from error
    except (zipfile.BadZipFile, UnpicklingError, ValueError, TypeError, LookupError, EOFError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CaptionerError(f"{path.name}: damaged, or not written by torch.save: {reason}") from error


def _check(path: Path, size: int) -> None:
    """Check all pickles in a file, which torch takes for an archive or for its old layout by the first bytes."""
    with path.open("rb") as file:
        head = file.read(MAX_PICKLE)
    if head.startswith(ZIP):
        stream = io.BytesIO(_pickle_of_archive(path))
        _check_pickle(stream, size)
        if stream.read(1):
            raise CaptionerError("not read: there is more after the end of its pickle")
        return
    if head[257:262] == b"ustar":
        raise CaptionerError("not read: an archive in torch's old tar layout, which weights_only does not cover")
    stream = io.BytesIO(head)
    if LEGACY_MAGIC not in _check_pickle(stream, LEGACY_MAGIC):
        raise CaptionerError("not read: a pickle, but not one of torch.save")
    for _ in range(LEGACY_PICKLES - 1):
        _check_pickle(stream, size)


def _pickle_of_archive(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise CaptionerError("not read: two members of the archive have the same name")
        for name, member in members.items():
            if not ZIP_MEMBERS.fullmatch(name) or member.compress_type != zipfile.ZIP_STORED:
                raise CaptionerError(f"not read: torch.save writes no member {member.filename!r}")
        if "data.pkl" not in members:
            raise CaptionerError("not read: an archive without data.pkl")
        if members["data.pkl"].file_size > MAX_PICKLE:
            raise CaptionerError(f"not read: its pickle is larger than {MAX_PICKLE >> 20} MiB")
        return archive.read(members["data.pkl"])


def _check_pickle(stream: io.BytesIO, largest: int) -> list[int]:
    """Check one pickle, up to its STOP, and return its whole numbers.

    Each is an offset, a size or a stride, and thus at most `largest`: what claims more is not of this file.
    """
    numbers: list[int] = []
    texts: list[str] = []
    refused_names: list[str] = []
    refused_opcodes: list[str] = []
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST") and argument not in GLOBALS:
            refused_names.append(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            refused_names.append(".".join(texts[-2:]) or opcode.name)
        elif opcode.name not in OPCODES:
            refused_opcodes.append(opcode.name)
        if isinstance(argument, str):
            texts.append(argument)
        elif isinstance(argument, int):
            numbers.append(argument)
    for kind, refused in (("global", refused_names), ("opcode", refused_opcodes)):
        if refused:
            raise CaptionerError(f"not read: its pickle has the {kind} {refused[0][:100]}; tensors need none such")
    for number in numbers:
        if not 0 <= number <= max(largest, 4096):
            raise CaptionerError(f"not read: it claims a size of {number} in a file of {largest} bytes")
    return numbers


def _tensors(weights: object, size: int) -> dict[str, Tensor]:
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise CaptionerError("not read: it holds no dictionary of tensors")
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise CaptionerError(f"not read: its {name[:100]!r} is no tensor")
        if tensor.nbytes > size:  # an expanded view
            raise CaptionerError(f"not read: its {name[:100]!r} would take {tensor.nbytes} bytes, the file has {size}")
    return {name: tensor.detach() for name, tensor in weights.items()}
