"""The contract for those who write clients: ``/api/openapi.json``, and ``/api/docs`` as a page.

Both are open to everybody, and tell of ``/api`` alone: operations pages are nobody's business. The page is made here,
holds no script, and loads nothing from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from deployments.http.answers import ANSWERS, EXAMPLES, Problem

#: Raised with a change that a client must know of.
CONTRACT_VERSION = "1"
_HERE = Path(__file__).resolve().parent
_UNDER = "/api/"
_KEPT = {"Cache-Control": "public, max-age=300"}
_SCHEMAS = "#/components/schemas/"
_REFUSALS = {
    400: "the request is not what this address takes",
    401: "no good token",
    403: "the token's role may not do this",
    404: "this team has no such site",
    413: "more than 1 MB",
    429: "too many requests: `Retry-After` says when to come again",
    503: "a part that this needs does not answer",
}
#: Which of them any address may answer; the others are said by those that do.
_ANYWHERE = (400, 401, 404, 413, 429, 503)
_ABOUT = (
    "Every request has a bearer token of the application; its team decides what is seen. Every answer has its keys "
    "under `data` and beside it, and `X-Request-ID` in its headers. A refusal has `success: false` and `error`."
)

Schema = dict[str, Any]


def make_routes(app: FastAPI) -> APIRouter:
    """Return the routes; what they tell of are the routes that the application has when somebody asks first."""
    routes = APIRouter(prefix="/api", include_in_schema=False)

    @cache
    def described() -> Schema:
        return describe(app)

    @cache
    def page() -> str:
        return render(described())

    @routes.get("/openapi.json")
    def openapi() -> JSONResponse:
        """Return the schema of ``/api``."""
        return JSONResponse(described(), headers=_KEPT)

    @routes.get("/docs")
    def docs() -> HTMLResponse:
        """Return the same as a page."""
        return HTMLResponse(page(), headers=_KEPT)

    @routes.get("/docs.css")
    def style() -> Response:
        """Return the page's style sheet."""
        return Response((_HERE / "assets" / "contract.css").read_bytes(), media_type="text/css", headers=_KEPT)

    return routes


