"""The documentation names commands, options, recipes, files and links that exist."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from captioner.cli import app
from captioner.cli.recipes import find_recipe
from captioner.config import RunConfig, load_config

ROOT = Path(__file__).parents[1]
PATTERNS = ("*.md", "docs/**/*.md", "examples/*/*.md", "captioner/assets/*/*.md")
PAGES = [page for pattern in PATTERNS for page in sorted(ROOT.glob(pattern))]
OURS = re.compile(r"https://(?:github\.com|raw\.githubusercontent\.com)/captioner-project/captioner/(?:blob/)?main/")
"""How READMEs, which PyPI shows too, link to files of the repository."""

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="installed without the repository")

SCRIPTS = {"train.py": "train", "infer.py": "annotate"}
"""Scripts at the repository's root, and the sub-command that each runs."""


def blocks(language: str) -> list[tuple[Path, str]]:
    """(page, text) of every code block in a language."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [(page, text) for page in PAGES for text in pattern.findall(page.read_text(encoding="utf-8"))]


def our_commands() -> list[list[str]]:
    """Every `captioner ...`, `infer.py ...` and `train.py ...` of a shell block: the sub-command and its arguments."""
    found = []
    for _, text in blocks("(?:ba)?sh"):
        without_comments = re.sub(r"(^|\s)#.*", r"\1", text.replace("\\\n", " "))
        lexer = shlex.shlex(without_comments, posix=True, punctuation_chars=";&|\n")
        lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
        command: list[str] = []
        for word in [*lexer, "\n"]:
            if set(word) <= set(";&|\n"):
                found += [arguments for arguments in [_sub_command(command)] if arguments]
                command = []
            else:
                command.append(word)
    return found


def _sub_command(words: list[str]) -> list[str]:
    for number, word in enumerate(words):
        if word == "captioner":
            return words[number + 1 :]
        if Path(word).name in SCRIPTS:
            return [SCRIPTS[Path(word).name], *words[number + 1 :]]
    return []


@pytest.mark.parametrize("words", our_commands(), ids=" ".join)
def test_every_command_and_option_shown_exists(words: list[str]) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert words[0] in commands
    command = commands[words[0]]
    if hasattr(command, "commands"):  # `captioner dataset build`
        command = command.commands[words[1]]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert {word for word in words[1:] if word.startswith("-") and word != "-"} <= known


def test_every_command_named_in_a_sentence_exists() -> None:
    named = {name for page in PAGES for name in re.findall(r"`captioner ([a-z]+)", page.read_text(encoding="utf-8"))}
    assert named <= set(get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("words", [words for words in our_commands() if words[0] == "train"], ids=" ".join)
def test_every_training_shown_is_a_recipe_and_keys_that_it_takes(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = words[words.index("--config") + 1]
    if recipe in ("configs/NAME.yaml", "my.yaml"):
        return
    recipe = str(find_recipe(Path(recipe)))
    for variable in set(re.findall(r"\$\{(\w+)\}", (ROOT / recipe).read_text(encoding="utf-8"))):
        monkeypatch.setenv(variable, "somewhere")
    load_config(ROOT / recipe, [word for word in words if re.match(r"[\w.]+=", word) and "$" not in word])


@pytest.mark.parametrize("text", [text for _, text in blocks("python")])
def test_every_python_example_is_valid_and_imports_what_exists(text: str) -> None:
    lines = ast.parse(text).body
    imports: list[ast.stmt] = [line for line in lines if isinstance(line, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), "example", "exec"), {})


@pytest.mark.parametrize("text", [text for _, text in blocks("yaml")])
def test_every_recipe_shown_is_one(text: str) -> None:
    basis = {
        "output_dir": "runs/x",
        "data": {"train": {"path": "a.csv"}, "validation": {"path": "a.csv"}},
        "phases": [{"name": "joint", "epochs": 1, "learning_rates": {"decoder": 1e-3}}],
    }
    RunConfig.model_validate(basis | yaml.safe_load(text))


def anchors(page: Path) -> set[str]:
    """The fragments by which GitHub links to a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_heading_of_the_repository(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        base = ROOT if OURS.match(target) else page.parent
        target = OURS.sub("", target)
        if target.startswith("http"):
            continue
        name, _, fragment = target.partition("#")
        linked = (base / name).resolve() if name else page
        assert linked.exists(), target
        assert not fragment or fragment in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(
        r"(?<![\w/])((?:configs|examples|benchmarks|tests|docs|captioner)/[\w/.-]*\.(?:py|yaml|md))", text
    )
    assert [name for name in named if name != "configs/NAME.yaml" and not (ROOT / name).is_file()] == []


def test_the_readme_is_short_and_holds_the_two_commands_that_ci_runs() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert sum(line.startswith("python3 -m venv .venv ") for line in lines) == 2


def test_both_readmes_have_the_same_commands() -> None:
    def code(page: str) -> list[str]:
        return [re.sub(r"(^|\s)#.*", "", text) for found, text in blocks("(?:sh|python)") if found == ROOT / page]

    assert len(code("README.md")) > 10
    assert code("README.zh.md") == code("README.md")


def test_contributing_lists_every_room_of_the_package() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^  (\w+)(?:/|\.py) ", text, re.MULTILINE))
    rooms = {
        path.stem for path in (ROOT / "captioner").iterdir() if (path / "__init__.py").exists() or path.suffix == ".py"
    }
    assert listed == rooms - {"__init__", "__main__"} | {"assets"}


def test_docs_find_something_to_check() -> None:
    assert len(our_commands()) > 40
    assert len(blocks("yaml")) > 5
