"""An exported folder captions without torch, and says what is wrong with itself."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from captioner.errors import CaptionerError

for library in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(library, reason=f"an export is made for these tests: {library}, of 'captioner[export]'")

from captioner.export.runtime import ExportedCaptioner  # noqa: E402

WITHOUT_TORCH = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        library = name.partition(".")[0]
        if library in {"torch", "torchvision", "transformers", "timm"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=library)

sys.meta_path.insert(0, Absent())
from captioner.export.runtime import ExportedCaptioner

print(ExportedCaptioner(sys.argv[1])([sys.argv[2]], num_beams=3)[0].text)
"""


def test_captions_come_where_torch_and_transformers_are_absent(exported, photos):
    command = [sys.executable, "-c", WITHOUT_TORCH, str(exported), str(photos[0])]
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == ExportedCaptioner(exported)([photos[0]], num_beams=3)[0].text + "\n"


INFER = Path(__file__).parents[2] / "infer.py"


@pytest.mark.skipif(not INFER.is_file(), reason="installed without the repository")
def test_infer_py_captions_with_an_export_and_does_not_load_torch_where_it_is_installed(exported, photos):
    command = [sys.executable, "-X", "importtime", str(INFER), str(photos[0]), "--model", str(exported)]
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == f"{photos[0]}\t{ExportedCaptioner(exported)([photos[0]], num_beams=3)[0].text}\n"
    imported = {line.rpartition("|")[2].strip() for line in finished.stderr.splitlines()}
    assert "onnxruntime" in imported
    assert not {"torch", "torchvision", "transformers", "timm"} & imported


def damage(folder: Path, what: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    if what == "no config":
        (folder / "config.json").unlink()
    elif what == "another format":
        (folder / "config.json").write_text(json.dumps(config | {"format_version": 99}))
    elif what == "no decoder":
        (folder / "decoder.onnx").unlink()
    elif what == "cut encoder":
        (folder / "encoder.onnx").write_bytes((folder / "encoder.onnx").read_bytes()[:-100])
    elif what == "no preprocessing":
        (folder / "processor_config.json").write_text("{}")
    elif what == "no tokenizer":
        (folder / "tokenizer.model").unlink()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no config", "not an exported model"),
        ("another format", "exported in format 99"),
        ("no decoder", r"decoder\.onnx"),
        ("cut encoder", r"encoder\.onnx"),
        ("no preprocessing", "image_processor"),
        ("no tokenizer", r"tokenizer\.model"),
    ],
)
def test_a_folder_that_is_no_export_is_explained_in_one_line(exported, tmp_path, what, message):
    folder = tmp_path / "export"
    shutil.copytree(exported, folder)
    damage(folder, what)
    with pytest.raises(CaptionerError, match=message) as caught:
        ExportedCaptioner(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 2}, "unknown option beams; there are num_beams"),
        ({"num_beams": 0}, "num_beams at least"),
        ({"min_new_tokens": 30}, "writes at most 16 tokens"),
    ],
)
def test_options_out_of_range_are_refused(exported, photos, options, message):
    with pytest.raises(CaptionerError, match=message):
        ExportedCaptioner(exported)([photos[0]], **options)
