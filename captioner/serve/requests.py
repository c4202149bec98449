"""What handlers of all protocols do with a request."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from captioner.serve.service import Service

Answer = TypeVar("Answer")


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def client_of(request: Request) -> str:
    """Who takes turns with others: an address."""
    return request.client.host if request.client else ""


async def while_connected(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """Await `work`, but cancel it if the client goes away: its places are free for others then.

    Raises:
        ClientDisconnect: it went away.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_disconnect(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _until_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