def describe(app: FastAPI) -> Schema:
    """Return the OpenAPI schema of the routes under ``/api``, with their token, their answers and their refusals."""
    whole = get_openapi(title="Cryptique RAG", version=CONTRACT_VERSION, description=_ABOUT, routes=app.routes)
    paths: Schema = {path: item for path, item in whole["paths"].items() if path.startswith(_UNDER)}
    models: list[type[BaseModel]] = [*ANSWERS.values(), Problem]
    _, answers = models_json_schema([(model, "serialization") for model in models], ref_template=_SCHEMAS + "{model}")
    schemas = {**whole.get("components", {}).get("schemas", {}), **answers["$defs"]}
    for path, item in paths.items():
        for method, operation in item.items():
            _complete(path, method, operation)
    return {
        "openapi": whole["openapi"],
        "info": whole["info"],
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": {name: schemas[name] for name in sorted(_reached(paths, schemas))},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _complete(path: str, method: str, operation: Schema) -> None:
    """Add to an operation what the framework can't know."""
    operation["operationId"] = path.removeprefix(_UNDER).replace("/", "_") + ("" if method == "post" else f"_{method}")
    said = {int(status) for status in operation["responses"] if status.isdecimal()} - {200, 422}
    answers: Schema = {"200": _answer("What was asked for.", _both_levels(path))}
    for status in sorted({*_ANYWHERE, *said}):
        own = operation["responses"].get(str(status), {})
        if status < 400:
            answers[str(status)] = _answer(own["description"], _both_levels(path))
        else:
            answers[str(status)] = {
                "description": _REFUSALS.get(status, own.get("description", "")),
                "content": {"application/problem+json": {"schema": {"$ref": f"{_SCHEMAS}Problem"}}},
            }
    operation["responses"] = answers
    if path in EXAMPLES and "requestBody" in operation:
        operation["requestBody"]["content"]["application/json"]["example"] = EXAMPLES[path]


def _answer(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _both_levels(path: str) -> Schema:
    model = ANSWERS.get(path)
    data: Schema = {"type": "object"} if model is None else {"$ref": f"{_SCHEMAS}{model.__name__}"}
    envelope = {
        "type": "object",
        "required": ["success", "data"],
        "properties": {"success": {"type": "boolean"}, "data": data},
    }
    return {"allOf": [data, envelope]}


def _reached(paths: Schema, schemas: Mapping[str, Any]) -> set[str]:
    """Return the names of all schemas that the paths lead to."""
    found: set[str] = set()
    waiting: list[Any] = [paths]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            name = str(value.get("$ref", "")).removeprefix(_SCHEMAS)
            if name in schemas and name not in found:
                found.add(name)
                waiting.append(schemas[name])
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return found


# -- the page --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Field:
    """A row of a table: ``name`` with the names around it, ``kind`` in words, and what is said of it."""

    name: str
    kind: str
    says: Markup
    required: bool
    default: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One address as the page shows it."""

    anchor: str
    method: str
    path: str
    says: Markup
    takes: tuple[Field, ...]
    gives: tuple[Field, ...]
    statuses: tuple[tuple[str, Markup], ...]
    example: str


def render(schema: Schema) -> str:
    """Return the page of a schema."""
    templates = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    operations = [
        _operation(path, method, operation, schema)
        for path, item in schema["paths"].items()
        for method, operation in item.items()
    ]
    refusal = tuple(_fields({"$ref": f"{_SCHEMAS}Problem"}, schema))
    page = templates.get_template("contract.html")
    about = _as_html(schema["info"]["description"])
    return page.render(info=schema["info"], about=about, operations=operations, refusal=refusal)


def _operation(path: str, method: str, operation: Schema, whole: Schema) -> Operation:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    # Both levels hold the same: the page shows what is under ``data``.
    data = operation["responses"]["200"]["content"]["application/json"]["schema"]["allOf"][0]
    return Operation(
        anchor=operation["operationId"],
        method=method.upper(),
        path=path,
        says=_as_html(operation.get("description") or operation.get("summary", "")),
        takes=tuple(_fields(body.get("schema", {}), whole)),
        gives=tuple(_fields(data, whole)),
        statuses=tuple((code, _as_html(one["description"])) for code, one in operation["responses"].items()),
        example=json.dumps(body["example"], indent=2, ensure_ascii=False) if "example" in body else "",
    )


def _fields(schema: Schema, whole: Schema, prefix: str = "", seen: tuple[str, ...] = ()) -> Iterator[Field]:
    """Yield the properties of an object and, below each, those of the objects that it holds."""
    name = str(schema.get("$ref", ""))
    if name in seen:
        return
    target = _resolved(schema, whole)
    for key, held in target.get("properties", {}).items():
        inner = _resolved(held, whole)
        shown = f"{prefix}{key}" + ("[]" if inner.get("type") == "array" else "")
        says = _as_html(str(held.get("description") or inner.get("description") or ""))
        default = json.dumps(held["default"]) if "default" in held else ""
        yield Field(shown, _kind(inner, whole), says, key in target.get("required", ()), default)
        item = inner.get("items", inner)
        if "properties" in _resolved(item, whole):
            yield from _fields(item if "items" in inner else held, whole, f"{shown}.", (*seen, name))


def _resolved(schema: Schema, whole: Schema) -> Schema:
    while "$ref" in schema:
        schema = whole["components"]["schemas"][schema["$ref"].removeprefix(_SCHEMAS)]
    return schema


def _kind(schema: Schema, whole: Schema) -> str:
    """Return a type with its bounds in words: ``integer, 1 to 50``."""
    schema = _resolved(schema, whole)
    if "anyOf" in schema:
        return " or ".join(_kind(one, whole) for one in schema["anyOf"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}), whole)}"
    said = [str(schema.get("type", "any value"))]
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None or high is not None:
        said.append(
            f"{low:g} to {high:g}" if None not in (low, high) else f"from {low:g}" if high is None else f"to {high:g}"
        )
    if "maxLength" in schema:
        said.append(f"at most {schema['maxLength']:,} characters")
    return ", ".join(said)


def _as_html(text: str) -> Markup:
    """Return Markdown of our own docstrings as HTML; ``code`` is written there as in reStructuredText."""
    return Markup(MarkdownIt("commonmark", {"html": False}).render(text))
