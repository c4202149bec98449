import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import captioner
from captioner.cli import main

IMAGES = {1: "a dog runs on the beach", 2: "two cats sleep on a couch", 3: "a red bus drives down the street"}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["captioner", "score", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    def results(name: str, captions: dict[int, str]) -> None:
        entries = [{"image_id": image, "caption": caption} for image, caption in captions.items()]
        (tmp_path / name).write_text(json.dumps(entries))

    annotations = [{"image_id": image, "caption": f"{caption} today"} for image, caption in IMAGES.items()]
    (tmp_path / "references.json").write_text(json.dumps({"annotations": annotations}))
    results("good.json", IMAGES)
    results("same.json", dict.fromkeys(IMAGES, "a dog"))
    results("short.json", {1: "a dog"})
    return tmp_path


def test_prints_a_table_and_writes_json(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = files / "scores.json"
    fast = "Bleu_4,CIDEr"
    arguments = (files / "good.json", files / "references.json", "--other", files / "same.json", "--metrics", fast)
    assert run(monkeypatch, *arguments, "-o", out, "--train-captions", files / "same.json") == 0
    printed = capsys.readouterr().out
    assert "CIDEr" in printed and "difference" in printed and "tokenization ptb" in printed
    report = json.loads(out.read_text())
    assert report["images"] == 3 and report["tokenization"] == "ptb"
    assert list(report["scores"]) == ["Bleu_4", "CIDEr"]
    assert report["scores"]["CIDEr"]["score"] > report["other"]["scores"]["CIDEr"]["score"]
    assert report["comparison"]["CIDEr"]["difference"] > 0
    assert report["other"]["diversity"]["repeated_share"] == 1
    assert report["diversity"]["novel_share"] == 1 and report["other"]["diversity"]["novel_share"] == 0
    assert set(report["per_image"]) == {"1", "2", "3"}
    assert not list(files.glob("*.part"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("short.json",), "short.json: 2 images without a caption: 2, 3"),
        (("none.json",), "none.json: No such file"),
        (("good.json", "--metrics", "BLEU"), "unknown metric 'BLEU'"),
        (("good.json", "--tokenization", "word"), "tokenization 'word' is none of"),
    ],
)
def test_mistakes_cost_one_line_and_status_2(
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert run(monkeypatch, files / arguments[0], files / "references.json", *arguments[1:]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err


def test_metrics_load_neither_torch_nor_transformers() -> None:
    # The package's own __init__ is not looked at here: a stand-in takes its place.
    code = (
        "import sys, types; package = types.ModuleType('captioner'); package.__path__ = [sys.argv[1]];"
        "sys.modules['captioner'] = package; import captioner.metrics.files;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'rich')))"
    )
    package = Path(__file__).parents[2] / "captioner"
    assert subprocess.run([sys.executable, "-c", code, str(package)], check=False).returncode == 0


def test_what_infer_writes_is_scored_against_coco(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captions = json.loads((files / "references.json").read_text())
    captions["images"] = [{"id": i, "file_name": f"COCO_val2014_{i:012}.jpg"} for i in IMAGES]
    (files / "captions_val2014.json").write_text(json.dumps(captions))
    names = {i: f"photos{separator}COCO_val2014_{i:012}.jpg" for i, separator in zip(IMAGES, "/\\/", strict=True)}
    lines = [{"image": names[i], "caption": IMAGES[i], "alternatives": [], "width": 640} for i in reversed(IMAGES)]
    (files / "out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (files / "out.csv").write_text("image,caption\n" + "".join(f"{names[i]},{IMAGES[i]}\n" for i in IMAGES))
    reports = []
    for name in ("good.json", "out.jsonl", "out.csv"):
        arguments = (files / name, files / "captions_val2014.json", "--metrics", "CIDEr", "-o", files / "scores.json")
        assert run(monkeypatch, *arguments) == 0
        reports.append(json.loads((files / "scores.json").read_text()))
    assert reports[0] == reports[1] == reports[2] and set(reports[0]["per_image"]) == {"1", "2", "3"}


def test_captions_of_the_test_split_count_as_novel(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [{"cocoid": i, "split": "test", "sentences": [{"raw": text}]} for i, text in IMAGES.items()]
    images.append({"cocoid": 4, "split": "restval", "sentences": [{"raw": "A dog runs on the beach."}]})
    images.append({"cocoid": 5, "split": "train", "sentences": [{"raw": "a cat"}]})
    karpathy = files / "dataset.json"
    karpathy.write_text(json.dumps({"images": images}))
    arguments = ("--split", "test", "--train-captions", karpathy, "--metrics", "Bleu_1", "-o", files / "scores.json")
    assert run(monkeypatch, files / "good.json", karpathy, *arguments) == 0
    assert json.loads((files / "scores.json").read_text())["diversity"]["novel_share"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("same_stem", [True, False])
def test_columns_are_told_apart_by_whole_names(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], same_stem: bool
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    long = "a_run_with_a_long_name_[bold]" * 4
    paths = []
    for number in (1, 2):
        path = files / f"{long}{number}" / "results.json" if same_stem else files / f"{long}{number}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text((files / "good.json").read_text())
        paths.append(path)
    assert run(monkeypatch, paths[0], files / "references.json", "--other", paths[1], "--metrics", "Bleu_1") == 0
    out = capsys.readouterr().out
    for path in paths:
        assert out.count(str(path) if same_stem else path.stem) == 3


def in_a_shell(files: Path, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`$score` is the command, without its results file."""
    root = str(Path(captioner.__file__).parents[1])
    score = f"{sys.executable} -c 'from captioner.cli import main; main()' score"
    end = "references.json --metrics Bleu_4"
    script = "set -o pipefail\n" + command.replace("SCORE", score).replace("END", end)
    return subprocess.run(
        ["bash", "-c", script],
        cwd=files,
        env=os.environ | {"PYTHONPATH": root} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs a shell")
@pytest.mark.parametrize(
    ("command", "status", "err"),
    [
        ("SCORE good.json END -o s.json | true", 1, ""),
        ("SCORE good.json END -o s.json | head -1", None, ""),
        ("SCORE good.json END -o s.json >&-", 0, ""),
        ("SCORE good.json END -o s.json > /dev/full", 2, "error: stdout: cannot be written: No space left on device\n"),
        ("SCORE good.json END -o s.json 2>&-", 0, ""),
        ("SCORE good.json END -o s.json <&- >&- 2>&-", 0, ""),
    ],
)
def test_the_file_is_written_whatever_becomes_of_stdout(
    files: Path, command: str, status: int | None, err: str
) -> None:
    finished = in_a_shell(files, command)
    assert finished.stderr == err and status in (None, finished.returncode)
    assert json.loads((files / "s.json").read_text())["images"] == 3


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs a shell")
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_name_that_the_console_lacks_is_escaped(files: Path, encoding: str) -> None:
    (files / "写真.json").write_text((files / "good.json").read_text())
    finished = in_a_shell(files, "SCORE 写真.json END; SCORE 写真.jsonl END", PYTHONIOENCODING=encoding)
    shown = "写真" if encoding == "utf-8" else "\\u5199\\u771f"
    assert shown in finished.stdout and f"{shown}.jsonl" in finished.stderr
    assert finished.stderr.count("\n") == 1 and finished.returncode == 2


def test_a_place_where_nothing_can_be_written_is_refused_before_the_work(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("captioner.metrics.score.score_captions", None)
    assert run(monkeypatch, files / "good.json", files / "references.json", "-o", files / "no" / "s.json") == 2
    assert "s.json: there is no folder" in capsys.readouterr().err
