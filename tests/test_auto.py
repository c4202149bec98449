"""Whoever imports captioner finds it in transformers' Auto classes, and does not wait for that."""

import subprocess
import sys
from pathlib import Path

import pytest


def run(code: str, *arguments: str | Path) -> str:
    """What the code prints in an interpreter of its own."""
    finished = subprocess.run([sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_importing_captioner_and_its_command_loads_no_heavy_library() -> None:
    code = "import sys, captioner.cli; print({'torch', 'transformers', 'timm', 'onnxruntime'} & sys.modules.keys())"
    assert run(code) == "set()\n"


AUTO_CLASSES = """
import sys
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

for auto in (AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer):
    print(type(auto.from_pretrained(sys.argv[1])).__name__)
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import captioner",
        "import transformers.models.auto.modeling_auto, captioner",
        "import captioner, captioner.model.layers",  # transformers imports its auto classes amid this
    ],
)
def test_auto_classes_know_captioner_in_whatever_order_both_are_imported(tiny_captioner: Path, imports: str) -> None:
    assert run(imports + AUTO_CLASSES, tiny_captioner).split() == [
        "CaptionerConfig",
        "CaptionerImageProcessor",
        "CaptionerForConditionalGeneration",
        "CaptionerProcessor",
        "CaptionerTokenizer",
    ]
