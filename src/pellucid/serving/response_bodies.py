"""What POST /v1/responses gives: the response, and the events that tell of its making."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, RootModel

from pellucid.serving.errors import ErrorBody
from pellucid.serving.logprobs import TokenLogprob


class OutputText(BaseModel):
    type: Literal["output_text"]
    text: str
    annotations: list[str]  # always empty
    logprobs: list[TokenLogprob]


class OutputMessage(BaseModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class CachedInput(BaseModel):
    cached_tokens: int


class Reasoning(BaseModel):
    reasoning_tokens: int


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: CachedInput
    output_tokens: int
    output_tokens_details: Reasoning
    total_tokens: int


class Incomplete(BaseModel):
    reason: Literal["max_output_tokens"]


class TextSettings(BaseModel):
    format: dict[str, Any]


class ResponseBody(BaseModel):
    """An answer and how it was asked for; with the same seed it is the same."""

    id: str
    object: Literal["response"]
    created_at: int
    model: str
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    output: list[OutputMessage]
    error: ErrorBody | None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None
    seed: int
    store: Literal[False]
    temperature: float
    text: TextSettings
    tool_choice: Literal["none"]
    tools: list[str]  # always empty
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None


class Numbered(BaseModel):
    sequence_number: int


class ResponseEvent(Numbered):
    """The response as it stands: at its beginning and at its end."""

    type: Literal["response.created", "response.in_progress", "response.completed", "response.incomplete", "response.failed"]
    response: ResponseBody


class ItemEvent(Numbered):
    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputMessage


class Placed(Numbered):
    item_id: str
    output_index: int
    content_index: int


class PartEvent(Placed):
    type: Literal["response.content_part.added", "response.content_part.done"]
    part: OutputText


class DeltaEvent(Placed):
    type: Literal["response.output_text.delta"]
    delta: str
    logprobs: list[TokenLogprob]


class TextEvent(Placed):
    type: Literal["response.output_text.done"]
    text: str
    logprobs: list[TokenLogprob]


class ErrorEvent(Numbered):
    type: Literal["error"]
    message: str
    code: str | None
    param: str | None


class ResponseEvents(RootModel[ResponseEvent | ItemEvent | PartEvent | DeltaEvent | TextEvent | ErrorEvent]):
    """What a stream holds, one in each event."""
