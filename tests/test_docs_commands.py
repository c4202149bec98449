"""Every command of README and docs runs, in the order of its page and with the page's own words, on tiny data.

Shell blocks run through the command line's own entry, in this process; Python blocks are executed. What is not run is
named below with the reason.
"""

import json
import os
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from captioner import cli
from captioner.cli.recipes import find_recipe
from captioner.config import TokenizerConfig, load_config
from captioner.data.tokenizer_training import train_tokenizer
from captioner.export import onnx
from captioner.hub.find import BUNDLED, find_model
from captioner.model.auto import (
    CaptionerConfig,
    CaptionerForConditionalGeneration,
    CaptionerImageProcessor,
    CaptionerProcessor,
    CaptionerTokenizer,
)

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="installed without the repository")

NOT_RUN = {
    "docs/dataset.md": "needs a person's decisions: the tests of data sets make them",
    "docs/lab-notes.md": "a history: its trainings take days",
    "docs/results.md": "trainings of hours on Flickr8k",
    "docs/performance.md": "measurements, by hand",
}
"""Pages whose commands are only checked for their options, by test_docs.py."""

EXCEPTIONS = {
    r"python3 -m venv|pip install|\.venv/": "CI runs them: .ci/run and packaging/check.sh",
    r"hf auth login": "asks for a password",
    r"docker ": "the workflows build and run the images",
    r"curl |ollama ": "asks a server; the tests of serve and review do",
    r"captioner (serve|review)": "runs until it is stopped; tests of its own start it",
    r"--engine ray": "starts a cluster; tests/test_ray.py does",
    r"captioner convert SOURCE": "tests/convert makes such checkpoints and converts them",
    r"--model converted|pretrained=converted|export converted": "follows from a conversion",
    r"--num_processes|--nproc-per-node|--config_file": "several processes: tests/test_accelerate_configs.py",
    r"NAME\.yaml": "a placeholder",
    r"everyday|^export ": "data that are not at hand",
    r"--adapter runs/adapted": "the tests of adapters train and merge one",
    r"python benchmarks/": "measurements, by hand",
    r"captioner calibrate": "needs more photos than are quick; its own tests run it",
    r"OWNER/NAME.*pipeline|--model OWNER/NAME": "tests/hub/test_publish.py loads a published model",
    r"\bhead -\d+ photos|^find |^sqlite3 ": "a program of the system",
    r"captioner lint": "its status is 3 if it finds something: tests/annotate/test_alt_text.py",
}

WORDS = {"MODEL": "default", "DATA": "photos/captions.csv", "…": ""}
"""What a reader puts in the place of these."""

