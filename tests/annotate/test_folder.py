"""`captioner annotate` as users run it, on a tiny random model."""

import csv
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from captioner import cli
from captioner.annotate import pipeline
from captioner.annotate.folder import OutputFile
from captioner.infer import autotune, torch_backend
from captioner.infer.captioner import Captioner
from captioner.infer.torch_backend import TorchStream
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
        assert list(record) == [
            *("image", "caption", "confidence", "alternatives", "tags", "width", "height", "model"),
            *("words", "flags", "abstained"),
        ]
        assert [word["word"] for word in record["words"]] == record["caption"].split() and not record["abstained"]
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


def test_a_jpeg_without_end_marker_is_captioned_and_flagged(annotate, photos, caplog):
    noise(0).save("whole.jpg")
    Path("unended.jpg").write_bytes(Path("whole.jpg").read_bytes()[:-2])
    assert annotate("whole.jpg", "unended.jpg", "-o", "out.jsonl").status == 0
    whole, unended = read_jsonl("out.jsonl")
    assert unended["caption"] == whole["caption"] and not Path("out.errors.jsonl").exists()
    assert caplog.messages == ["unended.jpg: the JPEG has no end marker, but the picture is whole"]


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
    expected = Captioner.from_pretrained(tiny_captioner, device="cpu")(photos / "00.png", **words)
    assert found.out == f"photos/00.png\t{expected.text}\n"
    assert expected.text.startswith("a red") and "dog" in expected.text


