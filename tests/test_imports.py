"""Imports point one way, and none leads back to its start: this reads every module of the package and proves it.

The rules are the tables below. A new folder under captioner/ must be entered in MAY_IMPORT, after the rooms that it
uses: a room may only import rooms that stand before it.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import pytest

PACKAGE = "captioner"
ROOT = Path(__file__).parents[1]

# What a room (a folder or module directly under captioner/) may import of ours, besides itself: rooms before it.
INFER_AND_BELOW = {
    "infer",
    "convert",
    "decoding",
    "hub",
    "data",
    "model",
    "metrics",
    "config",
    "files",
    "distributed",
    "cpu",
    "errors",
}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "distributed": {"errors"},
    "cpu": set(),
    "web": set(),
    "config": {"errors"},
    "model": set(),  # save_pretrained copies these files beside a checkpoint: they stand alone
    "metrics": {"errors"},
    "data": {"model", "config", "files", "errors"},
    "hub": {"model", "files", "errors"},
    "convert": {"hub", "model", "files", "errors"},
    "decoding": {"model", "errors"},
    "infer": {"decoding", "convert", "hub", "data", "model", "metrics", "files", "distributed", "cpu", "errors"},
    "training": {
        "decoding",
        "convert",
        "hub",
        "data",
        "model",
        "metrics",
        "config",
        "files",
        "distributed",
        "cpu",
        "errors",
    },
    "annotate": INFER_AND_BELOW,
    "export": INFER_AND_BELOW,
    "ray": INFER_AND_BELOW | {"annotate"},
    "serve": INFER_AND_BELOW | {"annotate", "web"},
    "review": INFER_AND_BELOW | {"annotate", "web"},
}
THE_TOP = {"__init__", "__main__", "cli"}  # may import every room

WEB_ROOMS = ("serve", "review")
ONLY_IN: dict[str, tuple[str, ...]] = {
    "accelerate": ("training",),
    "fastapi": WEB_ROOMS,
    "ray": ("ray",),
    "starlette": WEB_ROOMS,
    "uvicorn": WEB_ROOMS,
}

# Modules that run where torch is not installed, and what neither they nor anything of ours they import may import.
WITHOUT_TORCH = ("metrics", "decoding.options", "infer.exported_model", "infer.model_settings", "infer.inputs")
TORCH = {"torch", "torchvision", "transformers", "timm"}


def module_name(path: str) -> str:
    """'captioner/data/__init__.py' -> 'captioner.data', 'captioner/cli.py' -> 'captioner.cli'."""
    parts = PurePosixPath(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imported_names(path: str, source: str, known: set[str]) -> Iterator[str]:
    """Yield the absolute name of every module imported anywhere in a file, inside functions too."""
    folder = PurePosixPath(path).parent.parts
    for node in ast.walk(ast.parse(source, filename=path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) - node.level + 1] if node.level else ()
            base = ".".join((*above, *((node.module,) if node.module else ())))
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield submodule if submodule in known else base


def within(name: str, rooms: "set[str] | tuple[str, ...]") -> bool:
    """Is a module one of these rooms, or inside one?"""
    return any(name == f"{PACKAGE}.{room}" or name.startswith(f"{PACKAGE}.{room}.") for room in rooms)


def reachable(start: str, imports: Mapping[str, set[str]]) -> set[str]:
    """Return what `start` needs of ours: itself, its imports, and their folders' __init__ (not captioner's own)."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in imports and name not in seen:
            seen.add(name)
            waiting += [*imports[name], name.rpartition(".")[0]]
    return seen


def violations(files: Mapping[str, str]) -> list[str]:
    """Check modules, given as {path from the repository's root: source}; return one line for each broken rule."""
    known = {module_name(path) for path in files}
    imports = {module_name(path): set(imported_names(path, source, known)) for path, source in files.items()}
    found = []
    for module, names in sorted(imports.items()):
        room = module.split(".")[1]
        if room not in MAY_IMPORT and room not in THE_TOP:
            found.append(f"{module}: {room!r} has no entry in MAY_IMPORT")
            continue
        for name in sorted(names):
            library = name.partition(".")[0]
            if library == PACKAGE and room not in THE_TOP and not within(name, MAY_IMPORT[room] | {room}):
                found.append(f"{module} imports {name}")
            if library in ONLY_IN and not within(module, ONLY_IN[library]):
                found.append(f"{module} imports {library}")
        if within(module, WITHOUT_TORCH):
            for step in sorted(reachable(module, imports)):
                heavy = TORCH & {name.partition(".")[0] for name in imports[step]}
                found += [f"{module} needs {library} through {step}" for library in sorted(heavy)]
    return found


