"""The OpenAPI document, made from the schemas."""

from typing import Any

from pydantic.json_schema import models_json_schema

from captioner.serve.schemas import CaptionRequest, CaptionResponse, Options, Problem
from captioner.serve.settings import Settings

REF = "#/components/schemas/{model}"


def openapi_document(settings: Settings) -> dict[str, Any]:
    """Describe the server's own API. The compatible ones are described by those who made them."""
    models = (CaptionRequest, CaptionResponse, Options, Problem)
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=REF)
    schemas = definitions["$defs"]
    schemas["CaptionForm"] = _form_of(schemas["Options"])
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "captioner",
            "version": "1",
            "description": "Captions of images. `/v1/chat/completions` also speaks OpenAI's protocol, `/api/generate` "
            "and `/api/chat` Ollama's, `/setup`, `/predict` and `/webhook` that of Label Studio's ML backends.",
        },
        "paths": {
            "/v1/captions": {"post": _captions(settings, "Caption images.")},
            "/v1/explain": {"post": _captions(settings, "Caption images, with a heat map for each word.")},
            "/v1/models": {"get": _get("The model that is served.", "application/json")},
            "/healthz": {"get": _get("Whether the process answers.", "application/json")},
            "/readyz": {
                "get": _get("Whether captions can be had, and how many workers are ready.", "application/json")
                | {"responses": {"200": _json("Ready, or degraded."), "503": _json("Stopping.")}}
            },
            "/metrics": {"get": _get("Metrics in Prometheus's format.", "text/plain")},
        },
        "components": {"schemas": schemas},
    }
    if settings.token is not None:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _captions(settings: Settings, summary: str) -> dict[str, Any]:
    limits = f"At most {settings.max_images} images and {settings.max_body:,} bytes."
    return {
        "summary": summary,
        "description": f"Send one or many images. Each has its own result or error. {limits} URLs are not fetched.",
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": _ref("CaptionForm")},
                "application/json": {"schema": _ref("CaptionRequest")},
            },
        },
        "responses": {
            "200": _json("A result for each image; at least one has a caption.", "CaptionResponse"),
            "422": _json("No image has a caption; each result says why.", "CaptionResponse"),
            "400": _json("The request or its options are wrong.", "Problem"),
            "401": _json("The token is missing or wrong.", "Problem"),
            "403": _json("The request comes from a page of another origin.", "Problem"),
            "408": _json("The body arrived too slowly.", "Problem"),
            "413": _json("Too many bytes or images.", "Problem"),
            "415": _json("Neither a form nor JSON.", "Problem"),
            "421": _json("The Host header names another host.", "Problem"),
            "429": _json("The queue is full; Retry-After says when to come back.", "Problem"),
            "503": _json("Shutting down, or too slow; Retry-After says when to come back.", "Problem"),
        },
    }


def _form_of(options: dict[str, Any]) -> dict[str, Any]:
    """The options as form fields, beside files."""
    file = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "minItems": 1,
        "description": "Image files.",
    }
    return {
        "type": "object",
        "description": "Images as files, and options for all of them as fields.",
        "properties": {"images": file} | options["properties"],
        "required": ["images"],
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": REF.format(model=name)}


def _json(description: str, schema: str | None = None) -> dict[str, Any]:
    content = {"schema": _ref(schema) if schema else {"type": "object"}}
    return {"description": description, "content": {"application/json": content}}


def _get(summary: str, media_type: str) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": "OK", "content": {media_type: {}}}}}
