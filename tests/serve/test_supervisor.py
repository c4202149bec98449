"""`captioner serve` as users start it: worker processes on one port, killed, restarted and stopped under load."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from captioner import Captioner


class Started:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        self.url = ""

    def read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"serving on (\S+)", "".join(self.lines))):
            assert self.process.poll() is None and time.monotonic() < deadline, "".join(self.lines)
            time.sleep(0.05)
        self.url = found.group(1)

    def workers(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]

    def ready(self) -> dict[str, Any]:
        answer: dict[str, Any] = httpx.get(f"{self.url}/readyz", timeout=20).json()
        return answer


@contextmanager
def started(*arguments: str | Path, **environment: str) -> Iterator[Started]:
    command = [sys.executable, "-c", "from captioner.cli import main; main()", "serve", *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment)
    try:
        yield Started(process)
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.kill()
        process.kill()
        process.wait()


class Load(threading.Thread):
    """A client that asks for captions over one connection until the server is gone, and keeps what it got."""

    def __init__(self, url: str, photo: Path) -> None:
        super().__init__(daemon=True)
        self.url, self.photo = url, photo
        self.captions: list[str] = []
        self.refused: list[int] = []
        self.lost: list[str] = []
        self.is_over = False

    def run(self) -> None:
        files = {"images": self.photo.read_bytes()}
        with httpx.Client(base_url=self.url, timeout=60) as client:
            while not self.is_over:
                try:
                    answer = client.post("/v1/captions", files=files)
                except httpx.ConnectError:  # nobody accepted it
                    return
                except httpx.HTTPError as error:
                    self.lost.append(repr(error))
                    continue
                if answer.status_code == 200:
                    self.captions.append(answer.json()["results"][0]["caption"])
                else:
                    self.refused.append(answer.status_code)


def test_workers_share_a_port_are_replaced_when_killed_and_stop_when_all_is_answered(exported, photos):
    expected = Captioner.from_pretrained(exported)(photos)
    with started(exported, "--port", "0", "--workers", "2") as server:
        server.wait_until_ready()
        wait_for(lambda: server.ready()["workers"]["ready"] == 2)
        clients = [Load(server.url, photo) for photo in photos]
        for client in clients:
            client.start()
        wait_for(lambda: all(len(client.captions) > 3 for client in clients))

        victim = server.workers()[0]
        victim.send_signal(signal.SIGKILL)
        wait_for(lambda: server.ready() == degraded(restarts=1))
        answered = sum(len(client.captions) for client in clients)
        wait_for(lambda: sum(len(client.captions) for client in clients) > answered + 20)
        wait_for(lambda: server.ready()["workers"] == {"ready": 2, "configured": 2, "restarts": 1})
        assert any('"worker_died"' in line for line in server.lines)
        assert sum(len(client.lost) for client in clients) <= len(clients), "what the killed worker had accepted"

        for client in clients:
            client.lost.clear()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        for client, caption in zip(clients, expected, strict=True):
            client.join(20)
            assert not client.is_alive() and client.lost == [] and client.refused == []
            assert set(client.captions) == {caption.text}
    assert not any("Traceback" in line for line in server.lines), "".join(server.lines)


def degraded(restarts: int) -> dict[str, Any]:
    return {"status": "degraded", "workers": {"ready": 1, "configured": 2, "restarts": restarts}}


def test_metrics_of_all_workers_are_added_up_and_a_server_whose_supervisor_dies_stops(exported, photos):
    with started(exported, "--port", "0", "--workers", "2") as server:
        server.wait_until_ready()
        wait_for(lambda: server.ready()["workers"]["ready"] == 2)
        files = {"images": photos[0].read_bytes()}
        for _ in range(20):  # a connection each, so that both workers have some
            assert httpx.post(f"{server.url}/v1/captions", files=files, timeout=20).status_code == 200
        text = httpx.get(f"{server.url}/metrics").text
        assert 'captioner_images_total{outcome="captioned"} 20.0' in text
        workers = server.workers()
        server.process.send_signal(signal.SIGKILL)
        psutil.wait_procs(workers, 20)
        assert not any(worker.is_running() for worker in workers)


def test_a_server_without_torch_never_imports_it(exported, photos, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with started(exported, "--port", "0", PYTHONPATH=path) as server:
        server.wait_until_ready()
        answer = httpx.post(f"{server.url}/v1/captions", files={"images": photos[0].read_bytes()}, timeout=20)
        expected = Captioner.from_pretrained(exported)(photos[0])
        assert answer.json()["results"][0]["caption"] == expected.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["--port", "1", "--host", "203.0.113.1"], "203.0.113.1:1: "),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid:8000: "),
    ],
)
def test_mistakes_cost_a_line_and_status_2(arguments, message):
    with started(*arguments) as server:
        assert server.process.wait(60) == 2
        server.reader.join(5)
        assert len(server.lines) == 1 and server.lines[0].startswith(f"error: {message}")


def test_a_model_that_cannot_be_loaded_is_an_error_and_no_endless_restart(exported, tmp_path):
    (tmp_path / "config.json").write_text((exported / "config.json").read_text())
    with started(tmp_path, "--port", "0", "--workers", "2") as server:
        assert server.process.wait(60) == 2
        server.reader.join(5)
        assert server.lines[0].startswith("error: ") and str(tmp_path) in server.lines[0]


def wait_for(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
