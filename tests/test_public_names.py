"""`captioner` exports its public names, typed, and loads no heavy library before one is used."""

import subprocess
import sys
from pathlib import Path

import pytest

import captioner


def test_importing_captioner_and_its_command_loads_no_heavy_library() -> None:
    code = "import sys, captioner.cli; print({'torch', 'transformers', 'timm', 'onnxruntime'} & sys.modules.keys())"
    finished = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert finished.stdout == "set()\n"


@pytest.mark.parametrize("name", captioner.__all__)
def test_a_public_name_is_the_thing_of_that_name(name: str) -> None:
    assert name in dir(captioner)
    assert getattr(captioner, name).__name__ == name


def test_no_public_name_is_that_of_a_room_which_importing_it_would_put_in_its_place() -> None:
    rooms = {path.stem for path in Path(captioner.__file__).parent.iterdir()}
    assert not rooms & set(captioner.__all__)


def test_train_is_the_function_whatever_was_imported_before() -> None:
    code = "from captioner.training import trainer; from captioner import train; assert train is trainer.train"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'captioner' has no attribute 'Captoiner'"):
        captioner.Captoiner  # noqa: B018


def test_type_checkers_read_the_packages_annotations() -> None:
    assert (Path(captioner.__file__).parent / "py.typed").is_file()
