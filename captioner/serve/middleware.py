"""What every request passes on its way in: a log line and counters, access checks, and limits on its body."""

import asyncio
import base64
import binascii
import hmac
import json
import logging
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from captioner.serve import metrics
from captioner.serve.errors import RequestError, error_response
from captioner.serve.service import Service
from captioner.serve.settings import Settings
from captioner.web import SAFE_HEADERS, host_name, is_own_origin

log = logging.getLogger("captioner.serve")

OPEN_PATHS = ("/", "/healthz", "/readyz", "/docs", "/openapi.json")
"""Paths that need no token, besides those below /static/."""


class Observe:
    """Logs each request as one JSON line, and counts it. No image, caption, file name or query is logged.

    Answers get headers that keep browsers strict. While the server is draining, they close their connections.
    """

    def __init__(self, app: ASGIApp, service: Service, paths: frozenset[str]) -> None:
        self.app = app
        self.service = service
        self.paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        request_id = uuid.uuid4().hex[:16]
        status = 499  # the client left before there was a response

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers.update(SAFE_HEADERS)
                if self.service.is_draining:
                    headers["connection"] = "close"
            await send(message)

        try:
            await self.app(scope, receive, send_observed)
        finally:
            seconds = time.perf_counter() - begun
            path = scope["path"] if scope["path"] in self.paths else "other"
            metrics.requests.labels(path, status).inc()
            metrics.request_seconds.labels(path).observe(seconds)
            fields = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "id": request_id,
                "client": scope["client"][0] if scope.get("client") else None,
                "method": scope["method"],
                "path": path,
                "status": status,
                "ms": round(1000 * seconds, 1),
            }
            log.info(json.dumps(fields))


class Guard:
    """Refuses other hosts, other origins, and requests without the token."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self._refusal(scope["path"], Headers(scope=scope))):
            await error_response(scope["path"], error)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, path: str, headers: Headers) -> RequestError | None:
        host = headers.get("host", "")
        if self.settings.hosts is not None and host_name(host) not in self.settings.hosts:
            return RequestError(421, "wrong_host", "this server does not answer to that host name")
        if not is_own_origin(headers.get("origin"), host):
            return RequestError(403, "wrong_origin", "requests from other origins are refused")
        is_open = path in OPEN_PATHS or path.startswith("/static/")
        if self.settings.token is not None and not is_open and not self._has_token(headers.get("authorization", "")):
            return RequestError(401, "no_token", "send the server's token as a bearer token")
        return None

    def _has_token(self, authorization: str) -> bool:
        """A bearer token, or the password of Basic authentication, which is all that Label Studio offers."""
        kind, _, value = authorization.partition(" ")
        given = value.strip().encode("latin-1")  # as the header came
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif kind.lower() != "bearer":
            return False
        return hmac.compare_digest(given, str(self.settings.token).encode())


class BoundedBody:
    """Refuses bodies that are too large or arrive too slowly, as they are read."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(self.service, receive)
        try:
            length = Headers(scope=scope).get("content-length", "0")
            if length.isdecimal() and int(length) > self.service.settings.max_body:
                await error_response(scope["path"], body.too_large())(scope, receive, send)
            else:
                await self.app(scope, body.receive, send)
        finally:
            self.service.body_bytes -= body.size


class _Body:
    def __init__(self, service: Service, receive: Receive) -> None:
        self.service = service
        self.receive_next = receive
        self.size = 0
        self.is_complete = False
        self.deadline = time.monotonic() + service.settings.upload_seconds

    async def receive(self) -> Message:
        """The next message; raises RequestError for a body that is over a limit."""
        if self.is_complete:
            return await self.receive_next()  # the client's disconnect, whenever it comes
        settings = self.service.settings
        patience = min(settings.pause_seconds, self.deadline - time.monotonic())
        try:
            message = await asyncio.wait_for(self.receive_next(), patience)
        except TimeoutError as error:
            raise RequestError(408, "slow_upload", "the request's body did not arrive in time") from error
        if message["type"] == "http.request":
            self.is_complete = not message.get("more_body", False)
            received = len(message.get("body", b""))
            self.size += received
            self.service.body_bytes += received
            if self.size > settings.max_body:
                raise self.too_large()
            if self.service.body_bytes > settings.max_bodies:
                raise RequestError(503, "too_many_uploads", "too many uploads at one time", 5)
        return message

    def too_large(self) -> RequestError:
        limit = self.service.settings.max_body
        return RequestError(413, "body_too_large", f"the body is over the limit of {limit:,} bytes")
