"""The documentation page of the HTTP API, rendered from its OpenAPI schema.

It loads nothing from other hosts; FastAPI's own page would load its script from a CDN.
"""

import json
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from ui.accounts.auth import Person
from ui.prefix import prefix_of
from ui.refusals import template

router = APIRouter(include_in_schema=False)


@router.get("/docs")
def docs(request: Request, user: Person) -> Response:
    """Every route with its parameters, body, answer and an example."""
    schema = request.app.openapi()
    groups: dict[str, list[dict[str, Any]]] = {}
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            groups.setdefault(route.get("tags", ["other"])[0], []).append(described(schema, method, path, route))
    base = str(request.base_url).rstrip("/") + prefix_of(request)
    page = template("docs.html").render(groups=groups, info=schema["info"], base=base, prefix=prefix_of(request))
    return HTMLResponse(page)


@router.get("/openapi.json")
def openapi(request: Request, user: Person) -> JSONResponse:
    """The schema, and where its paths begin."""
    return JSONResponse(request.app.openapi() | {"servers": [{"url": prefix_of(request) or "/"}]})


def described(schema: dict[str, Any], method: str, path: str, route: dict[str, Any]) -> dict[str, Any]:
    """One route as the template shows it."""
    body = content_of(route.get("requestBody", {}))
    answer = content_of(route["responses"].get("200", {}))
    return {
        "method": method.upper(),
        "path": path,
        "what": route.get("description") or route.get("summary", ""),
        "parameters": route.get("parameters", []),
        "fields": fields(schema, body),
        "answer": fields(schema, answer),
        "many": answer.get("type") == "array",
        "example": json.dumps(example(schema, body)) if body else "",
    }


def content_of(holder: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a body or an answer, if it has one."""
    found: dict[str, Any] = holder.get("content", {}).get("application/json", {}).get("schema", {})
    return found


def resolved(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """A part of the schema with its reference followed; of `anyOf`, the first choice that is not null."""
    choices = [each for each in part.get("anyOf", []) if each.get("type") != "null"]
    if choices:
        return resolved(schema, choices[0])
    name = part.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = schema["components"]["schemas"][name] if name else part
    return found


def fields(schema: dict[str, Any], part: dict[str, Any]) -> list[dict[str, Any]]:
    """The fields of an object, or of an array's items: name, kind, whether it is required, description."""
    whole = resolved(schema, part)
    whole = resolved(schema, whole["items"]) if whole.get("type") == "array" else whole
    must = whole.get("required", [])
    return [
        {"name": name, "kind": kind(schema, field), "must": name in must, "what": field.get("description", "")}
        for name, field in whole.get("properties", {}).items()
    ]


def kind(schema: dict[str, Any], part: dict[str, Any]) -> str:
    """The type of a field, in a few words."""
    if "anyOf" in part:
        return " or ".join(dict.fromkeys(kind(schema, each) for each in part["anyOf"]))
    whole = resolved(schema, part)
    if whole.get("type") == "array":
        return f"list of {kind(schema, whole['items'])}"
    if "enum" in whole:
        return " or ".join(json.dumps(each) for each in whole["enum"])
    return str(whole.get("title") if "properties" in whole else whole.get("type", "anything"))


def example(schema: dict[str, Any], part: dict[str, Any]) -> Any:
    """An example value of that shape, with its required fields only."""
    whole = resolved(schema, part)
    if "properties" in whole:
        return {name: example(schema, whole["properties"][name]) for name in whole.get("required", [])}
    if whole.get("type") == "array":
        return [example(schema, whole["items"])]
    return {"integer": 1, "number": 0.5, "boolean": True, "string": "..."}.get(whole.get("type", ""), "...")
