"""Errors as clients of OpenAI's interface expect them: `{"error": {message, type, param, code}}`, with a status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel
from starlette.responses import Response

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ErrorBody(BaseModel):
    """What went wrong: one sentence, the kind, the field at fault if it is one, and a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    error: ErrorBody


@dataclass
class ApiError(Exception):
    """A request that gets no answer but the reason why."""

    status: int
    message: str
    code: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def answer(self) -> ErrorAnswer:
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return ErrorAnswer(error=ErrorBody(message=self.message, type=kind, param=self.param, code=self.code))

    @property
    def json(self) -> str:
        return self.answer.model_dump_json()

    def response(self) -> Response:
        return Response(self.json, self.status, media_type="application/json", headers=dict(self.headers))


def refusal(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """What the client has to change."""
    return ApiError(400, message, code, param)


def busy(message: str, code: str) -> ApiError:
    """What may be asked again in a moment."""
    return ApiError(429, message, code, headers={"retry-after": "1"})


def unavailable(message: str, code: str) -> ApiError:
    return ApiError(503, message, code, headers={"retry-after": "5"})


def failure() -> ApiError:
    """A mistake of ours, of which the log says more than the client needs to know."""
    return ApiError(500, "the server failed on this request; its log says why, under the x-request-id", "internal_error")
