"""Ollama's protocol, for prompts and messages with images: `/api/generate`, `/api/chat`, and what clients ask before.

The answer is the caption of the images that were sent last, whatever the prompt asks; a request for JSON (`format`) is
answered by an object with `caption` and `labels`, which are the tags of a model that has them. Of the options
`num_predict` has an effect.
"""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from captioner.serve.chat import Reply, pieces, replies
from captioner.serve.requests import service_of
from captioner.serve.schemas import validated
from captioner.serve.service import Described

PROTOCOL_VERSION = "0.12.0"
"""The release of Ollama whose protocol this follows; clients compare it with what they need."""


class ModelOptions(BaseModel):
    num_predict: int | None = None


class Asked(BaseModel):
    stream: bool | None = True
    format: str | dict[str, Any] | None = None
    options: ModelOptions | None = None


class GenerateRequest(Asked):
    prompt: str | None = None
    images: list[str] | None = None


class ChatMessage(BaseModel):
    images: list[str] | None = None


class ChatRequest(Asked):
    messages: list[ChatMessage] = Field(min_length=1)


async def generate(request: Request) -> Response:
    """Answer a prompt."""
    asked: GenerateRequest = validated(GenerateRequest, await request.body())
    if not asked.images and not asked.prompt:  # clients load a model so
        return JSONResponse(_head(request) | {"response": "", "done": True, "done_reason": "load"})
    return await _answer(request, asked, asked.images or [], lambda text: {"response": text})


async def chat(request: Request) -> Response:
    """Answer a chat."""
    asked: ChatRequest = validated(ChatRequest, await request.body())
    images = next((message.images for message in reversed(asked.messages) if message.images), [])
    return await _answer(request, asked, images, lambda text: {"message": {"role": "assistant", "content": text}})


async def _answer(request: Request, asked: Asked, images: list[str], put: Callable[[str], dict[str, Any]]) -> Response:
    """Caption the images; `put` says where a text goes in a line of the answer."""
    begun = time.perf_counter_ns()
    longest = asked.options.num_predict if asked.options and asked.options.num_predict else -1
    (answer, *_), described = await replies(request, images, longest if longest > 0 else None)
    text = json.dumps(_as_json(answer, described)) if asked.format else answer.text
    head = _head(request)
    duration = time.perf_counter_ns() - begun
    last = {
        "done": True,
        "done_reason": "stop",
        "total_duration": duration,
        "load_duration": 0,
        "prompt_eval_count": 0,
        "prompt_eval_duration": 0,
        "eval_count": answer.num_tokens,
        "eval_duration": duration,
    }
    if asked.stream is False:
        return JSONResponse(head | put(text) | last)
    words = [text] if asked.format else pieces(text)
    lines = [head | put(word) | {"done": False} for word in words] + [head | put("") | last]
    return StreamingResponse((json.dumps(line) + "\n" for line in lines), media_type="application/x-ndjson")


def _head(request: Request) -> dict[str, Any]:
    name = service_of(request).captioner.name
    return {"model": name, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}


def _as_json(answer: Reply, described: list[Described]) -> dict[str, Any]:
    """The labels are named as PhotoPrism reads them."""
    tags = {tag.text: round(tag.score, 4) for one in described for tag in one.caption.tags}
    labels = [{"name": name, "confidence": score, "topicality": score} for name, score in tags.items()]
    return {"caption": answer.text, "labels": labels}


async def tags(request: Request) -> JSONResponse:
    """The one model that is served."""
    return JSONResponse({"models": [_model(request)]})


async def running(request: Request) -> JSONResponse:
    """The models in memory: the same one."""
    return JSONResponse({"models": [_model(request) | {"size_vram": 0, "expires_at": "2318-01-01T00:00:00Z"}]})


async def show(request: Request) -> JSONResponse:
    """What the model can do: clients look for `vision` here."""
    details = _model(request)["details"]
    return JSONResponse({"details": details, "model_info": {}, "capabilities": ["completion", "vision"]})


async def version(request: Request) -> JSONResponse:
    """The release of the protocol."""
    return JSONResponse({"version": PROTOCOL_VERSION})


def _model(request: Request) -> dict[str, Any]:
    captioner = service_of(request).captioner
    return {
        "name": captioner.name,
        "model": captioner.name,
        "modified_at": "2026-01-01T00:00:00Z",
        "size": 0,
        "digest": "",
        "details": {
            "format": "",
            "family": "captioner",
            "families": ["captioner"],
            "parameter_size": "",
            "quantization_level": captioner.precision,
        },
    }


ROUTES: list[BaseRoute] = [
    Route("/api/generate", generate, methods=["POST"]),
    Route("/api/chat", chat, methods=["POST"]),
    Route("/api/show", show, methods=["POST"]),
    Route("/api/tags", tags),
    Route("/api/ps", running),
    Route("/api/version", version),
]
