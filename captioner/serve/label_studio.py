"""Label Studio's protocol for ML backends: `/health`, `/setup`, `/predict` and `/webhook`.

Tasks name their images by URL, and URLs are not fetched: they are looked up in the folder of `captioner serve --files`.
What people write in Label Studio becomes decisions in the project of `captioner serve --project`.
"""

from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import uuid4
from xml.etree import ElementTree

from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from captioner.annotate.project import Project
from captioner.data.images import ImageError
from captioner.errors import CaptionerError
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


class Region(BaseModel):
    from_name: str = ""
    type: str = ""
    value: dict[str, Any] = {}


class Annotation(BaseModel):
    result: list[Region] = Field([], max_length=1000)
    completed_by: Any = None
    was_cancelled: bool = False


class LabellingProject(BaseModel):
    label_config: str = Field("", max_length=MAX_CONFIG)


class Event(BaseModel):
    action: str
    annotation: Annotation | None = None
    task: Task | None = None
    project: LabellingProject = LabellingProject()


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


async def webhook(request: Request) -> JSONResponse:
    """Keep what a person wrote. Events about anything else are acknowledged and ignored."""
    event: Event = validated(Event, await request.body())
    settings = service_of(request).settings
    is_written = event.action in ("ANNOTATION_CREATED", "ANNOTATION_UPDATED")
    if not is_written or event.annotation is None or event.task is None or event.annotation.was_cancelled:
        return JSONResponse({"status": "ignored", "message": "nothing was written"})
    if settings.project is None:
        return JSONResponse({"status": "ignored", "message": "name a project: captioner serve --project"})
    field = caption_field(event.project.label_config)
    text = _written(event.annotation, field)
    named = _upload(event.task.data.get(field.key), settings.files)
    if not text or not isinstance(named.data, Path):
        return JSONResponse({"status": "ignored", "message": "no caption of a file"})
    reviewer = _reviewer(event.annotation.completed_by)
    try:
        is_known = await run_in_threadpool(_decide, settings.project, named.data, text, reviewer)
    except CaptionerError as error:
        raise RequestError(422, "not_kept", str(error)) from error
    if not is_known:
        return JSONResponse({"status": "ignored", "message": "the image is not in the project"})
    return JSONResponse({"status": "ok"}, 201)


def _written(annotation: Annotation, field: CaptionField) -> str:
    """The text of an annotation's first text area for the caption."""
    for region in annotation.result:
        text = region.value.get("text")
        if region.type == "textarea" and region.from_name == field.name and text:
            return str(text[0] if isinstance(text, list) else text)
    return ""


def _reviewer(user: Any) -> str:
    """Label Studio names people by number, or with their mail address."""
    email = user.get("email") if isinstance(user, dict) else None
    number = user.get("id") if isinstance(user, dict) else user
    return str(email or f"Label Studio user {number}")[:200]


def _decide(project_path: Path, image_path: Path, text: str, reviewer: str) -> bool:
    """Record a caption as a reviewer's, or as accepted if it is the one shown; False if the image is not there."""
    with Project(project_path) as project, project.transaction():
        images = project.images("path = ? AND member = ''", project.relative(str(image_path)))
        for image in images:
            project.decide(image.id, image.version, "edited", reviewer, text)
    return bool(images)


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
    Route("/webhook", webhook, methods=["POST"]),
]
