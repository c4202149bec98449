"""Worker processes that share a port: one that dies is replaced, and all stop together, gracefully."""

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.context import SpawnProcess
from typing import Any

from prometheus_client.multiprocess import mark_process_dead

from captioner.cpu.memory import keep_freed_memory
from captioner.distributed import LOCAL_COUNT, LOCAL_RANK, available_cores
from captioner.errors import CaptionerError
from captioner.infer.captioner import Captioner
from captioner.serve.settings import Settings

log = logging.getLogger("captioner.serve")

DOWN, READY = 0, 1
TICK = 0.2
QUICK_DEATH = 5.0
"""Seconds from one start of a worker to the next: one that dies at once would keep the machine busy with its starts."""
FAILED_TO_START = 2
"""Exit status of a worker that could not load its model."""
SPAWN = get_context("spawn")
"""Workers start afresh: a fork would inherit the supervisor's threads and signal handlers."""


@dataclass(frozen=True)
class Worker:
    """What a worker process is told.

    Attributes:
        load: loads the model; sent to the process, so a module's function or a `functools.partial` of one.
        listener: bound to the port, not listening yet: until a worker is ready, clients are refused.
        states: one of DOWN and READY for each worker, and how many were restarted in the last place; shared by all.
    """

    load: Callable[[], Captioner]
    settings: Settings
    listener: socket.socket
    states: Any
    index: int

    def __call__(self) -> None:
        """Run the process."""
        from captioner.serve.app import create_app
        from captioner.serve.server import Server

        configure_logging()
        keep_freed_memory()
        self._take_share()
        threading.Thread(target=_stop_with_parent, daemon=True).start()
        try:
            captioner = self.load()
        except CaptionerError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(FAILED_TO_START)
        server = Server(create_app(captioner, self.settings, self.counts))
        self.states[self.index] = READY
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again when it is done
            signal.signal(signal.SIGTERM, lambda number, frame: None)
            server.run([self.listener])

    def counts(self) -> dict[str, int]:
        *states, restarts = self.states[:]
        return {"ready": states.count(READY), "configured": len(states), "restarts": restarts}

    def _take_share(self) -> None:
        """Leave the other workers their part of the processor's cores and of the machine's accelerators."""
        count = len(self.states) - 1
        if count > 1:
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // count)))
            os.environ |= {LOCAL_RANK[0]: str(self.index), LOCAL_COUNT[0]: str(count)}


def _stop_with_parent() -> None:
    """Stop as on SIGTERM if the supervisor dies."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def configure_logging() -> None:
    """Log to stderr: requests as JSON lines, and what uvicorn has to say, from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    log.setLevel(logging.INFO)


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound to this address, for workers to listen on.

    Raises:
        CaptionerError: the address is taken or is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:  # socket.gaierror too
        raise CaptionerError(f"{host}:{port}: {error.strerror}") from error
    return listener


class Supervisor:
    """Starts workers, replaces those that die, and passes on SIGTERM and SIGINT.

    A worker is replaced at once, but not within 5 seconds of its start.
    """

    def __init__(self, load: Callable[[], Captioner], settings: Settings, listener: socket.socket, count: int) -> None:
        self.states = SPAWN.RawArray("i", count + 1)  # without a lock, which a killed worker could hold forever
        self.workers = [Worker(load, settings, listener, self.states, index) for index in range(count)]
        self.listener = listener
        self.grace = settings.upload_seconds + settings.request_seconds + 10
        self.processes: list[SpawnProcess | None] = [None] * count
        self.started_at = [0.0] * count
        self.start_at = [0.0] * count
        self.is_stopping = False

    def run(self, on_ready: Callable[[], None]) -> int:
        """Serve until a signal comes; return the exit status. `on_ready` is called once captions can be had."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        with tempfile.TemporaryDirectory(prefix="captioner-metrics-") as folder:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
            status = self._supervise(on_ready)
            self.listener.close()
            self._stop_workers()
        return status

    def _stop(self, number: int, frame: object) -> None:
        self.is_stopping = True

    def _supervise(self, on_ready: Callable[[], None]) -> int:
        was_ready = False
        while not self.is_stopping:
            for index, process in enumerate(self.processes):
                if process is None and time.monotonic() >= self.start_at[index]:
                    self._start(index)
            connection.wait([process.sentinel for process in self.processes if process is not None], TICK)
            if not was_ready and READY in self.states[: len(self.workers)]:
                was_ready = True
                on_ready()
            for index, process in enumerate(self.processes):
                if process is not None and process.exitcode is not None:
                    if not was_ready:
                        return process.exitcode if process.exitcode > 0 else 1  # another start would fail likewise
                    if not self.is_stopping:
                        self._bury(index, process)
        return 0

    def _start(self, index: int) -> None:
        process = SPAWN.Process(target=self.workers[index], name=f"worker-{index}")
        process.start()
        self.processes[index], self.started_at[index] = process, time.monotonic()

    def _bury(self, index: int, process: SpawnProcess) -> None:
        """Note that a worker is gone, and when to start the next one in its place."""
        self.states[index] = DOWN
        self.states[len(self.workers)] += 1
        mark_process_dead(process.pid)
        self.processes[index] = None
        lived = time.monotonic() - self.started_at[index]
        pause = max(0.0, QUICK_DEATH - lived)
        self.start_at[index] = time.monotonic() + pause
        event = {"event": "worker_died", "worker": index, "status": process.exitcode, "restart_in_s": round(pause, 1)}
        log.warning(json.dumps(event))

    def _stop_workers(self) -> None:
        """Let the workers answer what they have accepted; end those that take too long."""
        running = [process for process in self.processes if process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + self.grace
        for process in running:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()
