"""A server on loopback in a thread of the test process: the real one, with a tiny model."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from captioner import Captioner
from captioner.serve.app import create_app
from captioner.serve.server import Server
from captioner.serve.service import Service
from captioner.serve.settings import Settings
from captioner.serve.supervisor import listen

Run = Callable[..., AbstractContextManager["Running"]]


class Running:
    """A server that runs: its address, a client, and what is behind it."""

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.service: Service = server.service
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=20)

    def post(self, *photos: Path | bytes, path: str = "/v1/captions", **fields: Any) -> Any:
        files = [
            ("images", (photo.name, photo.read_bytes()) if isinstance(photo, Path) else ("photo", photo))
            for photo in photos
        ]
        return self.client.post(path, files=files, data=fields)


@contextmanager
def run_server(captioner: Captioner, **settings: Any) -> Iterator[Running]:
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = Server(create_app(captioner, Settings(**settings)))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.01)
    running = Running(server, port)
    try:
        yield running
    finally:
        running.client.close()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server does not stop"


@pytest.fixture(scope="session")
def cap(tagged_captioner: Path) -> Captioner:
    return Captioner.from_pretrained(tagged_captioner, device="cpu")


@pytest.fixture(scope="session")
def running(cap: Captioner) -> Iterator[Running]:
    """A server with default settings. Not to be stopped."""
    with run_server(cap) as running:
        yield running


@pytest.fixture
def serving() -> Run:
    """`with serving(captioner, **settings) as running`: a server of one's own."""
    return run_server


class Gated:
    """A captioner that computes nothing while its gate is closed."""

    def __init__(self, captioner: Captioner) -> None:
        self.captioner = captioner
        self.gate = threading.Event()
        self.gate.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.captioner, name)

    def stream(self, options: Any) -> Any:
        assert self.gate.wait(20)
        return self.captioner.stream(options)


@pytest.fixture
def gated(cap: Captioner) -> Gated:
    return Gated(cap)
