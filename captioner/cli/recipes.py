"""`captioner recipes`: the training recipes that come with captioner."""

import itertools
import re
from pathlib import Path
from typing import Annotated

import typer

from captioner.errors import CaptionerError

PACKAGE = Path(__file__).parents[1]
FOLDERS = (PACKAGE / "configs", PACKAGE.parent / "configs")
"""Where recipes are: inside an installed package, or beside it in a clone."""


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe, to start your own from.")] = None,
) -> None:
    """List the training recipes that come with captioner, or print one."""
    if name is not None:
        print(find_recipe(Path(name)).read_text(encoding="utf-8"), end="")
        return
    shipped = shipped_recipes()
    width = max(map(len, shipped), default=0)
    for recipe, path in shipped.items():
        print(f"{recipe:{width}}  {_summary(path)}")


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with captioner, by name."""
    folder = next((folder for folder in FOLDERS if folder.is_dir()), FOLDERS[0])
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(path: Path) -> Path:
    """The file that `--config` names: a path, or the bare name of a recipe that comes with captioner.

    Raises:
        CaptionerError: a bare name that is neither a file nor a recipe.
    """
    if path.is_file() or path.suffix or len(path.parts) != 1:
        return path  # load_config reports a path that does not exist
    shipped = shipped_recipes()
    if path.name not in shipped:
        raise CaptionerError(f"{path}: neither a file nor a recipe; there are {', '.join(shipped) or 'none'}")
    return shipped[path.name]


def _summary(path: Path) -> str:
    """The first sentence of the comment at the head of a recipe."""
    comment = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return re.split(r"\. (?=[A-Z])|:  ", " ".join(line.removeprefix("# ") for line in comment))[0]
