"""uvicorn, with patience that ends and a stop that answers everything it accepted."""

import asyncio
import socket
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from captioner.serve.service import Service
from captioner.serve.settings import Settings

LAST_REQUESTS_SECONDS = 1.0
"""How long a stopping server keeps idle connections open: what is on its way on them is still answered."""


class Server(uvicorn.Server):
    """A uvicorn server for the application of `create_app`."""

    def __init__(self, app: Starlette) -> None:
        service: Service = app.state.service
        settings = service.settings
        self.service = service
        config = uvicorn.Config(
            app,
            http=protocol(settings),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=settings.max_connections,
            h11_max_incomplete_event_size=settings.max_header,
            timeout_graceful_shutdown=int(settings.upload_seconds + settings.request_seconds) + 5,
        )
        super().__init__(config)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept what has connected, answer what is asked, then close.

        Responses close their connections from now on. Clients that connect from now on are refused by the system.
        """
        self.service.is_draining = True
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # the event loop has looked at the sockets once more
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LAST_REQUESTS_SECONDS
        while self.server_state.connections and loop.time() < deadline:
            await asyncio.sleep(0.02)
        await super().shutdown()


def protocol(settings: Settings) -> type[H11Protocol]:
    """HTTP/1.1 by h11, for clients that take no longer than these settings say.

    The application itself limits how long it waits for a body; this catches clients that are slow before and after.
    """

    class ImpatientProtocol(H11Protocol):
        timer: asyncio.TimerHandle | None = None
        phase: Any = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.enter(h11.IDLE)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.enter(self.conn.their_state)

        def connection_lost(self, exc: Exception | None) -> None:
            self.enter(h11.CLOSED)
            super().connection_lost(exc)

        def enter(self, phase: Any) -> None:
            """Note what the client is doing. Each phase has its time, which what the client sends does not extend."""
            if phase is self.phase:
                return
            self.phase = phase
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None
            if phase is h11.IDLE:
                self.timer = self.loop.call_later(settings.header_seconds, self.give_up)
            elif phase is h11.SEND_BODY:
                self.timer = self.loop.call_later(settings.upload_seconds + settings.pause_seconds, self.give_up)

        def give_up(self) -> None:
            if self.transport.is_closing():
                return
            if self.conn.our_state is h11.IDLE:
                self.transport.write(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()

    return ImpatientProtocol
