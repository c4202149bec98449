"""A pickle is checked before torch reads it: more than tensors is refused by name, and nothing of it runs."""

import collections
import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from captioner.convert import pickles
from captioner.convert.pickles import load_pickle
from captioner.errors import CaptionerError

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b.bias": torch.ones(4, dtype=torch.float16)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pytorch_model.bin"


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that each attack would make."""
    return tmp_path / "ran"


@pytest.fixture(autouse=True)
def nothing_runs(marker: Path):
    yield
    assert not marker.exists(), "the pickle ran"


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def refusal(path: Path) -> str:
    with pytest.raises(CaptionerError) as caught:
        load_pickle(path)
    message = str(caught.value)
    assert message.startswith(f"{path.name}: ") and "\n" not in message
    return message


def in_archive(path: Path, pickled: bytes, **others: bytes) -> None:
    """As torch.save writes it, with this pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n", **others}.items():
            archive.writestr(f"pytorch_model/{name}", content)


def legacy(pickled: bytes) -> bytes:
    head = [pickles.LEGACY_MAGIC, 1001, {"little_endian": True}]
    return b"".join(pickle.dumps(part, 2) for part in head) + pickled + pickle.dumps([], 2)


@pytest.mark.parametrize("is_archive", [True, False], ids=["archive", "legacy"])
def test_tensors_are_read(path, is_archive):
    state = collections.OrderedDict(TENSORS, tied=TENSORS["a.weight"], column=TENSORS["a.weight"][:, 1])
    state._metadata = {"": {"version": 1}}  # as a module's state dict has it
    state["parameter"] = torch.nn.Parameter(torch.zeros(0))
    state["half"] = torch.ones(3, dtype=torch.bfloat16)
    torch.save(state, path, _use_new_zipfile_serialization=is_archive)
    found = load_pickle(path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) and not found[name].requires_grad for name, tensor in state.items())


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("layout", ["archive", "legacy", "bare"])
@pytest.mark.parametrize("function", [os.system, eval, exec, getattr, __import__, os.posix_spawn])
def test_a_call_of_another_function_is_refused_by_its_name(path, marker, protocol, layout, function):
    pickled = pickle.dumps({"weight": Call(function, f"touch {marker}")}, protocol)
    match layout:
        case "archive":
            in_archive(path, pickled)
        case "legacy":
            path.write_bytes(legacy(pickled))
        case "bare":
            path.write_bytes(pickled)
    name = f"{'__builtin__' if protocol < 3 and function.__module__ == 'builtins' else function.__module__}"
    assert f"has the global {name}.{function.__name__}" in refusal(path)


