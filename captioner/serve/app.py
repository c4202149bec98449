"""The web application: what each path answers."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from captioner.infer.captioner import Captioner
from captioner.serve import label_studio, metrics, ollama, openai
from captioner.serve.errors import RequestError, answer_error, error_response
from captioner.serve.middleware import BoundedBody, Guard, Observe
from captioner.serve.openapi import openapi_document
from captioner.serve.requests import client_of, service_of, while_connected
from captioner.serve.schemas import Captioned, CaptionResponse, Failed, captioned
from captioner.serve.service import Service
from captioner.serve.settings import Settings
from captioner.serve.uploads import read_captions_request

Workers = Callable[[], dict[str, int]]
"""How many workers there are, and how many are ready."""

STATIC = Path(__file__).parent / "static"


def one_worker() -> dict[str, int]:
    return {"ready": 1, "configured": 1, "restarts": 0}


def create_app(captioner: Captioner, settings: Settings | None = None, workers: Workers = one_worker) -> Starlette:
    """Build the ASGI application that serves a captioner.

    `app.state.service` is its `Service`. Under a server, set `service.is_draining` before a graceful stop.
    """
    service = Service(captioner, settings or Settings())
    routes: list[BaseRoute] = [
        Route("/", page("index.html")),
        Route("/docs", page("docs.html")),
        Mount("/static", StaticFiles(directory=STATIC), name="static"),
        Route("/openapi.json", openapi),
        Route("/healthz", healthz),
        Route("/readyz", partial(readyz, workers)),
        Route("/metrics", show_metrics),
        Route("/v1/models", models),
        Route("/v1/captions", partial(captions, False), methods=["POST"]),
        Route("/v1/explain", partial(captions, True), methods=["POST"]),
        Route("/v1/chat/completions", openai.chat_completions, methods=["POST"]),
        *ollama.ROUTES,
        *label_studio.ROUTES,
    ]
    paths = frozenset(route.path for route in routes if isinstance(route, Route))
    middleware = [
        Middleware(Observe, service=service, paths=paths),
        Middleware(Guard, settings=service.settings),
        Middleware(BoundedBody, service=service),
    ]
    handlers: dict[Any, Any] = {
        RequestError: answer_error,
        HTTPException: answer_http_exception,
        ClientDisconnect: answer_nobody,
        Exception: answer_crash,
    }

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.start()
        yield
        await service.close()

    app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=lifespan)
    app.state.service = service
    return app


async def captions(is_explained: bool, request: Request) -> JSONResponse:
    """Caption the images of a form, or those in base64 in JSON; show where each word comes from if asked."""
    service = service_of(request)
    uploads, options = await read_captions_request(request, service.settings.max_images)
    described = await while_connected(request, service.caption(client_of(request), uploads, options, is_explained))
    results: list[Captioned | Failed] = [
        one if isinstance(one, Failed) else captioned(sent.name, *one)
        for sent, one in zip(uploads, described, strict=True)
    ]
    status = 422 if all(isinstance(result, Failed) for result in results) else 200
    content = CaptionResponse(model=service.captioner.name, results=results).model_dump(exclude_none=True)
    return JSONResponse(content, status)


async def models(request: Request) -> JSONResponse:
    """The one model that is served, as OpenAI's clients read it."""
    model = {"id": service_of(request).captioner.name, "object": "model", "created": 0, "owned_by": "captioner"}
    return JSONResponse({"object": "list", "data": [model]})


async def healthz(request: Request) -> JSONResponse:
    """200 while the process answers at all."""
    return JSONResponse({"status": "ok"})


async def readyz(workers: Workers, request: Request) -> JSONResponse:
    """200 while captions can be had; `degraded` while some workers are down, 503 while this one stops."""
    service = service_of(request)
    counts = workers()
    if service.is_draining or not service.batcher.is_working:
        return JSONResponse({"status": "stopping", "workers": counts}, 503)
    status = "ready" if counts["ready"] == counts["configured"] else "degraded"
    return JSONResponse({"status": status, "workers": counts})


async def show_metrics(request: Request) -> Response:
    """Metrics in Prometheus's text format."""
    return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def openapi(request: Request) -> JSONResponse:
    """The OpenAPI document of this server."""
    return JSONResponse(openapi_document(service_of(request).settings))


def page(name: str) -> Callable[[Request], Awaitable[Response]]:
    """An HTML file."""

    async def show(request: Request) -> Response:
        return FileResponse(STATIC / name, headers={"cache-control": "no-cache"})

    return show


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    names = {404: "not_found", 405: "method_not_allowed"}
    refused = RequestError(error.status_code, names.get(error.status_code, "refused"), str(error.detail))
    response = error_response(request.url.path, refused)
    response.headers.update(error.headers or {})
    return response


async def answer_nobody(request: Request, error: Exception) -> Response:
    """The client has left; nobody reads this."""
    return Response(status_code=400)


async def answer_crash(request: Request, error: Exception) -> Response:
    """A bug. Starlette raises it again, so that the server logs it."""
    return error_response(request.url.path, RequestError(500, "internal_error", "an internal error; see the log"))
