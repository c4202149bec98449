"""The web application: what each path answers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from captioner.annotate.agreement import agreement
from captioner.annotate.project import Project
from captioner.annotate.project_records import Conflict, ProjectImage
from captioner.data.images import ImageError
from captioner.distributed import available_cores
from captioner.errors import CaptionerError
from captioner.review import acts, queries
from captioner.review.access import Access, Guard
from captioner.review.answers import Body, Json, checked, read_body, read_bytes
from captioner.review.heat import HeatMaps
from captioner.review.queries import Selection
from captioner.review.thumbnails import Thumbnails

STATIC = Path(__file__).parent / "static"
MAX_CARDS = 500
FOREVER = {"cache-control": "private, max-age=31536000, immutable"}
"""For pictures, whose URLs change when they do."""


@dataclass
class Review:
    """What the application works on."""

    project: Project
    access: Access
    thumbnails: Thumbnails
    heat_maps: HeatMaps
    decoders: ThreadPoolExecutor


class NotFound(CaptionerError):
    """The project has no such photo."""


def create_app(project: Project, access: Access, model: str | None = None) -> Starlette:
    """Build the ASGI application that reviews a project. `model` draws heat maps; default: the one that wrote."""
    queries.prepare(project)
    decoders = ThreadPoolExecutor(min(8, available_cores()), thread_name_prefix="decode")
    review = Review(project, access, Thumbnails(project), HeatMaps(project, model), decoders)
    get = {
        "/api/session": session,
        "/api/list": photo_list,
        "/api/versions": photo_versions,
        "/api/cards": photo_cards,
        "/api/changes": changes,
        "/api/statistics": statistics,
        "/api/photos/{id:int}/history": photo_history,
        "/api/photos/{id:int}/heat": photo_heat,
    }
    post = {
        "/api/decide": partial(act, acts.Decide, decide),
        "/api/bulk": partial(act, acts.Bulk, decide_many),
        "/api/replace/preview": partial(act, acts.Replace, preview_replacements),
        "/api/replace": partial(act, acts.Replace, replace_many),
        "/api/undo": partial(act, acts.Step, undo),
        "/api/redo": partial(act, acts.Step, redo),
    }
    routes = [
        Route("/", page),
        Route("/login", login, methods=["POST"]),
        Mount("/static", StaticFiles(directory=STATIC)),
        Route("/thumbnails/{id:int}", partial(picture, Thumbnails.thumbnail)),
        Route("/photos/{id:int}", partial(picture, Thumbnails.photo)),
        *(Route(path, partial(query, answer)) for path, answer in get.items()),
        *(Route(path, answer, methods=["POST"]) for path, answer in post.items()),
    ]
    handlers: dict[Any, Any] = {
        Conflict: answer_conflict,
        NotFound: partial(answer_error, 404),
        CaptionerError: partial(answer_error, 422),
    }

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        decoders.shutdown(cancel_futures=True)
        review.thumbnails.close()

    guard = Middleware(Guard, access=access)
    app = Starlette(routes=routes, middleware=[guard], exception_handlers=handlers, lifespan=lifespan)
    app.state.review = review
    return app


def review_of(request: Request) -> Review:
    review: Review = request.app.state.review
    return review


# Pages


async def page(request: Request) -> Response:
    """The page, for whoever has the token or a cookie; a form for the password, for others."""
    access = review_of(request).access
    token = request.query_params.get("token", "")
    if token and access.has_token(token):
        # No redirect: browsers would keep a SameSite=Strict cookie back if the link was on another site. The page
        # takes the token out of its URL.
        return FileResponse(STATIC / "index.html", headers={"set-cookie": access.cookie(access.reviewer)})
    if request.state.reviewer is not None:
        return FileResponse(STATIC / "index.html")
    return FileResponse(STATIC / ("login.html" if access.password else "closed.html"), 401)


async def login(request: Request) -> Response:
    access = review_of(request).access
    name = await access.name_from_login((await read_bytes(request)).decode("utf-8", "replace"))
    if name is None:
        return FileResponse(STATIC / "login.html", 401)
    return RedirectResponse("/", 303, {"set-cookie": access.cookie(name)})


# Pictures


async def picture(encode: Callable[[Thumbnails, ProjectImage], bytes], request: Request) -> Response:
    """A photo as JPEG, decoded in one of a few threads."""
    review = review_of(request)
    try:
        image = await run_in_threadpool(find, review, request)
        run = asyncio.get_running_loop().run_in_executor
        jpeg = await run(review.decoders, encode, review.thumbnails, image)
    except ImageError as error:
        return Json({"error": f"{image.name}: {error.message}"}, 404)  # not where the project is on this machine
    return Response(jpeg, media_type="image/jpeg", headers=FOREVER)


def find(review: Review, request: Request) -> ProjectImage:
    number: int = request.path_params["id"]
    found = review.project.images("id = ?", number) if number < 2**63 else []
    if not found:
        raise NotFound(f"no photo {number}")
    return found[0]


# Questions


async def query(answer: Callable[[Review, Request], Any], request: Request) -> Json:
    return Json(await run_in_threadpool(answer, review_of(request), request))


def session(review: Review, request: Request) -> dict[str, Any]:
    project, reviewer = review.project, request.state.reviewer
    ((shares,),) = project.rows("SELECT count(*) FROM images WHERE reviewer = ?", reviewer)
    return {
        "project": project.path.name,
        "reviewer": reviewer,
        "has_share": bool(shares),
        "flags": queries.flag_counts(project),
        "folders": queries.folders(project),
        "progress": queries.progress(project, reviewer),
        "now": queries.changes(project, "")["now"],
    }


def photo_list(review: Review, request: Request) -> list[int]:
    """The ids of a selection, in its order."""
    selection = checked(Selection, dict(request.query_params))
    return [image for image, _ in queries.selected(review.project, selection, request.state.reviewer)]


def photo_versions(review: Review, request: Request) -> list[tuple[int, int]]:
    """The same with versions, for acts on all of them."""
    selection = checked(Selection, dict(request.query_params))
    return queries.selected(review.project, selection, request.state.reviewer)


def photo_cards(review: Review, request: Request) -> list[dict[str, Any]]:
    asked = request.query_params.get("ids", "").split(",")[:MAX_CARDS]
    return queries.cards(review.project, [int(part) for part in asked if queries.is_number(part)])


def changes(review: Review, request: Request) -> dict[str, Any]:
    changed = queries.changes(review.project, request.query_params.get("since", ""))
    return changed | {"progress": queries.progress(review.project, request.state.reviewer)}


def statistics(review: Review, request: Request) -> dict[str, Any]:
    return agreement(review.project).as_json()


def photo_history(review: Review, request: Request) -> list[dict[str, Any]]:
    return queries.history(review.project, find(review, request).id)


def photo_heat(review: Review, request: Request) -> dict[str, Any]:
    return review.heat_maps.of(find(review, request))


# Acts


async def act(model: type[Body], answer: Callable[[Review, Body, str], Any], request: Request) -> Json:
    body = await read_body(request, model)
    return Json(await run_in_threadpool(answer, review_of(request), body, request.state.reviewer))


def decide(review: Review, body: acts.Decide, reviewer: str) -> dict[str, Any]:
    image = acts.decide(review.project, body, reviewer)
    return {"cards": queries.cards(review.project, [image.id])}


def decide_many(review: Review, body: acts.Bulk, reviewer: str) -> dict[str, Any]:
    return _outcome(review, acts.decide_many(review.project, body, reviewer))


def replace_many(review: Review, body: acts.Replace, reviewer: str) -> dict[str, Any]:
    return _outcome(review, acts.replace_many(review.project, body, reviewer))


def _outcome(review: Review, outcome: acts.Outcome) -> dict[str, Any]:
    changed = queries.cards(review.project, outcome.changed[:MAX_CARDS])
    return {"cards": changed, "changed": outcome.changed, "left": outcome.left}


def preview_replacements(review: Review, body: acts.Replace, reviewer: str) -> list[dict[str, Any]]:
    images = body.images
    if images is None:
        images = queries.selected(review.project, body.selection or Selection(), reviewer)
    return acts.replacements(review.project, body, images)


def undo(review: Review, body: acts.Step, reviewer: str) -> dict[str, Any]:
    changed = acts.step(review.project, body, "undo", reviewer)
    return {"cards": queries.cards(review.project, changed[:MAX_CARDS]), "changed": changed}


def redo(review: Review, body: acts.Step, reviewer: str) -> dict[str, Any]:
    changed = acts.step(review.project, body, "redo", reviewer)
    return {"cards": queries.cards(review.project, changed[:MAX_CARDS]), "changed": changed}


# Errors


async def answer_conflict(request: Request, error: Exception) -> Json:
    """Somebody was faster: the photo as it is now, and whether the text that came second was kept."""
    assert isinstance(error, Conflict)
    cards = await run_in_threadpool(queries.cards, review_of(request).project, [error.current.id])
    return Json({"error": str(error), "cards": cards, "kept": error.kept}, 409)


async def answer_error(status: int, request: Request, error: Exception) -> Json:
    return Json({"error": str(error)}, status)
