"""What is published captions the same elsewhere, with captioner and without it, and its card says where it is from."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from hub_server import Hub, serving
from huggingface_hub import ModelCard
from PIL import Image

from captioner import Captioner, cli
from captioner.errors import CaptionerError
from captioner.hub.publish import prepare_upload, upload
from captioner.hub.run_card import SAMPLES, run_card
from captioner.infer.onnx_backend import OnnxBackend

SEARCH = {"num_beams": 3, "max_new_tokens": 40}
RECIPE = {
    "output_dir": "/home/someone/runs/birds",
    "data": {
        "train": [{"path": "hf:someone/birds"}, {"path": "/home/someone/photos/captions.csv"}],
        "validation": {"path": "/home/someone/photos/captions.csv"},
    },
    "pretrained": "default",
    "phases": [
        {"name": "warm", "steps": 10, "learning_rates": {"decoder": 1e-3}},
        {"repeat": 2, "phases": [{"name": "joint", "epochs": 3, "learning_rates": {"trunk": 1e-5, "decoder": 1e-4}}]},
    ],
}
SCORES = {
    "images": 8,
    "train_images": 160,
    "num_beams": 1,
    "scores": {"CIDEr": {"score": 0.5, "low": 0.4, "high": 0.6}, "Bleu_4": {"score": 0.2, "low": 0.1, "high": 0.3}},
}
HOSTILE = "a | <script>alert(1)</script> **bird** [x](http://evil) `y`"
PIPELINE = """
import sys
sys.modules["captioner"] = None
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
folder, *photos = sys.argv[1:]
captions = pipeline("image-text-to-text", folder, trust_remote_code=True)
for photo in photos:
    print(captions(photo, text="")[0]["generated_text"])
print(captions(photos[0], text="a red")[0]["generated_text"])
for found in captions(images=photos[:2], text=["a", "a red"], max_new_tokens=6):
    print(found["generated_text"])
"""


@pytest.fixture(scope="module")
def published(tiny_captioner: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    best = run / "best"
    best.mkdir()
    for file in tiny_captioner.iterdir():
        if file.suffix != ".py":  # as of a training by an installation that wrote no code
            (best / file.name).write_bytes(file.read_bytes())
    (best / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (best / "scores.json").write_text(json.dumps(SCORES))
    (best / SAMPLES).mkdir()
    Image.new("RGB", (8, 8)).save(best / SAMPLES / "0.jpg")
    (best / SAMPLES / "captions.json").write_text(json.dumps({"0.jpg": HOSTILE}))
    folder = tmp_path_factory.mktemp("published")
    prepare_upload(run, folder, "someone/birds", SEARCH, "cc-by-4.0")
    return folder


def test_transformers_pipeline_captions_as_captioner_does_where_captioner_is_not_installed(
    published: Path, photos: list[Path], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", PIPELINE, str(published), *map(str, photos[:2])]
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr
    captioner = Captioner.from_pretrained(published)
    first, second = photos[:2]
    expected = [
        captioner(first).text,
        captioner(second).text,
        captioner(first, prefix="a red").text,
        captioner(first, prefix="a", max_new_tokens=6).text,
        captioner(second, prefix="a red", max_new_tokens=6).text,
    ]
    assert [" ".join(line.split()) for line in finished.stdout.splitlines()] == expected


def test_what_is_published_captions_as_before(published: Path, tiny_captioner: Path, photos: list[Path]) -> None:
    before, after = Captioner.from_pretrained(tiny_captioner)(photos), Captioner.from_pretrained(published)(photos)
    assert [caption.text for caption in after] == [caption.text for caption in before]


def test_the_card_tells_data_recipe_scores_and_licence(published: Path) -> None:
    card = ModelCard.load(published / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.datasets == ["someone/birds"]
    assert card.data.pipeline_tag == "image-text-to-text" and card.data.library_name == "transformers"
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"CIDEr": 0.5, "Bleu_4": 0.2}
    for said in ("| CIDEr | 0.5000 | 0.4000–0.6000 |", "160 images", "10 steps", "3 epochs, 2 times", "`default`"):
        assert said in card.text
    for heading in ("Use", "Training data", "Training", "Scores", "Limits", "Licence"):
        assert f"## {heading}\n" in card.text
    assert "/home/someone" not in str(card), "folders of the machine it was trained on stay there"
    assert "/home/someone" not in (published / "recipe.yaml").read_text()


def test_captions_on_the_card_are_text(published: Path) -> None:
    text = ModelCard.load(published / "README.md").text
    row = next(line for line in text.splitlines() if "samples/0.jpg" in line)
    assert "<script" not in row and "[x](" not in row and row.count("|") - row.count("\\|") == 2


def test_photos_stay_at_home_where_they_are_not_wanted(published: Path, tmp_path: Path) -> None:
    prepare_upload(published, tmp_path / "out", "someone/birds", SEARCH, photos=False)
    assert not (tmp_path / "out" / SAMPLES).exists()
    assert "samples/" not in (tmp_path / "out" / "README.md").read_text()


def test_a_model_without_a_training_keeps_what_its_card_says(tiny_captioner: Path) -> None:
    assert "states no licence" in run_card(tiny_captioner, "tiny", "someone/tiny", None).text
    before = ModelCard("---\nlicense: mit\nlanguage: de\n---\n\n# Old\n\nKnows birds.\n")
    card = run_card(tiny_captioner, "tiny", "someone/tiny", before)
    assert "Knows birds." in card.text and "`mit`" in card.text and card.data.language == "de"


def test_only_captioners_are_published(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CaptionerError, match="a 'bert' model"):
        prepare_upload(tmp_path, tmp_path / "out", "someone/x", SEARCH)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub()) as hub:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        yield hub


def test_a_pushed_model_captions_the_same_from_a_fresh_cache(
    published: Path, photos: list[Path], tmp_path: Path, hub: Hub
) -> None:
    assert upload(published, "someone/birds", token="hf_secret").startswith(f"{hub.address}/someone/birds/commit/")
    assert ("POST", "/api/validate-yaml") in hub.requests
    files = hub.commits["someone/birds"][hub.refs["someone/birds"]["main"]]
    assert files.keys() == {path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file()}
    assert {"modeling_captioner.py", "recipe.yaml", "scores.json", f"{SAMPLES}/0.jpg"} <= files.keys()
    again = Captioner.from_pretrained("someone/birds", cache_dir=tmp_path / "fresh")
    expected = [caption.text for caption in Captioner.from_pretrained(published)(photos)]
    assert [caption.text for caption in again(photos)] == expected


def test_graphs_go_along_on_request_and_caption_without_torch(
    published: Path, photos: list[Path], tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(sys, "argv", ["captioner", "push", str(published), "someone/birds", "--graphs", "--no-photos"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    again = Captioner.from_pretrained("someone/birds", cache_dir=tmp_path / "fresh")
    assert isinstance(again.backend, OnnxBackend)
    expected = [caption.text for caption in Captioner.from_pretrained(published)(photos)]
    assert [caption.text for caption in again(photos)] == expected


def test_a_hub_that_cannot_be_reached_costs_one_line(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CaptionerError, match=r"^someone/birds: not uploaded: [^\n]+$"):
        upload(published, "someone/birds")


@pytest.mark.parametrize("name", ["birds", "a/b/c", "someone/b rds"])
def test_a_name_that_is_none_of_the_hub_s_is_refused(
    published: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.ModelCard.validate", lambda card: None)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CaptionerError, match="not uploaded"):
        upload(published, name)
