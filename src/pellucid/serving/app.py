"""The application: which path answers what."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pellucid.api import Model
from pellucid.serving import chat, completions, status
from pellucid.serving.answers import as_api_error
from pellucid.serving.bodies import Body, read_body
from pellucid.serving.errors import ApiError
from pellucid.serving.guard import Guard
from pellucid.serving.page_files import page
from pellucid.serving.record import Recorded
from pellucid.serving.service import Call, Service
from pellucid.serving.settings import ServeSettings

LARGE = 50_000  # bytes of a body that is not read on the event loop, which others wait for
OPEN = ("/livez", "/", "/page/")  # paths that need no key


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A path, what it takes and what it gives."""

    path: str
    answer: Callable[..., Awaitable[Response]]
    gives: type[BaseModel] | str  # a media type, where it is no JSON
    body: type[Body] | None = None  # none: GET
    streams: type[BaseModel] | None = None  # what the events of a stream hold

    @property
    def method(self) -> str:
        return "GET" if self.body is None else "POST"

    def route(self) -> Route:
        return Route(self.path, self.respond, methods=[self.method])

    async def respond(self, request: Request) -> Response:
        call = Call(request.app.state.service, request.state.record)
        try:
            return await self.answer(call, *await self.arguments(request, call))
        except Exception as error:
            return told(request, error)

    async def arguments(self, request: Request, call: Call) -> list[Any]:
        if self.body is None:
            return [*request.path_params.values()]
        kind, body = self.body, await request.body()
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != "application/json":  # what a page of another site may send without asking is none
            raise ApiError(415, f"the content type is {media[:100]!r}; send application/json", "unsupported_media_type")
        if len(body) > LARGE:
            return [await call.service.read(lambda: read_body(kind, body), call.deadline)]
        return [read_body(kind, body)]


ENDPOINTS = (
    Endpoint(path="/v1/models", answer=status.models, gives=status.ModelList),
    Endpoint(path="/v1/models/{model:path}", answer=status.one_model, gives=status.ServedModel),
    Endpoint(
        path="/v1/completions",
        answer=completions.complete,
        body=completions.CompletionRequest,
        gives=completions.Completion,
        streams=completions.Completion,
    ),
    Endpoint(
        path="/v1/chat/completions",
        answer=chat.chat,
        body=chat.ChatRequest,
        gives=chat.ChatCompletion,
        streams=chat.ChatChunk,
    ),
    Endpoint(path="/livez", answer=status.live, gives=status.Health),
    Endpoint(path="/readyz", answer=status.ready, gives=status.Readiness),
    Endpoint(path="/metrics", answer=status.metrics, gives="text/plain"),
)


def told(request: Request, error: Exception) -> Response:
    """An exception as a client is told of it."""
    answer = as_api_error(error)
    request.state.record.facts["error"] = answer.code
    return answer.response()


async def refused(request: Request, error: Exception) -> Response:
    """What the router refuses: a path or a method that is not there."""
    assert isinstance(error, HTTPException)
    path, method = request.url.path[:200], request.method
    if error.status_code == 405:
        allowed = dict(error.headers or {})
        return told(request, ApiError(405, f"{path} does not take {method}", "method_not_allowed", headers=allowed))
    return told(
        request, ApiError(error.status_code, f"there is no {path} here; /openapi.json lists what there is", "not_found")
    )


def create_app(model: Model, settings: ServeSettings | None = None) -> Starlette:
    """The ASGI application that serves a model; `app.state.service` is what it stands on."""
    settings = settings or ServeSettings()
    service = Service(model, settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await service.close()

    routes = [endpoint.route() for endpoint in ENDPOINTS]
    pages = [Route("/", page), Route("/page/{name}", page)]
    paths = frozenset({"/", *(endpoint.path for endpoint in ENDPOINTS)})
    app = Starlette(
        routes=[*routes, *pages],
        lifespan=lifespan,
        middleware=[
            Middleware(Recorded, metrics=service.metrics, paths=paths),
            Middleware(Guard, settings=settings, open_paths=OPEN),
        ],
        exception_handlers={HTTPException: refused},
    )
    app.state.service = service
    return app
