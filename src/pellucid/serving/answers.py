"""What answers have in common: usage, JSON, and streams of server-sent events."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Callable, Sequence

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pellucid.core.errors import PellucidError
from pellucid.generation.text import Text
from pellucid.serving.errors import ApiError, failure, refusal
from pellucid.serving.service import Call
from pellucid.serving.writing import Writing

logger = logging.getLogger("pellucid.serving")

ALIVE = ": still at work\n\n"  # a comment, which keeps proxies from closing a quiet stream
DONE = "data: [DONE]\n\n"


class CachedTokens(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


def usage_of(texts: Sequence[Text], n: int = 1) -> Usage:
    """What was read and written: each prompt counts once, however many texts follow it."""
    read, written = sum(len(text.request.prompt) for text in texts[::n]), sum(len(text.tokens) for text in texts)
    cached = CachedTokens(cached_tokens=sum(text.cached for text in texts[::n]))
    return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written, prompt_tokens_details=cached)


def noted(call: Call, writing: Writing) -> None:
    """What the log says of texts that are written, or as far as they are."""
    texts = [following.text for following in writing.following]
    first = [following.first - call.record.started for following in writing.following if following.first is not None]
    waits = [one.admitted - one.added for one in writing.following if one.admitted is not None]
    call.note(
        completion_tokens=sum(len(text.tokens) for text in texts),
        cached_tokens=sum(text.cached for text in texts),
        finish_reasons=[text.finish_reason or "left" for text in texts],
        queue_seconds=round(max(waits, default=0.0), 4),
        first_token_seconds=round(min(first), 4) if first else None,
    )
    call.note_text(texts=[text.text for text in texts])


def new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


def as_json(answer: BaseModel, status: int = 200) -> Response:
    """An answer; fields that were not set are left out."""
    return Response(answer.model_dump_json(exclude_unset=True), status, media_type="application/json")


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of an exception."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PellucidError):
        return refusal(str(error)) if error.exit_code == 2 else ApiError(503, str(error), "out_of_resources")
    logger.error("a request failed", exc_info=error)
    return failure()


def event(answer: BaseModel, name: str | None = None) -> str:
    data = f"data: {answer.model_dump_json(exclude_unset=True)}\n\n"
    return data if name is None else f"event: {name}\n{data}"


def told_in_stream(error: ApiError) -> str:
    return f"data: {error.json}\n\n"


class EventStream(Response):
    """Server-sent events of texts that are written; an error in the middle is an event too, as `broken` tells it."""

    media_type = "text/event-stream"

    def __init__(
        self,
        call: Call,
        writing: Writing,
        events: AsyncIterator[str],
        *,
        broken: Callable[[ApiError], str] = told_in_stream,
        done: str = DONE,
    ) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.call, self.writing, self.events, self.broken, self.done = call, writing, events, broken, done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - the guard listens
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for piece in self.pieces():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": self.done.encode()})
        finally:
            self.writing.close()
            noted(self.call, self.writing)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The events as bytes."""
        try:
            async for event in self.events:
                yield event.encode()
        except Exception as error:  # the answer has begun: only an event can still tell it
            told = as_api_error(error)
            self.call.note(error=told.code)
            yield self.broken(told).encode()
