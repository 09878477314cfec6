"""The description of everything that the server takes and gives: OpenAPI 3.1, made of the models that check it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import pellucid
from pellucid.serving.endpoints import Endpoint
from pellucid.serving.errors import ErrorAnswer
from pellucid.serving.fields import TOKEN
from pellucid.serving.service import Service

REFERENCE = "#/components/schemas/{model}"
ID = {"x-request-id": {"$ref": "#/components/headers/x-request-id"}}
ERRORS = {
    400: "something in the request is wrong; the message says what",
    401: "no key, or one that is not known",
    404: "there is no such model, or no such path",
    408: "the request took too long: to come, or to be answered",
    413: "the body is too large",
    415: "the body is not said to be JSON",
    429: "the queue is full, or too much is under way for this key; ask again after retry-after seconds",
    500: "the server failed",
    503: "the server does not answer now: it is shutting down, or its engine died or hangs",
}
BODY_ERRORS = (404, 408, 413, 415)


def document(service: Service, endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """The whole description, for this model."""
    endpoints = [*endpoints]
    models: set[type[BaseModel]] = {ErrorAnswer, *(model for endpoint in endpoints for model in models_of(endpoint))}
    ordered = sorted(models, key=lambda model: model.__name__)
    _, schemas = models_json_schema([(model, "validation") for model in ordered], ref_template=REFERENCE)
    for part in parts_of(schemas):
        properties = part.get("properties", {})
        if part.get("additionalProperties") is False and "model" in properties:  # a request's, which is answered by this one
            names = [service.name] if "model" in part.get("required", ()) else [service.name, None]
            properties["model"] = {"enum": names}
        if part.get("format") == TOKEN:
            part["maximum"] = service.model.config.vocab_size - 1
    keys = bool(service.settings.keys)
    components: dict[str, Any] = {
        "schemas": schemas["$defs"],
        "headers": {"x-request-id": {"description": "the request in the log", "schema": {"type": "string"}}},
    }
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Pellucid serving {service.name}", "version": pellucid.__version__},
        "paths": {path_of(endpoint): {endpoint.method.lower(): operation(endpoint, keys=keys)} for endpoint in endpoints},
        "components": components,
        **({"security": [{"key": []}]} if keys else {}),
    }


def models_of(endpoint: Endpoint) -> list[type[BaseModel]]:
    return [
        model for model in (endpoint.body, endpoint.gives, endpoint.streams) if not (model is None or isinstance(model, str))
    ]


def parts_of(schema: Any) -> Iterator[dict[str, Any]]:
    """Every object in a schema."""
    if isinstance(schema, dict):
        yield schema
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from parts_of(part)


def path_of(endpoint: Endpoint) -> str:
    return re.sub(r"{(\w+):\w+}", r"{\1}", endpoint.path)


def operation(endpoint: Endpoint, *, keys: bool) -> dict[str, Any]:
    """What one path does."""
    names = re.findall(r"{(\w+)}", path_of(endpoint))
    errors = [status for status in ERRORS if endpoint.body is not None or names or status not in BODY_ERRORS]
    if endpoint.open:
        errors = [400, 500]
    elif not keys:
        errors.remove(401)
    found: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": re.sub(r"\W+", "_", path_of(endpoint)).strip("_"),
        "responses": {"200": {"description": "the answer", "headers": ID, "content": contents(endpoint)}}
        | {str(status): refusal(ERRORS[status]) for status in errors}
        | {"default": refusal("any other error")},
    }
    if endpoint.body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": reference(endpoint.body)}}}
    if names:
        schema = {"type": "string", "minLength": 1}
        found["parameters"] = [{"name": name, "in": "path", "required": True, "schema": schema} for name in names]
    if keys and endpoint.open:
        found["security"] = []
    return found


def contents(endpoint: Endpoint) -> dict[str, Any]:
    """The media types of an answer; a stream's schema is that of each of its events, whose data are JSON or `[DONE]`."""
    if isinstance(endpoint.gives, str):
        return {endpoint.gives: {"schema": {"type": "object" if "json" in endpoint.gives else "string"}}}
    found: dict[str, Any] = {"application/json": {"schema": reference(endpoint.gives)}}
    if endpoint.streams is not None:
        told = {"anyOf": [reference(endpoint.streams), reference(ErrorAnswer)]}
        data = {"type": "string", "contentMediaType": "application/json", "contentSchema": told}
        either = {"anyOf": [{"const": "[DONE]"}, data]}
        event = {"type": "object", "properties": {"event": {"type": "string"}, "data": either}, "required": ["data"]}
        found["text/event-stream"] = {"schema": event}
    return found


def reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REFERENCE.format(model=model.__name__)}


def refusal(description: str) -> dict[str, Any]:
    return {"description": description, "headers": ID, "content": {"application/json": {"schema": reference(ErrorAnswer)}}}
