"""Runs the application on a port of this machine until it is stopped."""

import socket
import webbrowser
from collections.abc import Callable
from threading import Thread

import uvicorn
from starlette.applications import Starlette

from captioner.errors import CaptionerError

FIRST_PORT, PORTS = 8600, 50
"""Tried in turn, so that the page mostly has the same address again and finds what it kept in the browser."""


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens on this port; None: on the first free one from `FIRST_PORT` on.

    Raises:
        CaptionerError: the port is taken, or the address is not this machine's.
    """
    reason = ""
    for number in range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else [port]:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
            listener = socket.socket(family, kind, protocol)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            return listener
        except OSError as error:  # socket.gaierror too
            reason = f"{host}:{number}: {error.strerror}"
    raise CaptionerError(reason)


class Server(uvicorn.Server):
    """Calls `on_ready` once it accepts connections."""

    def __init__(self, app: Starlette, on_ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="on",
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=5,
            )
        )
        self.on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_ready()


def open_browser(url: str) -> None:
    """Open the default browser, without waiting for it."""
    Thread(target=webbrowser.open, args=(url,), daemon=True).start()
