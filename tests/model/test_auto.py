"""transformers' Auto classes load a captioner, by `captioner.model.auto` or by the code saved in its folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from captioner.hub.load import load_model

CLASSES = {
    "AutoConfig": "CaptionerConfig",
    "AutoImageProcessor": "CaptionerImageProcessor",
    "AutoModelForImageTextToText": "CaptionerForConditionalGeneration",
    "AutoProcessor": "CaptionerProcessor",
    "AutoTokenizer": "CaptionerTokenizer",
}
CODE = """
import sys
import torch
import transformers

loaded = {name: getattr(transformers, name).from_pretrained(sys.argv[1], **options) for name in sys.argv[2:]}
for name, value in loaded.items():
    print(name, type(value).__module__.partition(".")[0], type(value).__name__)
pixels = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
print(loaded["AutoModelForImageTextToText"].generate(pixel_values=pixels, max_new_tokens=8).tolist())
"""


def printed(setup: str, folder: Path, modules: Path) -> list[str]:
    command = [sys.executable, "-c", setup + CODE, str(folder), *CLASSES]
    environment = os.environ | {"HF_MODULES_CACHE": str(modules)}  # transformers imports a folder's code from there
    finished = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()


def tokens(folder: Path) -> str:
    model, _ = load_model(folder, "tiny")
    pixels = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    return str(model.eval().generate(pixel_values=pixels, max_new_tokens=8).tolist())


@pytest.mark.parametrize("statement", ["import captioner.model.auto", "from captioner import CaptionerProcessor"])
def test_importing_captioners_classes_registers_them(tiny_captioner: Path, tmp_path: Path, statement: str) -> None:
    *found, generated = printed(f"{statement}\noptions = {{}}", tiny_captioner, tmp_path)
    assert found == [f"{auto} captioner {name}" for auto, name in CLASSES.items()]
    assert generated == tokens(tiny_captioner)


def test_a_folders_own_code_loads_it_where_captioner_is_not_installed(tiny_captioner: Path, tmp_path: Path) -> None:
    without_captioner = "import sys\nsys.modules['captioner'] = None\noptions = {'trust_remote_code': True}"
    *found, generated = printed(without_captioner, tiny_captioner, tmp_path)
    assert found == [f"{auto} transformers_modules {name}" for auto, name in CLASSES.items()]
    assert generated == tokens(tiny_captioner)


def test_captioner_never_runs_a_folders_code(tiny_captioner: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_captioner, tmp_path / "model")
    code = sorted(folder.glob("*.py"))
    for file in code:
        file.write_text("raise SystemExit('a model ran its own code')", encoding="utf-8")
    assert code
    load_model(folder, "model")
