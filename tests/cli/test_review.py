"""`captioner review`: what it prints, refuses, and keeps when it is killed."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from albums import add_photo

from captioner.annotate.project import Project


@pytest.fixture
def album(tmp_path: Path) -> Path:
    with Project(tmp_path / "album.captions", create=True) as project, project.transaction():
        for number in range(5):
            add_photo(project, f"{number}.png", f"photo {number}")
    return tmp_path / "album.captions"


@contextmanager
def reviewing(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and the URL it prints."""
    command = [sys.executable, "-m", "captioner", "review", *map(str, arguments), "--no-browser", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = iter(process.stderr.readline, "")
        line = next(line for line in lines if "http" in line)
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_every_acknowledged_edit_survives_kill_9(album):
    """500 edits are on their way when the server is killed among them."""
    acknowledged: list[tuple[int, str]] = []
    with reviewing(album, "--reviewer", "ann") as (process, url):
        with httpx.Client(base_url=url.partition("/?")[0], timeout=20) as client:
            assert client.get(url).status_code == 200
            versions = dict.fromkeys(range(1, 6), 1)
            try:
                for number in range(500):
                    image, text = number % 5 + 1, f"edit {number}"
                    body = {"id": image, "version": versions[image], "verdict": "edited", "text": text}
                    answer = client.post("/api/decide", json=body).raise_for_status().json()
                    versions[image] = answer["cards"][0]["version"]
                    acknowledged.append((image, text))
                    if number == 300:
                        threading.Timer(0.02, os.kill, (process.pid, signal.SIGKILL)).start()
            except httpx.TransportError:
                pass
        assert process.wait(20) == -signal.SIGKILL
    assert 300 < len(acknowledged) < 500
    with Project(album) as project:
        texts = {(caption.image, caption.text) for image in range(1, 6) for caption in project.captions(image)}
        decided = sum(len(project.history(image)) for image in range(1, 6))
    assert set(acknowledged) <= texts
    assert len(acknowledged) <= decided <= len(acknowledged) + 1, "one may have been written and not acknowledged"


def test_a_share_is_assigned_and_ctrl_c_stops_quietly(album):
    with reviewing(album, "--reviewer", "ann", "--assign", "2/3") as (process, url):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", url)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in (0, -signal.SIGINT, 130)
        assert process.stderr is not None and "Traceback" not in process.stderr.read()
    with Project(album) as project:
        assert [image.reviewer for image in project.images()] == [None, "ann", None, None, "ann"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.captions"], "no such project"),
        (["{album}", "--host", "0.0.0.0"], "give --password-file"),
        (["{album}", "--assign", "4/3"], "share 4 of 3"),
        (["{album}", "--assign", "half"], "give a share such as 2/3"),
        (["{album}", "--host", "127.0.0.1", "--password-file", "none"], "cannot be read"),
        (["{album}", "--host", "256.0.0.1", "--password-file", "{password}"], "256.0.0.1"),
        (["{album}", "--reviewer", " "], "give a name"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_cost_one_line(album, tmp_path, arguments, message):
    from typer.testing import CliRunner

    from captioner.cli import app
    from captioner.errors import CaptionerError

    (tmp_path / "password").write_text("correct horse\n")
    given = [argument.format(album=album, password=tmp_path / "password") for argument in arguments]
    result = CliRunner().invoke(app, ["review", *given, "--no-browser"])
    assert isinstance(result.exception, CaptionerError) and message in str(result.exception)
    assert "\n" not in str(result.exception)