SHAPE = {
    "encoder_name": "vit_tiny_patch16_224",
    "encoder_kwargs": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "image_size": 32,
    "encoder_layers": 0,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
"""Of the captioner that stands for the bundled one."""

QUICKER = {
    r"configs/tiny\.yaml": ["phases.0.epochs=1"],
    r"train.* (--config finetune|configs/finetune)": ["phases.0.epochs=1", "data.num_workers=0"],
    r"--config language": [
        *("phases.0.epochs=1", "phases.1.epochs=1", "data.num_workers=0", "tokenizer.vocab_size=300"),
        *(f"model.{name}={value}" for name, value in SHAPE.items()),
    ],
    r"draw_shapes": ["--images", "40"],
}
"""What a command gets besides, so that it ends in a second."""

BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def pages() -> list[str]:
    found = ["README.md", *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md")))]
    return [page for page in found if page not in NOT_RUN and BLOCK.search((ROOT / page).read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def small_captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands for the bundled model: as long captions as its own, of words, by a tiny network."""
    folder = tmp_path_factory.mktemp("small_captioner")
    captions = ["a photo of a dog", "a man and a dog on a beach", "a red square on a table"]
    train_tokenizer(captions, TokenizerConfig(vocab_size=64, model_type="char"), folder / "tokenizer.model")
    tokenizer = CaptionerTokenizer(str(folder / "tokenizer.model"))
    torch.manual_seed(0)
    config = CaptionerConfig(vocab_size=len(tokenizer), max_position_embeddings=48, **SHAPE)
    CaptionerForConditionalGeneration(config).save_pretrained(folder)
    CaptionerProcessor(CaptionerImageProcessor(image_size=32), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def place(tmp_path: Path, small_captioner: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A clone with what a reader has: photos with captions, data sets, results of captioning."""
    for name in ("configs", "examples", "infer.py", "train.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    draw = np.random.default_rng(0)
    names = [f"{number}.png" for number in range(8)]
    for folder in ("photos", "scans", "rsicd/images", "flickr8k/images"):
        (tmp_path / folder).mkdir(parents=True)
        for name in names:
            Image.fromarray(draw.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(tmp_path / folder / name)
    for name in ("photo.jpg", "a.jpg", "b.jpg"):
        Image.fromarray(draw.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(tmp_path / name)
    splits = ["train"] * 6 + ["val"] * 2
    rows = "".join(
        f"{name},a man and a dog number {name[0]},{split}\n" for name, split in zip(names, splits, strict=True)
    )
    (tmp_path / "photos" / "captions.csv").write_text("image,caption,split\n" + rows)
    karpathy = {
        "images": [
            {"filename": name, "split": split, "sentences": [{"raw": "a man and a dog"}, {"raw": "a dog"}]}
            for name, split in zip(names, splits, strict=True)
        ]
    }
    for path in ("rsicd/dataset.json", "flickr8k/dataset_flickr8k.json", "train.json"):
        (tmp_path / path).write_text(json.dumps(karpathy))
    references = {
        "images": [{"id": number} for number in range(4)],
        "annotations": [{"id": n, "image_id": n, "caption": f"a dog runs on grass {n}"} for n in range(4)],
    }
    (tmp_path / "references.json").write_text(json.dumps(references))
    for name in ("results.json", "second.json"):
        captions = [{"image_id": number, "caption": f"a dog runs {name[0]}"} for number in range(4)]
        (tmp_path / name).write_text(json.dumps(captions))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAPTIONER_FLICKR8K", str(tmp_path / "flickr8k"))
    monkeypatch.setattr("captioner.hub.find.BUNDLED", small_captioner)
    monkeypatch.setattr("captioner.hub.publish.upload", lambda folder, repository, private: f"https://hub/{repository}")
    quick = ["Bleu_4", "ROUGE_L", "CIDEr"]  # METEOR reads its word lists for seconds
    monkeypatch.setattr("captioner.metrics.score.default_metrics", lambda tokenization: quick)
    AcceleratorState._reset_state(reset_partial_state=False)
    yield tmp_path
    AcceleratorState._reset_state(reset_partial_state=False)


@pytest.mark.parametrize("page", pages())
def test_every_command_of_the_page_runs(
    page: str,
    place: Path,
    exported: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def export_model(model: str, output: Path, precision: str, adapter: str | None) -> onnx.Agreement:
        shutil.copytree(exported, output)  # tests/export exports for real, which takes seconds
        return onnx.Agreement(0.0, 1.0)

    monkeypatch.setattr(onnx, "export_model", export_model)
    monkeypatch.setattr(onnx, "export_in_place", lambda model: onnx.Agreement(0.0, 1.0))  # after trainings, too
    if page.endswith(("python-api.md", "publish.md", "export.md")):
        shutil.copytree(find_model("default")[0], place / "runs" / "finetune" / "best")
        run_command("python examples/draw_shapes.py shapes/", monkeypatch)
    names: dict[str, object] = {}
    for language, text in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
        if language == "python":
            if "OWNER/NAME" not in text and ".explain(" not in text and "captioner.ray" not in text:
                exec(compile(text.replace("…", "0"), page, "exec"), names)
            continue
        for command in commands(text):
            if not any(re.search(pattern, command) for pattern in EXCEPTIONS):
                status = run_command(command, monkeypatch)
                assert status == 0, f"{command}\n{capsys.readouterr().err}"


def commands(block: str) -> list[str]:
    """The commands of a shell block, without comments, optional brackets and what their output is piped into."""
    lines = re.sub(r"(^|\s)#.*", r"\1", block.replace("\\\n", " ")).splitlines()
    joined = [part.strip() for line in lines for part in line.split("&&")]
    return [re.sub(r"\s\|.*", "", command).translate({ord("["): None, ord("]"): None}) for command in joined if command]


def run_command(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    extra = [word for pattern, words in QUICKER.items() if re.search(pattern, command) for word in words]
    words = [WORDS.get(word, os.path.expandvars(word)) for word in shlex.split(command)] + extra
    while words[0] in ("python", "accelerate", "launch"):
        words.pop(0)
    program = words[0]
    if program.startswith("examples/"):
        monkeypatch.setattr(sys, "argv", words)
        runpy.run_path(str(ROOT / program), run_name="__main__")
        return 0
    arguments = {"captioner": words[1:], "infer.py": ["annotate", *words[1:]], "train.py": ["train", *words[1:]]}
    monkeypatch.setattr(sys, "argv", ["captioner", *arguments[program]])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_every_exception_is_still_needed() -> None:
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in pages()]
    listed = [command for text in texts for language, block in BLOCK.findall(text) for command in commands(block)]
    unused = [pattern for pattern in EXCEPTIONS if not any(re.search(pattern, command) for command in listed)]
    assert set(unused) <= {r"docker "}


def test_the_recipe_for_another_language_has_the_bundled_model_s_shape() -> None:
    recipe, bundled = load_config(find_recipe(Path("language"))).model, CaptionerConfig.from_pretrained(BUNDLED)
    fields = ("encoder_name", "image_size", "encoder_layers", "encoder_pooling", "hidden_size", "num_attention_heads")
    assert {name: getattr(recipe, name) for name in fields} == {name: getattr(bundled, name) for name in fields}
