"""OpenAI's chat protocol, for messages with images: `POST /v1/chat/completions`.

The answer is the caption of the last message's images, whatever its text asks. Of the parameters `n`, `max_tokens`,
`max_completion_tokens`, `stream` and `stream_options` have an effect.
"""

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from captioner.serve.chat import Reply, pieces, replies
from captioner.serve.requests import service_of
from captioner.serve.schemas import validated


class ImageUrl(BaseModel):
    url: str


class Part(BaseModel):
    type: str
    image_url: ImageUrl | None = None


class Message(BaseModel):
    content: str | list[Part] | None = None

    @property
    def images(self) -> list[str]:
        parts = self.content if isinstance(self.content, list) else []
        return [part.image_url.url for part in parts if part.type == "image_url" and part.image_url]


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    messages: list[Message] = Field(min_length=1)
    n: int | None = Field(None, ge=1, le=16)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None


async def chat_completions(request: Request) -> Response:
    """Answer a chat with the caption of the images that were sent last."""
    asked: ChatRequest = validated(ChatRequest, await request.body())
    images = next((message.images for message in reversed(asked.messages) if message.images), [])
    answers, _ = await replies(request, images, asked.max_completion_tokens or asked.max_tokens, asked.n or 1)
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": service_of(request).captioner.name,
    }
    if asked.stream:
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        return StreamingResponse(_events(head, answers, with_usage), media_type="text/event-stream")
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
        for index, answer in enumerate(answers)
    ]
    return JSONResponse(head | {"object": "chat.completion", "choices": choices, "usage": _usage(answers)})


def _events(head: dict[str, Any], answers: list[Reply], with_usage: bool) -> Iterator[str]:
    """Server-sent events: a word each, for one choice after the other."""
    head = head | {"object": "chat.completion.chunk"}
    for index, answer in enumerate(answers):
        deltas: list[dict[str, str]] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": piece} for piece in pieces(answer.text)]
        for delta in deltas:
            yield _event(head | {"choices": [{"index": index, "delta": delta, "finish_reason": None}]})
        yield _event(head | {"choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]})
    if with_usage:
        yield _event(head | {"choices": [], "usage": _usage(answers)})
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _usage(answers: list[Reply]) -> dict[str, int]:
    """Images and prompts cost no tokens here."""
    written = sum(answer.num_tokens for answer in answers)
    return {"prompt_tokens": 0, "completion_tokens": written, "total_tokens": written}
