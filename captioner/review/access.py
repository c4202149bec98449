"""Who may use the server: a token in the URL that opens it, or a password; a signed cookie from then on."""

import asyncio
import base64
import binascii
import hmac
import ipaddress
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from captioner.errors import CaptionerError
from captioner.review.answers import Json
from captioner.web import LOOPBACK, SAFE_HEADERS, host_name, is_own_origin

MIN_PASSWORD = 8
MAX_NAME = 100
WRONG_PASSWORD_SECONDS = 1.0
"""How long a wrong password takes to answer. They are answered one at a time, so this bounds guessing."""

OPEN_PATHS = ("/", "/login", "/static/")


@dataclass
class Access:
    """Lets people in and knows them again.

    Attributes:
        reviewer: the name of whoever comes with the token.
        port: part of the cookie's name, since the servers of a machine share its cookies.
        host: the address that the server listens on.
        password: what others log in with, under names of their own; None: nobody else can.
    """

    reviewer: str
    port: int
    host: str = "127.0.0.1"
    password: str | None = None
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    guess: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def cookie_name(self) -> str:
        return f"captioner-review-{self.port}"

    def cookie(self, name: str) -> str:
        """A Set-Cookie header for somebody who was let in; scripts and other sites' requests have no use of it."""
        encoded = base64.urlsafe_b64encode(name.encode()).decode()
        value = f"{encoded}.{self._signature(encoded)}"
        return f"{self.cookie_name}={value}; Path=/; HttpOnly; SameSite=Strict"

    def reviewer_of(self, cookies: Mapping[str, str]) -> str | None:
        """The name in a cookie that this server signed."""
        encoded, _, signature = cookies.get(self.cookie_name, "").partition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(encoded).encode()):
            return None
        try:
            return base64.urlsafe_b64decode(encoded).decode()
        except (binascii.Error, ValueError):
            return None

    def _signature(self, text: str) -> str:
        return hmac.digest(self.key, text.encode(), "sha256").hex()

    def has_token(self, token: str) -> bool:
        return hmac.compare_digest(token.encode("utf-8", "surrogatepass"), self.token.encode())

    async def name_from_login(self, form: str) -> str | None:
        """The name that somebody logs in with, if the password is right."""
        fields = parse_qs(form, max_num_fields=10)
        name = " ".join(fields.get("name", [""])[0].split())[:MAX_NAME]
        given = fields.get("password", [""])[0]
        async with self.guess:
            if self.password and hmac.compare_digest(given.encode("utf-8", "surrogatepass"), self.password.encode()):
                return name or self.reviewer
            await asyncio.sleep(WRONG_PASSWORD_SECONDS)
        return None

    def answers_to(self, host: str) -> bool:
        """Is this Host header an address, or a name that the server has itself? An attacker's name is neither."""
        name = host_name(host)
        if name is None:
            return False
        if self.host in LOOPBACK:
            return name in LOOPBACK
        if name in (*LOOPBACK, self.host.lower(), socket.gethostname().lower()):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def read_password(path: Path) -> str:
    """Read the first line of a file.

    Raises:
        CaptionerError: it cannot be read, or the password is short.
    """
    try:
        with open(path, encoding="utf-8") as file:
            password = file.readline(10_000).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise CaptionerError(f"{path}: cannot be read: {reason}") from error
    if len(password) < MIN_PASSWORD:
        raise CaptionerError(f"{path}: the password has {len(password)} characters; it needs at least {MIN_PASSWORD}")
    return password


class Guard:
    """Refuses other hosts, other origins and strangers, and gives every answer its safe headers.

    `request.state.reviewer` is who asks; None where a path is open to everybody.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        request = Request(scope)
        request.state.reviewer = self.access.reviewer_of(request.cookies)
        refusal = self._refusal(scope["path"], request.method, request.headers, request.state.reviewer)
        await (refusal or self.app)(scope, receive, send_safely)

    def _refusal(self, path: str, method: str, headers: Headers, reviewer: str | None) -> Json | None:
        host = headers.get("host", "")
        if not self.access.answers_to(host):
            return Json({"error": "this server does not answer to that host name"}, 421)
        is_visit = method == "GET" and headers.get("sec-fetch-mode") == "navigate"  # a link to the page, of any site
        is_foreign = headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none") and not is_visit
        if is_foreign or not is_own_origin(headers.get("origin"), host):
            return Json({"error": "requests from other origins are refused"}, 403)
        if method == "POST" and path != "/login" and headers.get("content-type") != "application/json":
            return Json({"error": "send application/json"}, 415)
        if reviewer is None and path not in OPEN_PATHS and not path.startswith("/static/"):
            return Json({"error": "open the URL that the server has printed, or log in again"}, 401)
        return None
