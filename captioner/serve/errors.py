"""What a request is told when it fails, in the words and the JSON of the protocol it speaks."""

from starlette.requests import Request
from starlette.responses import JSONResponse


class RequestError(Exception):
    """A request that is refused or cannot be answered.

    Attributes:
        status: of the HTTP response.
        error: a name for programs, such as `queue_full`.
        message: one line for people.
        retry_after: seconds after which the same request may succeed; None if it will not.
    """

    def __init__(self, status: int, error: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.error, self.message, self.retry_after = status, error, message, retry_after


def error_response(path: str, error: RequestError) -> JSONResponse:
    """Render an error for the clients of this path."""
    if path.startswith(("/v1/chat/", "/v1/models")):  # as OpenAI's clients read it
        kind = "invalid_request_error" if error.status < 500 else "server_error"
        content: dict[str, object] = {
            "error": {"message": error.message, "type": kind, "param": None, "code": error.error}
        }
    elif path.startswith("/api/"):  # as Ollama's clients read it
        content = {"error": error.message}
    else:
        content = {"error": error.error, "message": error.message}
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if error.status == 401:
        headers["www-authenticate"] = 'Bearer realm="captioner", Basic realm="captioner"'
    return JSONResponse(content, error.status, headers)


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """Starlette's handler for `RequestError`."""
    assert isinstance(error, RequestError)
    return error_response(request.url.path, error)
