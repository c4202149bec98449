"""Photos in a project, and the review server for it in a thread of the test process: the real one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from captioner.annotate.project import Project
from captioner.annotate.project_records import NewCaption, Writer
from captioner.review.access import Access
from captioner.review.app import create_app
from captioner.review.server import Server, listen

PASSWORD = "correct horse"


def add_photo(project: Project, name: str, text: str | None = None, **more: Any) -> int:
    """A photo of one colour, with a model's caption; return its id."""
    path = Path(project.folder, name)
    number = len(project.rows("SELECT id FROM images"))
    if not path.is_symlink() and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40), (40 * number % 256, 120, 200)).save(path)
    with project.transaction() as connection:
        encoded = name.encode("utf-8", "surrogateescape")
        connection.execute(
            "INSERT INTO images (path, member, size, mtime) VALUES (CAST(? AS TEXT), '', 1, ?)", (encoded, number)
        )
        ((image,),) = connection.execute("SELECT last_insert_rowid()").fetchall()
    if text is not None:
        project.add_suggestion(image, NewCaption(text, **more), project.writer_id(Writer("model", "tiny", "0")))
    return int(image)


class Running:
    """A server that runs, and a client that was let in."""

    def __init__(self, project: Project, access: Access, app: Any) -> None:
        self.project, self.access, self.app = project, access, app
        self.url = f"http://127.0.0.1:{access.port}"
        self.key = f"{self.url}/?token={access.token}"
        self.client = self.let_in(httpx.Client(base_url=self.url, timeout=20))

    def let_in(self, client: httpx.Client) -> httpx.Client:
        assert client.get(self.key).status_code == 200
        return client

    def stranger(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=20)

    def get(self, path: str, **parameters: Any) -> Any:
        return self.client.get(path, params=parameters).raise_for_status().json()

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def card(self, image: int) -> dict[str, Any]:
        (card,) = self.get("/api/cards", ids=image)
        return card

    def decide(self, image: int, verdict: str, **more: Any) -> httpx.Response:
        return self.post(
            "/api/decide", **{"id": image, "version": self.card(image)["version"], "verdict": verdict} | more
        )


@contextmanager
def run_server(project: Project, reviewer: str = "ann", **access: Any) -> Iterator[Running]:
    ready = threading.Event()
    with listen("127.0.0.1", 0) as listener:
        granted = Access(reviewer, listener.getsockname()[1], **access)
        app = create_app(project, granted)
        server = Server(app, ready.set)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        assert ready.wait(20)
        running = Running(project, granted, app)
        try:
            yield running
        finally:
            running.client.close()
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive(), "the server does not stop"
