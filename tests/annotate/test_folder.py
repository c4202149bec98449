"""`captioner annotate` as users run it, on a tiny random model."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from captioner import cli
from captioner.annotate import pipeline
from captioner.annotate.folder import OutputFile
from captioner.infer import tuning
from captioner.infer.captioner import Captioner
from captioner.infer.trained import TorchCaptionStream
from captioner.model.preprocessing import Preprocessing

INFER = Path(__file__).parents[2] / "infer.py"


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def annotate(
    tiny_captioner: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., Outcome]:
    """Run the command in this process."""

    def run(*arguments: object, model: Path = tiny_captioner) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["captioner", "annotate", "--model", str(model), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return Outcome(end.value.code or 0, *capsys.readouterr())

    return run


def noise(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(11):
        noise(number).save(folder / f"{number:02}.png")
    monkeypatch.chdir(tmp_path)
    return Path("photos")


def read_jsonl(path: str | Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Good and bad images of the kinds that real folders hold."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    noise(0).save(folder / "good.jpg")
    noise(1).save(folder / "truncated.jpg")
    whole = (folder / "truncated.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("this is no photo")
    noise(2).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(torch.arange(1600, dtype=torch.int32).reshape(40, 40).mul(40).numpy().astype("uint16")).save(
        folder / "deep.png"
    )
    rgba = noise(3).convert("RGBA")
    rgba.putalpha(100)
    rgba.save(folder / "rgba.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(4).save(folder / "rotated.jpg", exif=exif)
    noise(5).save(folder / "animated.gif", save_all=True, append_images=[noise(6)])
    monkeypatch.chdir(tmp_path)
    return Path("mixed")


def test_readable_images_are_captioned_and_the_others_listed(annotate, mixed):
    outcome = annotate(mixed, "-o", "out.jsonl", "--num-return-sequences", 2, "--min-new-tokens", 6)
    assert outcome.status == 3
    assert outcome.out == "" and outcome.err == "6 captioned, 2 failed\n"
    records = read_jsonl("out.jsonl")
    names = ["animated.gif", "cmyk.jpg", "deep.png", "good.jpg", "rgba.png", "rotated.jpg"]
    assert [record["image"] for record in records] == [f"mixed/{name}" for name in names]
    for record in records:
        assert list(record) == ["image", "caption", "confidence", "alternatives", "tags", "width", "height", "model"]
        (alternative,) = record["alternatives"]  # other tokens, which random weights may choose to spell the same text
        assert record["caption"] and alternative["caption"] and record["tags"] == []
        assert 0 < alternative["confidence"] < record["confidence"] <= 1
    assert (records[5]["width"], records[5]["height"]) == (40, 48), "upright, not as stored"
    errors = read_jsonl("out.errors.jsonl")
    assert [(error["image"], error["error"]) for error in errors] == [
        ("mixed/text.jpg", "not_an_image"),
        ("mixed/truncated.jpg", "truncated"),
    ]
    assert all(error["message"] and "\n" not in error["message"] for error in errors)
    assert sorted(os.listdir()) == ["mixed", "out.errors.jsonl", "out.jsonl"]


def test_without_an_output_file_a_table_goes_to_stdout_and_nothing_else(annotate, mixed):
    noise(7).save(mixed / "tab\there\nand line.png")
    outcome = annotate(mixed, "--min-new-tokens", 6)
    assert outcome.status == 3
    lines = [line.split("\t") for line in outcome.out.splitlines()]
    assert [len(line) for line in lines] == [2] * 7 and all(caption for _, caption in lines)
    assert lines[-1][0] == "mixed/tab\\x09here\\x0aand line.png"
    assert [line.split(":")[0] for line in outcome.err.splitlines()] == ["mixed/text.jpg", "mixed/truncated.jpg"]


def test_all_good_is_status_0_and_clears_an_earlier_errors_file(annotate, photos):
    Path("out.errors.jsonl").write_text("{}\n")
    Path("out.jsonl").write_text("old\n")
    assert annotate(photos, "-o", "out.jsonl").status == 0
    assert len(read_jsonl("out.jsonl")) == 11
    assert not Path("out.errors.jsonl").exists()


def test_input_order_is_kept_with_slow_workers_and_small_batches(annotate, photos, monkeypatch):
    read_image = pipeline.read_image

    def slow(path: str, preprocessing: Preprocessing) -> Image.Image:
        time.sleep(0.03 if path.endswith(("0.png", "5.png")) else 0)
        return read_image(path, preprocessing)

    whole = annotate(photos).out
    monkeypatch.setattr(pipeline, "read_image", slow)
    assert annotate(photos, "--batch-size", 2, "--num-workers", 4).out == whole
    assert [line.split("\t")[0] for line in whole.splitlines()] == [f"photos/{number:02}.png" for number in range(11)]


def test_a_large_photo_is_decoded_small_and_recorded_at_its_size(annotate, photos, monkeypatch):
    Image.effect_mandelbrot((1600, 1200), (-2, -1.2, 1, 1.2), 50).convert("RGB").save("large.jpg")
    decoded, resize = [], Preprocessing.resize

    def note(self, image):
        decoded.append(image.size)
        return resize(self, image)

    monkeypatch.setattr(Preprocessing, "resize", note)
    annotate("large.jpg", "-o", "out.jsonl")
    (record,) = read_jsonl("out.jsonl")
    assert (record["width"], record["height"]) == (1600, 1200)
    assert decoded == [(200, 150)], "an eighth, the least that a JPEG can be decoded at"


def test_words_of_the_command_line_are_those_of_the_captioner(annotate, photos, tiny_captioner):
    found = annotate(photos / "00.png", "--prefix", "a red", "--forced-word", "dog")
    words = {"prefix": "a red", "forced_words": ["dog"]}
    expected = Captioner.from_pretrained(tiny_captioner, "cpu")(photos / "00.png", **words)
    assert found.out == f"photos/00.png\t{expected.text}\n"
    assert expected.text.startswith("a red") and "dog" in expected.text


def test_csv_holds_what_jsonl_holds(annotate, photos):
    annotate(photos, "-o", "out.jsonl", "--num-return-sequences", 2)
    assert annotate(photos, "-o", "out.txt", "--format", "csv", "--num-return-sequences", 2).status == 0
    with open("out.txt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, record in zip(rows, read_jsonl("out.jsonl"), strict=True):
        assert row | {"alternatives": json.loads(row["alternatives"]), "tags": json.loads(row["tags"])} == {
            key: value if isinstance(value, list) else str(value) for key, value in record.items()
        }


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are text there")
def test_a_name_that_is_not_valid_text_survives(annotate, photos):
    name = os.fsdecode(b"caf\xe9.png")
    noise(0).save(photos / name)
    assert annotate(photos, "-o", "out.jsonl").status == 0
    assert read_jsonl("out.jsonl")[-1]["image"] == f"photos/{name}"
    assert annotate(photos, "-o", "out.csv").status == 0


def test_sampling_is_repeatable_and_independent_of_batches(annotate, photos):
    first = annotate(photos, "--do-sample", "--seed", 1)
    assert annotate(photos, "--do-sample", "--seed", 1, "--batch-size", 3).out == first.out
    assert annotate(photos, "--do-sample", "--seed", 2).out != first.out


@pytest.mark.skipif(not INFER.is_file(), reason="installed without the repository")
def test_infer_py_says_nothing_of_its_libraries_and_ends_as_the_command_does(photos, tiny_captioner):
    (photos / "03.png").write_bytes(b"broken")
    command = [sys.executable, INFER, photos / "02.png", photos / "03.png", "--model", tiny_captioner]
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    assert finished.returncode == 3
    assert finished.stdout.startswith("photos/02.png\t") and finished.stdout.count("\n") == 1
    assert finished.stderr.startswith("photos/03.png: ") and finished.stderr.count("\n") == 1


KILLED_AFTER_FOUR_RECORDS = """
import os, signal
from captioner import cli
from captioner.annotate.folder import OutputFile

