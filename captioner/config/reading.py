"""Reads a recipe: YAML, `key=value` overrides, environment variables, and errors that name file and key."""

import difflib
import os
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from captioner.config.recipe import KINDS, RunConfig, Section
from captioner.errors import CaptionerError

AnySection = TypeVar("AnySection", bound=Section)


def load_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a recipe, apply `a.b.0.c=value` overrides (values in YAML), expand `${VARIABLES}`, check keys and types.

    If two overrides set the same key, the later one wins. A key that occurs twice in the file or in one override is an
    error.

    Raises:
        CaptionerError: the file is missing or not YAML, a key occurs twice or is unknown, a value has the wrong type, a
            variable is not set; the message names the file and the key.
    """
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], 1)
        raise CaptionerError(f"{path}: no such recipe" + (f"; did you mean {path.parent / near[0]}?" if near else ""))
    try:
        tree = _load_yaml(path.read_text(encoding="utf-8"), str(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CaptionerError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise CaptionerError(f"{path}: {error.strerror}") from error
    if not isinstance(tree, dict):
        raise CaptionerError(f"{path}: a recipe is a mapping of keys to values")
    for override in overrides or []:
        _apply_override(tree, override)
    return validated(RunConfig, _expand_variables(tree, str(path)), str(path))


class _Loader(yaml.SafeLoader):
    """PyYAML silently keeps the last of two equal keys; this loader raises an error."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":  # there may be several merges
                continue
            line = key.start_mark.line + 1
            if key.value in first:
                raise CaptionerError(
                    f"{self.name}: the key {key.value!r} occurs twice, in line {first[key.value]} and in line {line}"
                )
            first[key.value] = line
        return node


def _load_yaml(text: str, where: str) -> Any:
    loader = _Loader(text)
    loader.name = where
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def validated(section: type[AnySection], values: dict[str, Any], where: str) -> AnySection:
    """Return `values` as a section.

    Raises:
        CaptionerError: a key is unknown or a value has the wrong type; the message starts with `where` and the key.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise CaptionerError("\n".join(_explain(problem, section, where) for problem in error.errors())) from error


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise CaptionerError(f"override {override!r}: write key=value, for example optimization.batch_size=16")
    node: Any = tree
    *parents, last = key.split(".")
    for name in parents:
        node = _child(node, name, override)
    try:
        parsed = _load_yaml(value, f"override {override!r}")
    except yaml.YAMLError as error:
        raise CaptionerError(f"override {override!r}: the value is not YAML") from error
    if isinstance(node, list):
        _child(node, last, override)
        node[int(last)] = parsed
    elif isinstance(node, dict):
        node[last] = parsed
    else:
        raise CaptionerError(f"override {override!r}: {'.'.join(parents)} is a value and has no keys")


def _child(node: Any, name: str, override: str) -> Any:
    if isinstance(node, list):
        if not name.isdecimal() or int(name) >= len(node):
            raise CaptionerError(f"override {override!r}: {name!r} is not an index below {len(node)}")
        return node[int(name)]
    if not isinstance(node, dict):
        raise CaptionerError(f"override {override!r}: {name!r} is a key of a value that has no keys")
    if node.get(name) is None:
        node[name] = {}
    return node[name]


def _expand_variables(node: Any, where: str) -> Any:
    if isinstance(node, dict):
        return {key: _expand_variables(value, where) for key, value in node.items()}
    if isinstance(node, list):
        return [_expand_variables(value, where) for value in node]
    if not isinstance(node, str):
        return node
    for name in re.findall(r"\$\{(\w+)\}", node):
        if name not in os.environ:
            raise CaptionerError(f"{where}: the environment variable {name} is not set (used in {node!r})")
    return re.sub(r"\$\{(\w+)\}", lambda match: os.environ[match[1]], node)


def _explain(problem: Any, section: type[Section], where: str) -> str:
    location = [part for part in problem["loc"] if part != "[key]"]
    key = ".".join(str(part) for part in location if part not in KINDS)
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(location[-1]), _valid_names(section, location[:-1]), 1, cutoff=0.5)
        return f"{where}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    if problem["type"] == "missing":
        return f"{where}: the key {key!r} is required"
    return f"{where}: {key}: {problem['msg']} (given: {problem['input']!r})" if key else f"{where}: {problem['msg']}"


def _valid_names(section: Any, location: list[Any]) -> list[str]:
    for part in location:
        if part in KINDS:
            section = KINDS[part]
        elif not isinstance(part, int):
            annotation = section.model_fields[part].annotation
            section = annotation.__args__[0] if getattr(annotation, "__origin__", None) is list else annotation
    return list(section.model_fields)
