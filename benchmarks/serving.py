"""Load `captioner serve` on loopback, and print one JSON line for each server: ours, LitServe with the same model
as the peer (benchmarks/litserve_peer.py), ours with batching off, and ours with requests of mixed options.

    CAPTIONER_FLICKR8K=… python benchmarks/serving.py --clients 32 --requests 2000
    python benchmarks/serving.py --model exported/ --servers ours batching_off

Each client sends its next request when it has the answer to the one before: the same JSON with one photo in base64 to
either server. Every answer is compared with the caption that `Captioner` gives by itself. `ratio` is throughput and
`p99_ratio` the 99th percentile of latency, ours by the other's. LitServe: pip install litserve.
"""

import argparse
import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from machine import machine

from captioner import Captioner

ROOT = Path(__file__).parents[1]
SERVE = "from captioner.cli import main; main()"
MIX: list[dict[str, Any]] = [{}, {"num_beams": 1}, {"num_beams": 2}, {"max_new_tokens": 8}]


def photos(number: int) -> list[Path]:
    folder = Path(os.environ["CAPTIONER_FLICKR8K"]) / "images" if "CAPTIONER_FLICKR8K" in os.environ else None
    found = sorted((folder or ROOT / "examples" / "photos").glob("*.jpg"))
    return found[:: max(1, len(found) // number)][:number]


@contextmanager
def server(command: list[str], log: Path) -> Iterator[int]:
    """Run a server until the block ends; yield its port once it answers."""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        while not (found := re.search(r"(?:serving|running) on http://[\d.]+:(\d+)", log.read_text(), re.IGNORECASE)):
            if process.poll() is not None:
                raise SystemExit(f"{command} ended:\n{log.read_text()}")
            time.sleep(0.2)
        yield int(found.group(1))
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # processes that it left behind
        process.wait()


async def ask(port: int, reader_writer: Any, path: str, body: bytes) -> tuple[Any, int, bytes]:
    """Send a request over a connection that is kept; return the connection, the status and the answer."""
    reader, writer = reader_writer or await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = re.search(r"content-length: (\d+)", answer)
    assert length is not None, answer
    return (reader, writer), int(answer.split()[1]), await reader.readexactly(int(length.group(1)))


async def first_answer(port: int, path: str, body: bytes) -> None:
    """Wait until the server answers: LitServe says that it runs before it does."""
    for _ in range(600):
        with suppress(OSError, EOFError):
            connection, status, _ = await ask(port, None, path, body)
            connection[1].close()
            if status == 200:
                return
        await asyncio.sleep(0.2)
    raise SystemExit(f"no answer on port {port}")


async def load(port: int, path: str, bodies: list[tuple[bytes, str]], clients: int, requests: int) -> dict[str, Any]:
    """Send requests from several clients at once; bodies come with the captions that are expected."""
    numbers = count()
    latencies: list[float] = []
    faults: list[str] = []

    async def client() -> None:
        connection = None
        while (number := next(numbers)) < requests:
            body, expected = bodies[number % len(bodies)]
            begun = time.perf_counter()
            try:
                connection, status, answer = await ask(port, connection, path, body)
            except (OSError, EOFError) as error:
                faults.append(f"lost: {error!r}")
                connection = None
                continue
            latencies.append(time.perf_counter() - begun)
            content = json.loads(answer)
            caption = content.get("caption") or (content.get("results") or [{}])[0].get("caption")
            if status != 200 or caption != expected:
                faults.append(f"{status}: {caption!r} instead of {expected!r}")
        if connection:
            connection[1].close()

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - begun
    latencies.sort()
    return {
        "clients": clients,
        "requests": requests,
        "answered": len(latencies),
        "wrong_or_lost": len(faults),
        "first_fault": faults[:1],
        "per_second": round(len(latencies) / seconds, 2),
        "p50_ms": round(1000 * latencies[len(latencies) // 2], 1),
        "p99_ms": round(1000 * latencies[int(0.99 * (len(latencies) - 1))], 1),
    }


def bodies_of(captioner: Captioner, images: list[Path], kinds: list[dict[str, Any]]) -> list[tuple[bytes, str]]:
    """A request for each photo and kind of options, and the caption that it should get."""
    by_kind = []
    for options in kinds:
        captions = captioner(images, **options)
        encoded = [base64.b64encode(image.read_bytes()).decode() for image in images]
        requests = [json.dumps({"images": [data], **options}).encode() for data in encoded]
        by_kind.append([(body, caption.text) for body, caption in zip(requests, captions, strict=True)])
    return [pair for pairs in zip(*by_kind, strict=True) for pair in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder; default: the bundled model")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--photos", type=int, default=200, help="different photos to send")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--servers", nargs="+", default=["ours", "litserve", "batching_off", "mixed"])
    arguments = parser.parse_args()
    print(json.dumps(machine()), flush=True)
    captioner = Captioner.from_pretrained(arguments.model)
    images = photos(arguments.photos)
    ours: dict[str, Any] = {}
    for name in arguments.servers:
        kinds = MIX if name == "mixed" else MIX[:1]
        batch_size = 1 if name == "batching_off" else arguments.batch_size
        model = [arguments.model] if arguments.model else []
        command = [sys.executable, "-c", SERVE, "serve", *model, "--port", "0", "--batch-size", str(batch_size)]
        if name == "litserve":
            command = [sys.executable, str(ROOT / "benchmarks" / "litserve_peer.py"), str(batch_size), *model]
        path = "/predict" if name == "litserve" else "/v1/captions"
        bodies = bodies_of(captioner, images, kinds)
        with server(command, Path(f"/tmp/serving-{os.getpid()}.log")) as port:
            asyncio.run(first_answer(port, path, bodies[0][0]))
            asyncio.run(load(port, path, bodies, arguments.clients, 2 * arguments.clients))  # warms up
            measured = asyncio.run(load(port, path, bodies, arguments.clients, arguments.requests))
        ours = ours or measured
        ratios = {
            "ratio": round(ours["per_second"] / measured["per_second"], 2),
            "p99_ratio": round(ours["p99_ms"] / measured["p99_ms"], 2),
        }
        print(
            json.dumps({"server": name, "model": captioner.name, **measured} | (ratios if measured is not ours else {}))
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
