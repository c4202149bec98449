"""A server on the loopback that answers as the Hugging Face Hub does, for its real client: `with serving(hub): ...`."""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = 1000
"""Bytes from which on a file is one of LFS, whose hash is SHA-256."""


class Hub:
    """Repositories and how they answer.

    Attributes:
        commits: by repository and commit, the files.
        refs: by repository and branch or tag, the commit.
        private: repositories and the token that opens them.
        fault: called with method and path before each answer; what it returns is the answer: status and headers.
        spoil: changes a file's content as it is sent, not the length or hash that are announced.
    """

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.refs: dict[str, dict[str, str]] = {}
        self.private: dict[str, str] = {}
        self.gated: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], tuple[int, dict[str, str]] | None] = lambda method, path: None
        self.spoil: Callable[[str, bytes], bytes] = lambda path, content: content
        self.address = ""

    def commit(self, repository: str, files: dict[str, bytes], revision: str = "main") -> str:
        before = self.commits.setdefault(repository, {})
        refs = self.refs.setdefault(repository, {})
        whole = before.get(refs.get(revision, ""), {}) | files
        sha = hashlib.sha1(repr(sorted(whole.items())).encode()).hexdigest()
        before[sha], refs[revision] = whole, sha
        return sha


def etag(content: bytes) -> str:
    if len(content) >= LARGE:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: str) -> None:
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append((method, path))
        fault = self.hub.fault(method, path)
        if fault is not None:
            self._send(fault[0], b"", fault[1])
            return
        parts = path.strip("/").split("/")
        try:
            if parts[0] == "api":
                self._api(parts[1:], body)
            else:
                self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        except KeyError:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _api(self, parts: list[str], body: bytes) -> None:
        hub = self.hub
        if parts == ["repos", "create"]:
            settings = json.loads(body)
            name = f"{settings.get('organization') or 'someone'}/{settings['name']}"
            hub.commit(name, {})
            self._json({"url": f"{hub.address}/{name}", "id": "0", "name": name})
        elif parts[0] == "whoami-v2":
            self._json({"name": "someone", "type": "user", "orgs": []})
        elif parts[0] == "validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif parts[3:4] == ["preupload"]:
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self._json({"files": modes})
        elif parts[3:4] == ["commit"]:
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            repository = "/".join(parts[1:3])
            contents = {file["path"]: base64.b64decode(file["content"]) for file in files}
            sha = hub.commit(repository, contents, parts[4])
            self._json({"commitUrl": f"{hub.address}/{repository}/commit/{sha}", "commitOid": sha})
        else:
            self._listing("/".join(parts[1:3]), parts[3:])

    def _listing(self, repository: str, rest: list[str]) -> None:
        if not self._may_read(repository):
            return
        sha = self._resolved(repository, "/".join(rest[1:]) if rest else "main")
        if sha is None:
            return
        files = self.hub.commits[repository][sha]
        if rest[:1] == ["tree"]:
            self._json([self._entry(path, content) for path, content in files.items()])
        else:
            siblings = [{"rfilename": path} for path in files]
            self._json({"id": repository, "modelId": repository, "sha": sha, "siblings": siblings, "private": False})

    @staticmethod
    def _entry(path: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": etag(content)[:40]}
        if len(content) >= LARGE:
            entry["lfs"] = {"oid": etag(content), "size": len(content), "pointerSize": 130}
        return entry

    def _file(self, repository: str, revision: str, path: str) -> None:
        if not self._may_read(repository):
            return
        sha = self._resolved(repository, revision)
        if sha is None:
            return
        content = self.hub.commits[repository][sha][path]
        headers = {"ETag": f'"{etag(content)}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        sent = content if self.command == "HEAD" else self.hub.spoil(path, content)
        if start := self.headers.get("Range", "").removeprefix("bytes=").rstrip("-"):
            sent = sent[int(start) :]
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send(206, sent, headers, len(content) - int(start))
        else:
            self._send(200, sent, headers, len(content))

    def _may_read(self, repository: str) -> bool:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token == "expired":
            self._send(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repository not in self.hub.commits or self.hub.private.get(repository, token) != token:
            self._send(401 if not token else 404, b"", {"X-Error-Code": "RepoNotFound"})
        elif repository in self.hub.gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        else:
            return True
        return False

    def _resolved(self, repository: str, revision: str) -> str | None:
        sha = revision if revision in self.hub.commits[repository] else self.hub.refs[repository].get(revision)
        if sha is None:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        return sha

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str], announced: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if announced is None else announced))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
            if announced is not None and len(content) < announced:
                self.close_connection = True  # cut
