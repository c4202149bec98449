"""Label Studio's protocol for ML backends: `/health`, `/setup`, `/predict` and `/webhook`.

Tasks name their images by URL, and URLs are not fetched: they are looked up in the folder of `captioner serve --files`.
"""

from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import uuid4
from xml.etree import ElementTree

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from captioner.data.images import ImageError
from captioner.serve.errors import RequestError
from captioner.serve.requests import client_of, service_of, while_connected
from captioner.serve.schemas import Failed, Options, validated
from captioner.serve.service import Upload
from captioner.serve.uploads import upload

MAX_CONFIG = 100_000


class SetupRequest(BaseModel):
    label_schema: str = Field("", alias="schema", max_length=MAX_CONFIG)


class Task(BaseModel):
    data: dict[str, Any] = {}


class PredictRequest(BaseModel):
    tasks: list[Task] = Field(max_length=1000)
    label_config: str = Field("", max_length=MAX_CONFIG)


class CaptionField(NamedTuple):
    """Where a labelling configuration has a caption: `<TextArea name= toName=>` for `<Image name= value="$key">`."""

    name: str
    image: str
    key: str


def caption_field(config: str) -> CaptionField:
    """Find the text area that describes an image.

    Raises:
        RequestError: the configuration has none, or is not XML.
    """
    try:
        if "<!" in config:
            raise ElementTree.ParseError("it declares a document type or a comment")
        tags = list(ElementTree.fromstring(config).iter())
    except ElementTree.ParseError as error:
        raise RequestError(400, "invalid_config", f"the labelling configuration cannot be read: {error}") from error
    images = {tag.get("name", ""): tag.get("value", "").removeprefix("$") for tag in tags if tag.tag == "Image"}
    for tag in tags:
        image = tag.get("toName", "")
        if tag.tag == "TextArea" and image in images:
            return CaptionField(tag.get("name", ""), image, images[image])
    message = 'the labelling configuration has no TextArea for an Image: <TextArea name="caption" toName="image"/>'
    raise RequestError(400, "invalid_config", message)


async def health(request: Request) -> JSONResponse:
    """Whether the backend is there."""
    return JSONResponse({"status": "UP", "model_class": "Captioner"})


async def setup(request: Request) -> JSONResponse:
    """Take a project's configuration: one that has no caption is refused now."""
    asked: SetupRequest = validated(SetupRequest, await request.body())
    if asked.label_schema:
        caption_field(asked.label_schema)
    return JSONResponse({"model_version": service_of(request).captioner.name})


async def predict(request: Request) -> JSONResponse:
    """Pre-annotate tasks. A task whose image cannot be had gets an empty prediction that says why."""
    asked: PredictRequest = validated(PredictRequest, await request.body())
    field = caption_field(asked.label_config)
    service = service_of(request)
    uploads = [_upload(task.data.get(field.key), service.settings.files) for task in asked.tasks]
    predictions: list[dict[str, Any]] = []
    for start in range(0, len(uploads), service.settings.max_images):
        part = uploads[start : start + service.settings.max_images]
        for one in await while_connected(request, service.caption(client_of(request), part, Options())):
            if isinstance(one, Failed):
                predictions.append({"result": [], "score": 0.0, "error": f"{one.image}: {one.message}"})
            else:
                predictions.append(_prediction(field, one.caption.text, one.caption.confidence))
    for prediction in predictions:
        prediction["model_version"] = service.captioner.name
    return JSONResponse({"results": predictions, "model_version": service.captioner.name})


def _prediction(field: CaptionField, text: str, confidence: float) -> dict[str, Any]:
    region = {
        "id": uuid4().hex[:10],
        "from_name": field.name,
        "to_name": field.image,
        "type": "textarea",
        "value": {"text": [text]},
        "score": round(confidence, 4),
    }
    return {"result": [region], "score": round(confidence, 4)}


def _upload(value: Any, folder: Path | None) -> Upload:
    """The image that a task names: a data URL, or a file below the folder."""
    name = value[:200] if isinstance(value, str) else "task"
    if not isinstance(value, str) or not value:
        return Upload(name, ImageError(name, "missing", "the task does not name an image"))
    if value.startswith("data:"):
        return upload(value, "task")
    if folder is None:
        message = "URLs are not fetched; name the folder that holds Label Studio's files: captioner serve --files"
        return Upload(name, ImageError(name, "url", message))
    try:
        path = (folder / relative_path(value)).resolve()
    except (OSError, ValueError):  # a circle of links, a null character
        path = None
    if path is None or not path.is_relative_to(folder.resolve()):
        return Upload(name, ImageError(name, "missing", "no such file"))
    return Upload(name, path)


def relative_path(url: str) -> str:
    """The file of a task's URL, relative to Label Studio's folder.

    Local storage has `/data/local-files/?d=PATH`, uploads have `/data/PATH`, with or without scheme and host. Any other
    text is a path by itself.
    """
    parts = urlsplit(url)
    if parts.path.rstrip("/") == "/data/local-files":
        return parse_qs(parts.query).get("d", [""])[0].lstrip("/")
    if parts.path.startswith("/data/"):
        return unquote(parts.path).removeprefix("/data/").lstrip("/")
    return url.lstrip("/")


ROUTES: list[BaseRoute] = [
    Route("/health", health),
    Route("/setup", setup, methods=["POST"]),
    Route("/predict", predict, methods=["POST"]),
]