@pytest.mark.parametrize(
    ("program", "named"),
    [
        (b"(S'touch x'\nios\nsystem\n.", "global os.system"),  # INST
        (b"(cos\nsystem\nS'touch x'\no.", "global os.system"),  # OBJ
        (b"\x80\x02cbuiltins\nobject\n)\x81}b.", "global builtins.object"),  # NEWOBJ, BUILD
        (b"\x80\x04\x8c\x08builtins\x94\x8c\x04eval\x94\x93\x8c\x011\x85R.", "global builtins.eval"),
        (b"\x80\x04\x8c\x08builtinsq\x00\x8c\x04evalq\x01h\x00h\x01\x93.", "global builtins.eval"),  # from the memo
        (b"\x80\x02ctorch._utils\n_rebuild_qtensor\n.", "global torch._utils._rebuild_qtensor"),
        (b"\x80\x02ctorch.storage\n_load_from_bytes\nC\x01aR.", "global torch.storage._load_from_bytes"),
        (b"\x80\x02ccollections\nOrderedDict.__init__.__globals__\n.", "collections.OrderedDict.__init__.__globals__"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "opcode NEWOBJ"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"Pattack\n.", "opcode PERSID"),
        (b"\x80\x02(l.", "opcode LIST"),
        (b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00a.", "opcode BYTEARRAY8"),
        (b"\x80\x02G\x3f\xf0\x00\x00\x00\x00\x00\x00.", "opcode BINFLOAT"),
    ],
)
def test_other_opcodes_are_refused_by_name(path, program, named):
    in_archive(path, program)
    assert named in refusal(path)
    path.write_bytes(legacy(program))
    assert named in refusal(path)


def test_a_pickle_before_or_after_the_tensors_is_refused(path, marker):
    attack = pickle.dumps(Call(os.system, f"touch {marker}"), 2)
    torch.save(TENSORS, path)
    good = zipfile.ZipFile(path).read("pytorch_model/data.pkl")
    in_archive(path, good + attack)
    assert "more after the end of its pickle" in refusal(path)
    in_archive(path, good, **{"constants.pkl": attack})
    assert "no member 'pytorch_model/constants.pkl'" in refusal(path)
    in_archive(path, good, **{"code/__torch__.py": b"import os"})
    assert "no member 'pytorch_model/code/__torch__.py'" in refusal(path)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("pytorch_model/data.pkl", attack)
    assert "two members of the archive have the same name" in refusal(path)
    in_archive(path, good)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", attack)
    assert "two members of the archive have the same name" in refusal(path)
    path.write_bytes(pickle.dumps(pickles.LEGACY_MAGIC, 2) + attack)
    assert "global posix.system" in refusal(path)
    path.write_bytes(legacy(pickle.dumps({}, 2))[: -len(pickle.dumps([], 2))] + attack)
    assert "global posix.system" in refusal(path)


def test_a_nested_archive_is_refused(path, marker):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("pytorch_model/data.pkl", pickle.dumps(Call(os.system, f"touch {marker}"), 2))
    in_archive(path, inner.getvalue())
    assert "damaged" in refusal(path)
    in_archive(path, pickle.dumps({}, 2), **{"model.zip": inner.getvalue()})
    assert "no member 'pytorch_model/model.zip'" in refusal(path)
    path.write_bytes(inner.getvalue())
    assert "global posix.system" in refusal(path)
    path.write_bytes(b"\x80\x02" + inner.getvalue())  # an archive for whoever looks at its end
    assert "damaged" in refusal(path)


def test_an_archive_that_is_packed_is_refused(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pytorch_model/data.pkl", b"\x80\x02" + b"N" * 10_000_000 + b".")
    assert "no member 'pytorch_model/data.pkl'" in refusal(path)


def test_the_old_tar_layout_is_refused(path, marker):
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(Call(os.system, f"touch {marker}"), 2)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert "old tar layout" in refusal(path)


def test_sizes_that_the_file_cannot_hold_are_refused(path):
    torch.save({"a": torch.ones(1)}, path)
    good = zipfile.ZipFile(path).read("pytorch_model/data.pkl")
    one, storage = pickle.dumps(1, 2)[2:-1], b"\x80" * 4
    assert one in good
    for number in (2**31 - 1, -1, 2**80):
        in_archive(path, good.replace(one, pickle.dumps(number, 2)[2:-1]), **{"data/0": storage})
        assert f"claims a size of {number} in a file of" in refusal(path)
    torch.save({"a": torch.ones(1).expand(1000, 1000)}, path)
    assert "'a' would take 4000000 bytes" in refusal(path)
    in_archive(path, b"\x80\x02" + b"]" * pickles.MAX_PICKLE + b".")
    assert "larger than 8 MiB" in refusal(path)
    in_archive(path, b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"a.")
    assert "damaged" in refusal(path)


@pytest.mark.parametrize(
    "value", [[torch.ones(1)], torch.ones(1), {1: torch.ones(1)}, {"a": {"b": torch.ones(1)}}, {"a": "text"}]
)
def test_what_is_no_dictionary_of_tensors_is_refused(path, value):
    torch.save(value, path)
    assert "no dictionary of tensors" in refusal(path) or "is no tensor" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"version https://git-lfs.github.com/spec/v1\n", b"\x80"])
def test_a_damaged_file_is_one_line(path, content):
    path.write_bytes(content)
    assert "damaged" in refusal(path)
    torch.save(TENSORS, path)
    whole = path.read_bytes()
    for length in range(1, len(whole), 97):
        path.write_bytes(whole[:length])
        assert "damaged" in refusal(path)