write, records = OutputFile.write, []

def deadly(self, record):
    records.append("caption" in record)
    if sum(records) == 5 and os.environ.get("RANK", "1") == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, record)

OutputFile.write = deadly
cli.main()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_run_goes_on_where_it_stopped(annotate, photos, tiny_captioner, monkeypatch):
    (photos / "03.png").write_bytes(b"broken")
    whole = annotate(photos, "-o", "whole.jsonl", "--batch-size", 2)
    arguments = ["annotate", "--model", str(tiny_captioner), "photos", "-o", "out.jsonl", "--batch-size", "2"]
    killed = subprocess.run([sys.executable, "-c", KILLED_AFTER_FOUR_RECORDS, *arguments], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not Path("out.jsonl").exists() and not Path("out.errors.jsonl").exists()
    with open("out.jsonl.part/0.jsonl", "ab") as journal:
        journal.write(b'{"image": "photos/05.png", "caption": "cut')  # a line that was being written

    prepared, preprocess = [], Preprocessing.__call__

    def note(self, image):
        prepared.append(image)
        return preprocess(self, image)

    monkeypatch.setattr(Preprocessing, "__call__", note)
    outcome = annotate(photos, "-o", "out.jsonl", "--batch-size", 2)
    assert (outcome.status, outcome.err) == (whole.status, whole.err) == (3, "10 captioned, 1 failed\n")
    assert len(prepared) == 6, "four were done already"
    assert Path("out.jsonl").read_text() == Path("whole.jsonl").read_text()
    assert Path("out.errors.jsonl").read_text() == Path("whole.errors.jsonl").read_text()
    assert not list(Path().glob("*.part")) and not list(Path().glob("*.tmp"))


def launch(processes: int, *command: object) -> subprocess.CompletedProcess[str]:
    """Run Python on as many processes as torchrun starts them."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        [*launcher, *map(str, command)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.skipif(not INFER.is_file(), reason="installed without the repository")
def test_two_processes_write_the_file_that_one_writes_and_after_a_kill_any_number_goes_on(
    annotate, photos, tiny_captioner
):
    (photos / "03.png").write_bytes(b"broken")
    whole = annotate(photos, "-o", "whole.jsonl")
    Path("deadly.py").write_text(KILLED_AFTER_FOUR_RECORDS)
    arguments = ["annotate", "photos", "--model", tiny_captioner, "-o", "out.jsonl", "--batch-size", "2"]
    killed = launch(2, "deadly.py", *arguments)
    assert killed.returncode != 0 and sorted(os.listdir("out.jsonl.part")) == ["0.jsonl", "1.jsonl"]
    assert not Path("out.jsonl").exists() and not Path("out.errors.jsonl").exists()
    assert sum("caption" in record for record in read_jsonl("out.jsonl.part/1.jsonl")) == 4
    goes_on = launch(3, INFER, *arguments[1:])
    assert goes_on.returncode != 0 and re.search(r"exitcode *: 3", goes_on.stderr), "some images failed"
    assert goes_on.stderr.count(whole.err) == 1 and goes_on.stdout == ""
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert Path("out.errors.jsonl").read_bytes() == Path("whole.errors.jsonl").read_bytes()
    assert not list(Path().glob("*.part")) and not list(Path().glob("*.tmp"))


def test_several_processes_need_an_output_file(annotate, photos, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = annotate(photos)
    assert outcome.status == 2 and "2 processes need an output file to write to together: -o" in outcome.err


def test_a_lonely_process_of_a_launch_of_several_is_refused(annotate, photos, monkeypatch):
    for name, value in {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    outcome = annotate(photos, "-o", "out.jsonl")
    assert outcome.status == 2 and "torchrun --nproc-per-node N infer.py" in outcome.err


def stop(self, *arguments):
    raise KeyboardInterrupt


def test_a_journal_of_another_run_is_not_mixed_in(annotate, photos, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(TorchCaptionStream, "add", stop)
        outcome = annotate(photos, "-o", "out.jsonl")
        assert (outcome.status, outcome.err) == (130, "stopped; the same command goes on from out.jsonl.part\n")
    for other in (("--num-beams", 2), ("--precision", "bf16")):
        outcome = annotate(photos, "-o", "out.jsonl", *other)
        assert outcome.status == 2 and "left by a run with another model, precision or options" in outcome.err
    assert annotate(photos, "-o", "out.jsonl").status == 0


def test_an_output_that_another_run_has_finished_meanwhile_is_left_to_it(annotate, photos, monkeypatch):
    def close(sink: OutputFile) -> None:
        sink.journal.close()
        shutil.rmtree(sink.folder)
        sink.path.write_text("the other run's")

    monkeypatch.setattr(OutputFile, "close", close)
    outcome = annotate(photos, "-o", "out.jsonl")
    assert outcome == (2, "", "error: out.jsonl.part: gone; has another run written out.jsonl?\n")
    assert Path("out.jsonl").read_text() == "the other run's"


def test_many_images_are_captioned_as_a_probe_finds_fastest_and_a_resumed_run_as_it_began(
    annotate, photos, monkeypatch
):
    speeds = {"bf16": 2.0, "fp32": 1.0}
    monkeypatch.setattr("captioner.infer.captioner.WORTH_TUNING", 11)
    monkeypatch.setattr(tuning, "images_per_second", lambda captioner, *_, **__: speeds[captioner.precision])
    monkeypatch.setattr(tuning, "multiplies_bf16", lambda: True)
    assert annotate(photos, "-o", "out.jsonl").err == "precision bf16, batches of 16\n11 captioned, 0 failed\n"
    assert annotate(photos).err == "", "no word beside a table in a pipe"
    annotate(photos, "-o", "given.jsonl", "--precision", "bf16")
    assert Path("out.jsonl").read_text() == Path("given.jsonl").read_text()
    with monkeypatch.context() as patched:
        patched.setattr(TorchCaptionStream, "add", stop)
        assert annotate(photos, "-o", "out.jsonl").status == 130
    speeds["fp32"] = 3.0
    assert annotate(photos, "-o", "out.jsonl").err == "precision bf16, batches of 16\n11 captioned, 0 failed\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone"], "error: gone: no such file or folder"),
        (["empty"], "error: no images in empty"),
        (["photos", "-o", "out.xyz"], "error: out.xyz: format 'xyz' is unknown; choose one with --format: jsonl, csv"),
        (["photos", "-o", "nowhere/out.jsonl"], "error: nowhere/out.jsonl: there is no folder nowhere"),
        (["photos", "--format", "csv"], "error: --format needs an output file (-o)"),
        (["photos", "--top-k", "5"], "error: top_k must be left out unless do_sample is on; it is 5"),
        (["photos", "--device", "nonsense"], "error: device 'nonsense'"),
        (["photos", "--batch-size", "0"], "Invalid value for '--batch-size'"),
    ],
)
def test_usage_errors_are_one_line_and_status_2(annotate, photos, arguments, message):
    Path("empty").mkdir()
    outcome = annotate(*arguments)
    assert outcome.status == 2 and outcome.out == ""
    assert message in outcome.err and "Traceback" not in outcome.err
    assert sorted(os.listdir()) == ["empty", "photos"], "nothing half-written"


def test_infer_py_is_captioner_annotate(photos, tiny_captioner, annotate):
    script = Path(cli.__file__).parents[1] / "infer.py"
    if not script.exists():
        pytest.skip("installed without the repository")
    odd = b"photos/caf\xe9.png" if sys.platform == "linux" else b"photos/last.png"  # no valid UTF-8
    expected = annotate("photos").out.encode() + odd + annotate("photos/00.png").out.encode()[len("photos/00.png") :]
    noise(0).save(os.fsdecode(odd))
    command = [sys.executable, str(script), "photos", "--model", str(tiny_captioner)]
    result = subprocess.run(command, capture_output=True, check=False)
    assert (result.returncode, result.stderr, result.stdout) == (0, b"", expected)
