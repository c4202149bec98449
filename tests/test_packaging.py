"""What the wheels carry, what PyPI's page shows, and that an installed package finds its recipes."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.wheel import WheelBuilder

from captioner.cli import recipes
from captioner.cli.recipes import find_recipe, shipped_recipes
from captioner.config import load_config
from captioner.errors import CaptionerError

ROOT = Path(__file__).parents[1]
SERVER = ROOT / "packaging" / "onnx"
pytestmark = pytest.mark.skipif(not SERVER.is_dir(), reason="installed without the repository")


def wheel(project: Path) -> dict[str, Path]:
    """The files of a distribution's wheel, and where each comes from."""
    return {file.distribution_path: Path(file.path) for file in WheelBuilder(str(project)).recurse_included_files()}


def requirements(project: Path) -> dict[str, str]:
    """Each library that a distribution needs, and its bounds."""
    listed: list[str] = tomllib.loads((project / "pyproject.toml").read_text())["project"]["dependencies"]
    return dict(re.fullmatch(r"([\w-]+)(.*)", entry).groups() for entry in listed)  # type: ignore[union-attr, misc]


def test_the_wheel_has_the_package_and_the_recipes_and_nothing_else() -> None:
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "captioner").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    shipped = {f"captioner/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert wheel(ROOT).keys() == package | shipped
    assert {"captioner/py.typed", "captioner/assets/default/model.safetensors"} <= package
    assert WheelBuilder(str(ROOT)).metadata.core.license_files == ["LICENSE"]


def test_pypi_s_page_has_no_relative_link() -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", WheelBuilder(str(ROOT)).metadata.core.readme)
    assert len(links) > 10
    assert [link for link in links if not link.startswith("https://")] == []


def test_the_server_s_wheel_is_the_same_package_without_torch() -> None:
    assert wheel(SERVER) == wheel(ROOT)
    assert not {"torch", "torchvision", "transformers", "timm"} & requirements(SERVER).keys()


def test_the_server_s_bounds_are_those_of_the_project() -> None:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = dict(re.match(r"([\w-]+)(.*)", entry).groups() for entry in project["optional-dependencies"]["export"])  # type: ignore[union-attr]
    bounds = extras | requirements(ROOT)
    assert requirements(SERVER).items() <= bounds.items()
    server: dict[str, Any] = tomllib.loads((SERVER / "pyproject.toml").read_text())["project"]
    assert server["optional-dependencies"]["serve"] == project["optional-dependencies"]["serve"]


def test_a_recipe_is_found_by_its_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(find_recipe(Path("finetune"))).output_dir == "runs/finetune"
    own = tmp_path / "finetune"
    own.write_text("mine")
    assert find_recipe(Path("finetune")) == Path("finetune"), "a file comes first"
    with pytest.raises(CaptionerError, match=r"neither a file nor a recipe; there are .*tiny"):
        find_recipe(Path("no_such_recipe"))


def test_an_installed_package_has_its_recipes_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "captioner" / "configs"
    inside.mkdir(parents=True)
    (inside / "mine.yaml").write_text("output_dir: x")
    monkeypatch.setattr(recipes, "FOLDERS", (inside, ROOT / "configs"))
    assert shipped_recipes() == {"mine": inside / "mine.yaml"}


def test_recipes_are_listed_with_what_they_train(capsys: pytest.CaptureFixture[str]) -> None:
    recipes.recipes()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list((ROOT / "configs").glob("*.yaml")))
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines)
    recipes.recipes("tiny")
    assert capsys.readouterr().out == (ROOT / "configs" / "tiny.yaml").read_text()