def upward_arrows(table: Mapping[str, set[str]]) -> list[str]:
    """Return the entries that let a room import one that does not stand before it."""
    rooms = list(table)
    return [
        f"{room} may import {other}"
        for number, room in enumerate(rooms)
        for other in sorted(table[room])
        if other not in rooms[:number]
    ]


def circles(files: Mapping[str, str]) -> list[str]:
    """Return the modules that import themselves through others, inside functions and for type checkers too."""
    known = {module_name(path) for path in files}
    imports = {module_name(path): set(imported_names(path, source, known)) & known for path, source in files.items()}

    def leads_to(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(imports[start])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += imports[name]
        return seen

    return sorted(module for module in imports if module in leads_to(module))


@pytest.fixture(scope="module")
def package() -> dict[str, str]:
    paths = sorted((ROOT / PACKAGE).rglob("*.py"))
    assert paths, "no module found: the test looks in the wrong place"
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def test_imports_point_one_way(package: dict[str, str]) -> None:
    assert violations(package) == []


def test_no_room_may_import_upwards() -> None:
    assert upward_arrows(MAY_IMPORT) == []
    assert upward_arrows({"low": {"high"}, "high": {"low"}, "top": {"top"}}) == [
        "low may import high",
        "top may import top",
    ]


def test_no_import_leads_back_to_where_it_started(package: dict[str, str]) -> None:
    assert circles(package) == []
    circle = {
        "captioner/a.py": "def f():\n    from captioner import b",
        "captioner/b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from captioner.c import C",
        "captioner/c.py": "import captioner.a",
        "captioner/d.py": "import captioner.a",
    }
    assert circles(circle) == ["captioner.a", "captioner.b", "captioner.c"]


MADE_UP = {
    "captioner/__init__.py": "from .infer.captioner import Captioner",
    "captioner/cli.py": "def train():\n    from .training import trainer",
    "captioner/config.py": "from captioner.errors import CaptionerError\nimport pydantic",
    "captioner/errors.py": "",
    "captioner/data/__init__.py": "",
    "captioner/data/sources.py": "from ..config import DataConfig\nfrom . import images",
    "captioner/data/images.py": "import PIL.Image",
    "captioner/infer/__init__.py": "",
    "captioner/infer/captioner.py": "from captioner.decoding import stream\nimport torch",
    "captioner/decoding/stream.py": "import torch",
    "captioner/metrics/__init__.py": "from .bleu import bleu",
    "captioner/metrics/bleu.py": "import numpy",
    "captioner/training/__init__.py": "",
    "captioner/training/trainer.py": "import accelerate\nfrom captioner.decoding.stream import generate",
    "captioner/infer/exported_model.py": "import numpy\nfrom captioner.data.images import load",
}


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        (
            "data/sources.py",
            "from captioner.training import trainer",
            "captioner.data.sources imports captioner.training.trainer",
        ),
        (
            "data/sources.py",
            "from ..training.trainer import fit",
            "captioner.data.sources imports captioner.training.trainer",
        ),
        ("data/sources.py", "def f():\n    import captioner.infer", "captioner.data.sources imports captioner.infer"),
        ("data/sources.py", "from captioner import Captioner", "captioner.data.sources imports captioner"),
        (
            "training/trainer.py",
            "from ..infer import captioner",
            "captioner.training.trainer imports captioner.infer.captioner",
        ),
        ("infer/captioner.py", "import accelerate.utils", "captioner.infer.captioner imports accelerate"),
        ("infer/captioner.py", "from fastapi import FastAPI", "captioner.infer.captioner imports fastapi"),
        ("metrics/bleu.py", "import torch.nn", "captioner.metrics.bleu needs torch through captioner.metrics.bleu"),
        ("data/images.py", "import torch", "captioner.infer.exported_model needs torch through captioner.data.images"),
        (
            "infer/__init__.py",
            "import transformers",
            "captioner.infer.exported_model needs transformers through captioner.infer",
        ),
        ("shed/tool.py", "", "captioner.shed.tool: 'shed' has no entry in MAY_IMPORT"),
    ],
)
def test_a_broken_rule_is_found(path: str, source: str, expected: str) -> None:
    assert violations(MADE_UP) == []
    assert expected in violations({**MADE_UP, f"captioner/{path}": source})
