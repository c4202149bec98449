import csv
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from captioner import cli
from captioner.infer.captioner import Captioner
from captioner.infer.torch_backend import TorchStream


@pytest.fixture
def evaluate(tiny_captioner: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def run(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(
            sys, "argv", ["captioner", "evaluate", "--model", str(tiny_captioner), *map(str, arguments)]
        )
        capsys.readouterr()  # what the fixtures printed
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (end.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def own_captions(tiny_captioner: Path, tmp_path: Path) -> dict[str, str]:
    """A data set whose reference for each photo is what the model says of it: whatever is mixed up costs points."""
    generator = torch.Generator().manual_seed(1)
    for number in range(5):
        pixels = torch.randint(0, 256, (40, 40, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{number}.png")
    captioner = Captioner.from_pretrained(tiny_captioner)
    paths = sorted(tmp_path.glob("*.png"))
    captions = {
        path.name: caption.text for path, caption in zip(paths, captioner(paths, min_new_tokens=12), strict=True)
    }
    assert len(set(captions.values())) == 5 and all(captions.values())
    with open(tmp_path / "data.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *reversed(captions.items())])
    return captions


def test_captions_are_scored_against_their_own_images(evaluate, own_captions, tmp_path):
    scores, predictions = tmp_path / "scores.json", tmp_path / "predictions.json"
    arguments = ["--data", tmp_path / "data.csv", "--min-new-tokens", 12, "-o", scores, "--predictions", predictions]
    status, out, err = evaluate(*arguments, "--batch-size", 2, "--metrics", "Bleu_4,ROUGE_L", "--tokenization", "char")
    assert (status, err) == (0, "")
    assert "Bleu_4" in out and "1.0000" in out
    assert {name: value["score"] for name, value in json.loads(scores.read_text())["scores"].items()} == pytest.approx(
        {"Bleu_4": 1.0, "ROUGE_L": 1.0}
    )
    written = {row["image_id"]: row["caption"] for row in json.loads(predictions.read_text())}
    assert written == own_captions


def test_an_image_that_cannot_be_read_costs_itself(evaluate, own_captions, tmp_path):
    (tmp_path / "3.png").write_bytes(b"broken")
    (tmp_path / "1.png").unlink()
    with open(tmp_path / "data.csv", "a") as file:
        file.write("0.png,\n")  # a caption that is none
    scores, predictions = tmp_path / "scores.json", tmp_path / "predictions.json"
    arguments = ["--data", tmp_path / "data.csv", "--min-new-tokens", 12, "-o", scores, "--predictions", predictions]
    status, out, err = evaluate(*arguments, "--metrics", "Bleu_1", "--tokenization", "char")
    assert status == 3 and "3 images" in out
    left_out = err.splitlines()
    assert len(left_out) == 3 and all(line.startswith("left out: ") for line in left_out)
    assert "3.png: not an image" in err and "1.png" in err and "the caption is empty" in err
    written = {row["image_id"]: row["caption"] for row in json.loads(predictions.read_text())}
    assert written == {name: own_captions[name] for name in ("0.png", "2.png", "4.png")}
    report = json.loads(scores.read_text())
    assert report["images"] == 3 and report["scores"]["Bleu_1"]["score"] == pytest.approx(1)
    assert [f"left out: {where}: {reason}" for where, reason in report["left_out"].items()] == left_out


def test_images_of_which_none_can_be_read_are_an_error(evaluate, own_captions, tmp_path):
    for path in tmp_path.glob("*.png"):
        path.write_bytes(b"broken")
    status, out, err = evaluate("--data", tmp_path / "data.csv", "-o", tmp_path / "scores.json")
    assert (status, out) == (2, "") and "no image can be read; the first is" in err and "4.png: not an image" in err
    assert not (tmp_path / "scores.json").exists()


@pytest.mark.parametrize("option", ["-o", "--predictions"])
def test_a_place_where_nothing_can_be_written_is_refused_before_anything_is_captioned(
    evaluate, own_captions, tmp_path, monkeypatch, option
):
    monkeypatch.setattr(TorchStream, "add", None)
    status, _, err = evaluate("--data", tmp_path / "data.csv", option, tmp_path / "no" / "where.json")
    assert status == 2 and f"where.json: there is no folder {tmp_path}" in err


def test_one_file_for_two_outputs_is_refused_before_anything_is_captioned(
    evaluate, own_captions, tmp_path, monkeypatch
):
    monkeypatch.setattr(TorchStream, "add", None)
    same = tmp_path / "x.json", tmp_path / "photos" / ".." / "x.json"
    (tmp_path / "photos").mkdir()
    status, _, err = evaluate("--data", tmp_path / "data.csv", "-o", same[0], "--predictions", same[1])
    assert status == 2 and "x.json: named for two outputs" in err


def test_an_unknown_metric_is_refused_before_anything_is_captioned(evaluate, own_captions, tmp_path, monkeypatch):
    monkeypatch.setattr(TorchStream, "add", None)
    status, _, err = evaluate("--data", tmp_path / "data.csv", "--metrics", "CIDEr,FOO")
    assert status == 2 and "unknown metric 'FOO'" in err
