"""JSON in and out, within bounds."""

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from captioner.errors import CaptionerError

MAX_BODY = 2**24
"""Bytes of a request: ids and versions of a million photos."""

Body = TypeVar("Body", bound=BaseModel)


class Json(Response):
    """JSON in ASCII: file names that are not valid text keep their bytes as escapes, and JavaScript reads them."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode("ascii")


async def read_bytes(request: Request) -> bytes:
    """Raises CaptionerError if the body is too large."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise CaptionerError(f"the request is over the limit of {MAX_BODY:,} bytes")
    return bytes(body)


async def read_body(request: Request, model: type[Body]) -> Body:
    """Raises CaptionerError if the body is too large, or not what it should be."""
    return checked(model, await read_bytes(request))


def checked(model: type[Body], value: bytes | dict[str, Any]) -> Body:
    """JSON, or the parameters of a URL, as a model.

    Raises:
        CaptionerError: it does not fit; the message names the field.
    """
    try:
        return model.model_validate_json(value) if isinstance(value, bytes) else model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the request"
        raise CaptionerError(f"{where}: {first['msg']}") from error