def test_csv_holds_what_jsonl_holds(annotate, photos):
    annotate(photos, "-o", "out.jsonl", "--num-return-sequences", 2)
    assert annotate(photos, "-o", "out.txt", "--format", "csv", "--num-return-sequences", 2).status == 0
    with open("out.txt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, record in zip(rows, read_jsonl("out.jsonl"), strict=True):
        nested = {key: json.loads(row[key]) for key in ("alternatives", "tags", "words", "flags")}
        assert row | nested == {
            key: value if isinstance(value, list | dict) else str(value) for key, value in record.items()
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
    assert outcome.status == 2 and "2 processes need an output file that they write together: -o" in outcome.err


def test_a_lonely_process_of_a_launch_of_several_is_refused(annotate, photos, monkeypatch):
    for name, value in {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    outcome = annotate(photos, "-o", "out.jsonl")
    assert outcome.status == 2 and "torchrun --nproc-per-node N infer.py" in outcome.err


def stop(self, *arguments):
    raise KeyboardInterrupt


def stop_after(captions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the next runs when they have written this many captions."""
    write, written = OutputFile.write, []

    def counting(self, record):
        written.append("caption" in record)
        if sum(written) > captions:
            raise KeyboardInterrupt
        write(self, record)

    monkeypatch.setattr(OutputFile, "write", counting)


def another_s(photos: Path) -> str:
    """A folder with other photos, some of the same names."""
    other = photos.with_name("other")
    other.mkdir()
    for number in range(6, 14):
        noise(100 + number).save(other / f"{number:02}.png")
    return str(other)


def stopped(annotate, monkeypatch, *arguments: object, after: int = 5) -> None:
    with monkeypatch.context() as patched:
        stop_after(after, patched)
        assert annotate(*arguments, "-o", "out.jsonl", "--batch-size", 1).status == 130
    assert sum("caption" in record for record in read_jsonl("out.jsonl.part/0.jsonl")) >= after


def of_another_folder(annotate, photos, monkeypatch):
    stopped(annotate, monkeypatch, another_s(photos))


def of_a_folder_of_the_same_name(annotate, photos, monkeypatch):
    target = Path("out.jsonl").absolute()
    with monkeypatch.context() as elsewhere:
        Path("place").mkdir()
        elsewhere.chdir("place")
        shutil.copytree("../photos", "photos")  # times of last change and sizes are the same
        for number in range(11):
            noise(100 + number).convert("RGB").save(f"photos/{number:02}.png")
            same_times(Path(f"../photos/{number:02}.png"), Path(f"photos/{number:02}.png"))
        stopped_at = str(target)
        stop_after(5, elsewhere)
        assert annotate("photos", "-o", stopped_at, "--batch-size", 1).status == 130


def same_times(source: Path, path: Path) -> None:
    os.utime(path, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))


def of_photos_that_changed_since(annotate, photos, monkeypatch):
    stopped(annotate, monkeypatch, photos)
    noise(200).save(photos / "00.png")
    (photos / "01.png").write_bytes(b"broken now")
    (photos / "02.png").unlink()
    (photos / "03.png").rename(photos / "3.png")


def of_photos_that_changed_without_a_trace_in_size_or_time(annotate, photos, monkeypatch):
    for number in range(11):
        noise(number).save(photos / f"{number:02}.bmp")
        (photos / f"{number:02}.png").unlink()
    stopped(annotate, monkeypatch, photos)
    one, two = photos / "00.bmp", photos / "01.bmp"
    shutil.copy2(one, "kept.bmp")
    one.write_bytes(two.read_bytes())
    same_times(Path("kept.bmp"), one)


def of_fewer_photos(annotate, photos, monkeypatch):
    (photos / "05.png").rename("later.png")
    (photos / "01.png").rename("mended.png")
    (photos / "01.png").write_bytes(b"broken")
    stopped(annotate, monkeypatch, photos)
    Path("later.png").rename(photos / "05.png")
    Path("mended.png").rename(photos / "01.png")


def of_more_photos(annotate, photos, monkeypatch):
    stopped(annotate, monkeypatch, another_s(photos), photos, after=12)


def of_one_that_went_on_from_another(annotate, photos, monkeypatch):
    stopped(annotate, monkeypatch, photos, after=2)
    noise(200).save(photos / "01.png")
    stopped(annotate, monkeypatch, another_s(photos), photos, "--num-beams", 2, after=9)


def with_other_options_and_photos(annotate, photos, monkeypatch):
    stopped(annotate, monkeypatch, another_s(photos), "--num-beams", 2)


def of_more_processes(annotate, photos, monkeypatch):
    stopped(annotate, monkeypatch, another_s(photos))
    shutil.copy("out.jsonl.part/0.jsonl", "out.jsonl.part/1.jsonl")
    stopped(annotate, monkeypatch, photos)
    Path("out.jsonl.part/0.jsonl").rename("out.jsonl.part/7.jsonl")
    noise(200).save(photos / "01.png")


def torn(annotate, photos, monkeypatch):
    stopped(annotate, monkeypatch, photos)
    with open("out.jsonl.part/0.jsonl", "ab") as journal:
        journal.write(b'{"image": "photos/06.png", "caption": "cut\n' + bytes(4096))


def not_of_this_version(annotate, photos, monkeypatch):
    Path("out.jsonl.part").mkdir()
    records = [{"model": "default", "precision": "fp32", "options": {}}, {"image": "photos/00.png", "caption": "old"}]
    for number, journal in enumerate((records, [[{}], *records], [5], [])):
        Path(f"out.jsonl.part/{number}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in journal))
    Path("out.jsonl.part/4.jsonl").write_bytes(bytes(4096))


def of_runs_that_finished(annotate, photos, monkeypatch):
    for name in ("out.jsonl", "out.errors.jsonl", "out.jsonl.tmp", "out.errors.jsonl.tmp"):
        Path(name).write_text('{"image": "photos/00.png", "caption": "old"}\n')


LEFTOVERS = [
    of_another_folder,
    of_a_folder_of_the_same_name,
    of_photos_that_changed_since,
    of_photos_that_changed_without_a_trace_in_size_or_time,
    of_fewer_photos,
    of_more_photos,
    of_one_that_went_on_from_another,
    with_other_options_and_photos,
    of_more_processes,
    torn,
    not_of_this_version,
    of_runs_that_finished,
]


@pytest.mark.parametrize("leave", LEFTOVERS, ids=[leave.__name__ for leave in LEFTOVERS])
def test_whatever_an_earlier_run_left_the_files_are_those_of_a_clean_folder(annotate, photos, monkeypatch, leave):
    leave(annotate, photos, monkeypatch)
    outcome = annotate(photos, "-o", "out.jsonl", "--batch-size", 1)
    Path("clean").mkdir()
    clean = annotate(photos, "-o", "clean/out.jsonl", "--batch-size", 1)
    assert outcome == clean and len(read_jsonl("out.jsonl")) >= 9
    assert Path("out.jsonl").read_text() == Path("clean/out.jsonl").read_text()
    errors = [Path(folder, "out.errors.jsonl") for folder in (".", "clean")]
    assert [path.exists() for path in errors] == [clean.status == 3] * 2
    assert clean.status == 0 or errors[0].read_text() == errors[1].read_text()
    assert not Path("out.jsonl.part").exists()


def test_what_an_earlier_run_captioned_is_not_captioned_again(annotate, photos, monkeypatch):
    stopped(annotate, monkeypatch, photos, after=6)
    noise(200).save(photos / "00.png")  # changed
    noise(201).save(photos / "99.png")  # new
    captioned, read_image = [], pipeline.read_image
    monkeypatch.setattr(pipeline, "read_image", lambda path, *more: captioned.append(path) or read_image(path, *more))
    Path("out.jsonl.part/notes.txt").write_text("mine")
    assert annotate("photos/*.png", "-o", "out.jsonl").status == 0  # other words for the same photos
    assert sorted(captioned) == [f"photos/{number:02}.png" for number in (0, 6, 7, 8, 9, 10, 99)]
    assert os.listdir("out.jsonl.part") == ["notes.txt"], "what is not ours stays"


def test_a_photo_that_is_moved_away_while_the_run_lasts_keeps_its_caption(annotate, photos, monkeypatch):
    close = OutputFile.close

    def close_late(sink: OutputFile) -> None:
        (photos / "03.png").unlink()
        close(sink)

    monkeypatch.setattr(OutputFile, "close", close_late)
    assert annotate(photos, "-o", "out.jsonl").err == "11 captioned, 0 failed\n"
    assert [record["image"] for record in read_jsonl("out.jsonl")][-1] == "photos/03.png"


def test_another_model_under_the_same_name_does_not_go_on(annotate, photos, monkeypatch, tiny_captioner):
    model = Path(shutil.copytree(tiny_captioner, "model"))
    with monkeypatch.context() as patched:
        stop_after(5, patched)
        assert annotate(photos, "-o", "out.jsonl", "--batch-size", 1, model=model).status == 130
    weights = load_file(model / "model.safetensors")
    save_file({key: value * 1.01 for key, value in weights.items()}, model / "model.safetensors", {"format": "pt"})
    outcome = annotate(photos, "-o", "out.jsonl", model=model)
    assert outcome.status == 2 and "left by a run with another model, precision or options" in outcome.err
    (model / "README.md").write_text("a card")
    shutil.copy(tiny_captioner / "model.safetensors", model)
    assert annotate(photos, "-o", "out.jsonl", model=model).status == 0


def test_a_stopped_run_of_other_photos_does_not_choose_the_precision(annotate, photos, monkeypatch):
    stopped(annotate, monkeypatch, another_s(photos), "--precision", "bf16")
    annotate(photos, "-o", "fp32.jsonl", "--precision", "fp32")
    assert annotate(photos, "-o", "out.jsonl").status == 0
    assert Path("out.jsonl").read_text() == Path("fp32.jsonl").read_text()


def test_what_is_said_to_go_on_is_on_disk(annotate, photos, monkeypatch):
    synced, fsync = [], os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    stopped(annotate, monkeypatch, photos)
    assert Path("out.jsonl.part/0.jsonl").stat().st_ino in synced


def test_each_output_has_an_errors_file_of_its_own(annotate, photos):
    (photos / "03.png").write_bytes(b"broken")
    outputs = ["trip.2023", "trip.2024", "trip.jsonl", "trip.csv", "trip.JSONL"]
    for output in outputs:
        assert annotate(photos, "-o", output, "--format", "jsonl").status == 3
    noise(3).save(photos / "03.png")
    assert annotate(photos, "-o", "trip.2024", "--format", "jsonl").status == 0
    names = ["trip.2023.errors.jsonl", "trip.errors.jsonl", "trip.csv.errors.jsonl", "trip.JSONL.errors.jsonl"]
    assert sorted(os.listdir()) == sorted(["photos", *outputs, *names])
    outcome = annotate(photos, "-o", "trip.errors.jsonl")
    assert outcome.status == 2 and "another run's errors file" in outcome.err


@pytest.mark.skipif(os.name == "nt", reason="POSIX has these kinds of files")
def test_links_lead_to_the_files_that_are_written(annotate, photos):
    (photos / "03.png").write_bytes(b"broken")
    Path("disk").mkdir()
    Path("out.jsonl").symlink_to("disk/run.jsonl")
    Path("disk/run.jsonl").write_text("old")
    Path("out.errors.jsonl").symlink_to("/dev/null")
    assert annotate(photos, "-o", "out.jsonl").status == 3
    assert len(read_jsonl("disk/run.jsonl")) == 10 and os.listdir("disk") == ["run.jsonl"]
    noise(3).save(photos / "03.png")
    assert annotate(photos, "-o", "out.jsonl").status == 0
    assert len(read_jsonl("disk/run.jsonl")) == 11
    assert os.readlink("out.errors.jsonl") == "/dev/null" and Path("/dev/null").is_char_device()


@pytest.mark.skipif(os.name == "nt", reason="POSIX has these kinds of files")
@pytest.mark.parametrize("format_name", ["jsonl", "csv"])
def test_a_pipe_gets_what_a_file_would_hold_and_stderr_the_failures(annotate, photos, format_name):
    (photos / "03.png").write_bytes(b"broken")
    os.mkfifo("pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(Path("pipe").read_bytes()))
    reader.start()
    outcome = annotate(photos, "-o", "pipe", "--format", format_name)
    reader.join()
    annotate(photos, "-o", "file", "--format", format_name)
    assert read == [Path("file").read_bytes()]
    assert outcome.status == 3 and outcome.out == ""
    assert outcome.err.startswith("photos/03.png: not an image") and outcome.err.endswith("10 captioned, 1 failed\n")
    assert sorted(os.listdir()) == ["file", "file.errors.jsonl", "photos", "pipe"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_devices_stay_devices(annotate, photos):
    assert annotate(photos, "-o", "/dev/null", "--format", "csv").status == 0
    outcome = annotate(photos, "-o", "/dev/full", "--format", "jsonl")
    assert (outcome.status, outcome.err) == (2, "error: /dev/full: cannot be written: No space left on device\n")
    assert all(Path(device).is_char_device() for device in ("/dev/null", "/dev/full"))
    assert not list(Path("/dev").glob("*jsonl*")) and not list(Path("/dev").glob("*.part"))


def test_a_full_disk_ends_the_run_in_one_line_and_the_run_can_go_on(annotate, photos, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(OutputFile, "__init__", on_a_small_disk(OutputFile.__init__))
        outcome = annotate(photos, "-o", "out.jsonl", "--batch-size", 1)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err == "error: out.jsonl.part/0.jsonl: cannot be written: No space left on device\n"
    assert annotate(photos, "-o", "out.jsonl").err == "11 captioned, 0 failed\n"


def on_a_small_disk(init: Callable[..., None]) -> Callable[..., None]:
    """A journal that has room for 1,500 bytes."""

    def opened(self, *arguments):
        init(self, *arguments)
        write, name = self.journal.write, self.journal.name

        class Small:
            def __getattr__(self, attribute):
                return getattr(journal, attribute)

            def __enter__(self):
                return journal.__enter__()

            def __exit__(self, *error):
                return journal.__exit__(*error)

            def write(self, text):
                if os.path.getsize(name) + len(text) > 1500:
                    write(text[:40])
                    journal.flush()
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return write(text)

        journal, self.journal = self.journal, Small()

    return opened


@pytest.mark.parametrize("output", ["out.jsonl", "out.errors.jsonl", "out.jsonl.part"])
def test_a_place_that_is_taken_is_refused_before_anything_is_captioned(annotate, photos, monkeypatch, output):
    monkeypatch.setattr(TorchStream, "add", None)
    if output == "out.jsonl.part":
        Path(output).write_text("a file")
    else:
        Path(output).mkdir()
    outcome = annotate(photos, "-o", "out.jsonl")
    assert outcome.status == 2 and outcome.err.startswith(f"error: {output}: ") and outcome.err.count("\n") == 1
    assert sorted(os.listdir()) == [output, "photos"]


def test_a_photo_is_not_written_over(annotate, photos):
    before = (photos / "00.png").read_bytes()
    outcome = annotate(photos / "01.png", "--format", "jsonl", "-o", photos / "00.png")  # as `-o photos/*.png` has it
    assert outcome == (2, "", "error: photos/00.png: an image; -o names the file to write\n")
    assert (photos / "00.png").read_bytes() == before


def test_several_processes_cannot_write_one_stream(annotate, photos, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = annotate(photos, "-o", os.devnull, "--format", "jsonl")
    assert outcome.status == 2 and "2 processes need an output file that they write together: -o" in outcome.err


@pytest.fixture
def infer_in_a_shell(photos, tiny_captioner):
    """Run a script in which INFER is `infer.py` with a tiny model."""
    if not INFER.is_file() or shutil.which("bash") is None:
        pytest.skip("needs infer.py and a shell")

    def run(script: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
        script = script.replace("INFER", f"{sys.executable} {INFER} --model {tiny_captioner} --batch-size 1")
        command = ["bash", "-c", f"set -o pipefail; {script}"]
        return subprocess.run(command, env=os.environ | environment, capture_output=True, check=False)

    return run


def test_a_reader_that_leaves_ends_the_run_without_a_word(infer_in_a_shell):
    finished = infer_in_a_shell("INFER photos photos | head -1")
    assert finished.stdout.startswith(b"photos/00.png\t") and finished.stdout.count(b"\n") == 1
    assert finished.stderr == b""
    finished = infer_in_a_shell("INFER photos -o /dev/stdout --format jsonl | head -1")
    assert finished.stdout.startswith(b'{"image": "photos/00.png", ') and finished.stderr == b""


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("INFER photos >&-", b"error: stdout is closed; write to a file with -o\n"),
        ("INFER photos >/dev/full", b"error: stdout: cannot be written: No space left on device\n"),
        ("INFER photos 2>&- >&-", b""),
    ],
)
def test_a_stdout_that_takes_nothing_is_one_line(infer_in_a_shell, script, message):
    finished = infer_in_a_shell(script)
    assert (finished.returncode, finished.stderr) == (2, message)


def test_without_stdout_and_stderr_a_file_is_written_all_the_same(infer_in_a_shell):
    assert infer_in_a_shell("INFER photos -o out.jsonl <&- >&- 2>&-").returncode == 0
    assert len(read_jsonl("out.jsonl")) == 11


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text elsewhere")
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_name_that_the_console_lacks_is_escaped(infer_in_a_shell, photos, encoding):
    for name in ("caf\u00e9.png", "\u5199\u771f.png", os.fsdecode(b"\xff.png")):
        noise(0).save(photos / name)
    (photos / "caf\u00e9 2.png").write_bytes(b"broken")
    finished = infer_in_a_shell("INFER photos/[!0-9]*", PYTHONIOENCODING=encoding, PYTHONUTF8="1")
    e_acute = b"\xe9" if encoding == "cp1252" else b"\\xe9"
    names = [b"caf" + e_acute + b".png", b"\\u5199\\u771f.png", b"\xff.png"]
    assert sorted(line.split(b"\t")[0] for line in finished.stdout.splitlines()) == sorted(
        b"photos/" + name for name in names
    )
    assert finished.stderr.startswith(b"photos/caf" + e_acute + b" 2.png: not an image") and finished.returncode == 3


def test_a_journal_of_another_run_is_not_mixed_in(annotate, photos, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(TorchStream, "add", stop)
        outcome = annotate(photos, "-o", "out.jsonl")
        assert (outcome.status, outcome.err) == (130, "stopped; repeat the command to resume from out.jsonl.part\n")
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
    monkeypatch.setattr(autotune, "images_per_second", lambda backend, *_, **__: speeds[backend.precision])
    monkeypatch.setattr(torch_backend, "multiplies_bf16", lambda: True)
    assert annotate(photos, "-o", "out.jsonl").err == "precision bf16, batches of 16\n11 captioned, 0 failed\n"
    assert annotate(photos).err == "", "no word beside a table in a pipe"
    annotate(photos, "-o", "given.jsonl", "--precision", "bf16")
    assert Path("out.jsonl").read_text() == Path("given.jsonl").read_text()
    with monkeypatch.context() as patched:
        patched.setattr(TorchStream, "add", stop)
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
    script = Path(cli.__file__).parents[2] / "infer.py"
    if not script.exists():
        pytest.skip("installed without the repository")
    odd = b"photos/caf\xe9.png" if sys.platform == "linux" else b"photos/last.png"  # no valid UTF-8
    expected = annotate("photos").out.encode() + odd + annotate("photos/00.png").out.encode()[len("photos/00.png") :]
    noise(0).save(os.fsdecode(odd))
    command = [sys.executable, str(script), "photos", "--model", str(tiny_captioner)]
    result = subprocess.run(command, capture_output=True, check=False)
    assert (result.returncode, result.stderr, result.stdout) == (0, b"", expected)
