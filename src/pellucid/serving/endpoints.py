"""A path of the interface: what it takes, what it gives, and how a request comes to its handler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pellucid.serving.answers import as_api_error
from pellucid.serving.bodies import Body, read_body
from pellucid.serving.errors import ApiError
from pellucid.serving.service import Call

LARGE = 50_000  # bytes of a body that is not read on the event loop, which others wait for


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One path. `gives` is a media type where it is no JSON of a model; `streams` is what the events of a stream hold."""

    path: str
    summary: str
    answer: Callable[..., Awaitable[Response]]
    gives: type[BaseModel] | str
    body: type[Body] | None = None  # none: GET
    streams: type[BaseModel] | None = None
    open: bool = False  # to everybody, without a key

    @property
    def method(self) -> str:
        return "GET" if self.body is None else "POST"

    def route(self) -> Route:
        return Route(self.path, self.respond, methods=[self.method])

    async def respond(self, request: Request) -> Response:
        call = Call(request.app.state.service, request.state.record)
        return await self.answer(call, *await self.arguments(request, call))

    async def arguments(self, request: Request, call: Call) -> list[Any]:
        """What the handler needs besides the call: the body, or the names in the path."""
        if self.body is None:
            return [*request.path_params.values()]
        kind, body = self.body, await request.body()
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != "application/json":  # what a page of another site may send without asking is none
            raise ApiError(415, f"the content type is {media[:100]!r}; send application/json", "unsupported_media_type")
        if len(body) > LARGE:
            return [await call.service.read(lambda: read_body(kind, body), call.deadline)]
        return [read_body(kind, body)]


def told(request: Request, error: Exception) -> Response:
    """An exception as a client is told of it."""
    answer = as_api_error(error)
    request.state.record.facts["error"] = answer.code
    return answer.response()
