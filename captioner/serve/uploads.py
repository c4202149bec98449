"""Reads the images of requests: from multipart forms, and from base64 in JSON."""

import base64
import binascii
import re
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from captioner.data.images import ImageError, is_url
from captioner.serve.errors import RequestError
from captioner.serve.schemas import CaptionRequest, NamedImage, Options, validated
from captioner.serve.service import Upload

LISTS = ("banned_words", "forced_words")
MAX_FIELDS, MAX_FIELD_BYTES = 128, 16 * 1024


async def read_captions_request(request: Request, max_images: int) -> tuple[list[Upload], Options]:
    """Read the images and options of `POST /v1/captions`.

    Raises:
        RequestError: the body is neither of the two kinds, or does not match its schema.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        asked: CaptionRequest = validated(CaptionRequest, await request.body())
        named = [NamedImage(data=image) if isinstance(image, str) else image for image in asked.images]
        return [upload(image.data, image.name or f"images[{n}]") for n, image in enumerate(named)], asked
    if kind == "multipart/form-data":
        return await _read_form(request, max_images)
    message = f"content-type {kind[:100]!r} is not multipart/form-data or application/json"
    raise RequestError(415, "unsupported_media_type", message)


async def _read_form(request: Request, max_images: int) -> tuple[list[Upload], Options]:
    """Files are images, whatever their fields are called; other fields are options."""
    uploads: list[Upload] = []
    fields: dict[str, Any] = {}
    try:
        form = request.form(max_files=max_images, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
        async with form as parts:
            for name, part in parts.multi_items():
                if isinstance(part, UploadFile):
                    uploads.append(Upload(part.filename or f"images[{len(uploads)}]", await part.read()))
                elif name in LISTS:
                    fields.setdefault(name, []).append(part)
                elif name in fields:
                    raise RequestError(400, "invalid_request", f"{name[:100]}: given twice")
                else:
                    fields[name] = part
    except HTTPException as error:  # what Starlette says about a malformed form
        raise RequestError(400, "invalid_form", str(error.detail)) from error
    if not uploads:
        raise RequestError(400, "no_images", "the form has no file; send images as files")
    return uploads, validated(Options, fields)


def upload(encoded: str, name: str) -> Upload:
    """Decode base64 or a data URL. Other URLs are never fetched."""
    if encoded.startswith("data:"):
        head, comma, encoded = encoded.partition(",")
        if not comma or not head.endswith(";base64"):
            return Upload(name, ImageError(name, "not_base64", "the data URL is not in base64"))
    elif is_url(encoded):
        message = "is a URL, and URLs are not fetched: send the image itself, in base64 or as a data URL"
        return Upload(name, ImageError(name, "url", message))
    try:
        return Upload(name, base64.b64decode(re.sub(r"\s+", "", encoded), validate=True))
    except (binascii.Error, ValueError) as error:  # ValueError: letters that are not ASCII
        return Upload(name, ImageError(name, "not_base64", f"is not valid base64: {str(error)[:100]}"))
