"""What a server on the open net meets: each is answered with a 4xx, or cut off, and costs others nothing."""

import io
import resource
import socket
import struct
import time
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image


def bomb(side: int) -> bytes:
    """A PNG of `side` x `side` black pixels, which takes a thousandth of that in bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * (3 * min(side, 4000) ** 2), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def say(port: int, *parts: bytes, pause: float = 0.0, timeout: float = 5.0) -> bytes:
    """Send bytes, with pauses between them, and return what comes back until the server closes."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout)) as connection:
        heard = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            while received := connection.recv(65536):
                heard += received
        except (ConnectionResetError, BrokenPipeError, TimeoutError):
            pass
        return heard


def head(length: int, kind: str = "application/json") -> bytes:
    return f"POST /v1/captions HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n".encode()


def is_well(running: Any, photo: Path) -> bool:
    """It answers, and soon holds nothing any more: places are freed just after an answer is sent."""
    answered = running.post(photo).status_code == 200
    deadline = time.monotonic() + 10
    while running.service.batcher.taken or running.service.body_bytes:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return answered


def test_a_bomb_is_refused_before_it_is_decoded(running, photos):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = running.post(bomb(30_000), bomb(9_000))
    assert answer.status_code == 422
    assert [result["error"] for result in answer.json()["results"]] == ["too_large", "too_large"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kB"
    assert is_well(running, photos[0])


@pytest.mark.parametrize(
    "content", [b"%PDF-1.7", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"GIF89a", b"\xff\xd8\xff", b"\0" * 999]
)
def test_other_files_are_a_422(running, photos, content):
    assert running.post(content).status_code == 422
    assert is_well(running, photos[0])


def test_ten_thousand_parts_are_a_400(running, photos):
    for attributes, kind in ((b'name="a"; filename="a.png"', "files"), (b'name="a"', "fields")):
        body = b"--x\r\ncontent-disposition: form-data; " + attributes + b"\r\n\r\n1\r\n"
        headers = {"content-type": "multipart/form-data; boundary=x"}
        answer = running.client.post("/v1/captions", content=body * 10_000 + b"--x--\r\n", headers=headers)
        assert answer.status_code == 400 and f"Too many {kind}" in answer.json()["message"]
    images = ["eA=="] * 10_000
    answer = running.client.post("/v1/captions", json={"images": images})
    assert answer.status_code == 413 and answer.json()["error"] == "too_many_images"
    assert is_well(running, photos[0])


def test_large_fields_and_part_headers_are_a_400(running, photos):
    answer = running.post(photos[0], prefix="x" * 100_000)
    assert answer.status_code == 400 and "maximum size" in answer.json()["message"]
    files = {"images": ("x" * 100_000, photos[0].read_bytes())}
    assert running.client.post("/v1/captions", files=files).status_code == 400
    assert is_well(running, photos[0])


def test_a_body_over_the_limit_is_a_413_with_or_without_its_length(serving, cap, photos):
    with serving(cap, max_body=1_000_000) as running:
        answer = running.client.post("/v1/captions", files={"a": b"x" * 1_100_000})
        assert answer.status_code == 413 and answer.json()["error"] == "body_too_large"
        chunks = (b"x" * 100_000 for _ in range(20))
        answer = running.client.post("/v1/captions", content=chunks, headers={"content-type": "application/json"})
        assert answer.status_code == 413 and "1,000,000 bytes" in answer.json()["message"]
        lie = say(running.port, head(10**15), timeout=0.5)
        assert lie.startswith(b"HTTP/1.1 413")
        assert is_well(running, photos[0])


def test_too_many_uploads_at_one_time_are_a_503(serving, cap, photos):
    with serving(cap, max_bodies=1_000_000) as running:
        running.service.body_bytes += 999_000
        assert running.post(photos[0]).status_code == 503
        running.service.body_bytes -= 999_000
        assert is_well(running, photos[0])


def test_huge_headers_and_malformed_requests_are_a_4xx(running, photos):
    huge = b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + b"x-junk: " + b"y" * 200_000 + b"\r\n\r\n"
    many = b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + b"x: y\r\n" * 50_000 + b"\r\n"
    long = b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n"
    double = b"POST /v1/captions HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab"
    for request in (huge, many, long, double, b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
        assert say(running.port, request).startswith(b"HTTP/1.1 4"), request[:60]
    assert is_well(running, photos[0])


def test_slow_clients_are_cut_off(serving, cap, photos):
    with serving(cap, header_seconds=0.3, pause_seconds=0.3, upload_seconds=0.6) as running:
        begun = time.monotonic()
        assert say(running.port).startswith(b"HTTP/1.1 408")
        assert say(running.port, b"GET / HTTP/1.1\r\n", b"host: x\r\n", b"a: b\r\n", pause=0.2).startswith(
            b"HTTP/1.1 408"
        )
        silent = say(running.port, head(1000), b"{")
        assert silent.startswith(b"HTTP/1.1 408") and b"slow_upload" in silent
        dripping = say(running.port, head(1000), *[b"x"] * 8, pause=0.1)
        assert dripping.startswith(b"HTTP/1.1 408")
        assert time.monotonic() - begun < 8
        assert is_well(running, photos[0])


def test_clients_that_leave_early_leave_nothing_behind(running, photos):
    body = b"x" * 50_000
    before = psutil.Process().num_fds()
    for sent in range(0, 50_000, 2_500):
        with closing(socket.create_connection(("127.0.0.1", running.port))) as connection:
            connection.sendall(head(len(body)) + body[:sent])
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
    deadline = time.monotonic() + 5
    while not is_well(running, photos[0]) or psutil.Process().num_fds() > before + 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_memory_stays_flat_under_uploads_that_fail(running, photos):
    large = io.BytesIO()
    Image.new("RGB", (3000, 3000)).save(large, "PNG")
    junk = [bomb(20_000), large.getvalue()[:-50_000], b"\0" * 2_000_000]

    def one_round() -> int:
        for content in junk:
            assert running.post(content).status_code == 422
        return psutil.Process().memory_info().rss

    for _ in range(3):
        settled = one_round()
    for _ in range(12):
        last = one_round()
    assert last - settled < 40 * 2**20
    assert is_well(running, photos[0])
