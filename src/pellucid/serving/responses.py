"""POST /v1/responses: the newer of OpenAI's interfaces for text, as far as it keeps nothing between two requests."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator
from starlette.responses import Response

from pellucid.generation.settings import Sampling
from pellucid.generation.text import Text
from pellucid.serving.answers import ALIVE, EventStream, as_json, event, new_id, noted, usage_of
from pellucid.serving.bodies import Body
from pellucid.serving.chat import MESSAGES, PARTS, encoded
from pellucid.serving.errors import ApiError
from pellucid.serving.fields import TOP, AnyObject, Drawing, PlainText, bounded, listed, wrong
from pellucid.serving.logprobs import TokenLogprob, Transcript, for_chat
from pellucid.serving.response_bodies import (
    CachedInput,
    DeltaEvent,
    ErrorEvent,
    Incomplete,
    ItemEvent,
    OutputMessage,
    OutputText,
    PartEvent,
    Reasoning,
    ResponseBody,
    ResponseEvent,
    ResponseUsage,
    TextEvent,
    TextSettings,
)
from pellucid.serving.service import Call, Wish
from pellucid.serving.writing import Writing
from pellucid.text.chat import Message

PARTS_OF = {"user": "input_text", "system": "input_text", "developer": "input_text", "assistant": "output_text"}
KEPT = {"type", "text", "annotations", "logprobs"}  # of a part; the last two of an answer that is sent back


def read_items(value: Any) -> list[Message]:
    """A conversation: a text is what a user says; messages have a role, and a text or its parts."""
    items = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(items, list) or not 0 < len(items) <= MESSAGES:
        raise wrong(f"Input should be a text, or a list of 1 to {MESSAGES:,} messages")
    return [read_item(number, item) for number, item in enumerate(items)]


def read_item(number: int, item: Any) -> Message:
    fields = item if isinstance(item, dict) else {}
    role, kind = fields.get("role"), fields.get("type", "message")
    unknown = fields.keys() - {"role", "content", "type", "id", "status"}
    if kind != "message" or not isinstance(role, str) or role not in PARTS_OF or unknown:
        raise wrong(f"Item {number} should be a message with a role and a content")
    content = fields.get("content")
    parts = [{"type": PARTS_OF[role], "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not 0 < len(parts) <= PARTS:
        raise wrong(f"The content of item {number} should be a text, or a list of its parts")
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != PARTS_OF[role] or not isinstance(part.get("text"), str):
            raise wrong(f"The content of item {number} should be a text, or a list of parts of the type {PARTS_OF[role]}")
        if part.keys() - KEPT:
            raise wrong(f"A part of item {number} has a field that is not supported")
    return {"role": "system" if role == "developer" else role, "content": "".join(part["text"] for part in parts)}


def message_schema(role: dict[str, Any], part: str) -> dict[str, Any]:
    """JSON schema of a message."""
    parts = {
        "type": "object",
        "properties": {"type": {"const": part}, "text": {"type": "string"}},
        "required": ["type", "text"],
        "additionalProperties": False,
    }
    content = {"anyOf": [{"type": "string"}, listed(parts, PARTS)]}
    return {
        "type": "object",
        "properties": {"type": {"const": "message"}, "role": role, "content": content},
        "required": ["role", "content"],
        "additionalProperties": False,
    }


MESSAGE = {
    "anyOf": [
        message_schema({"enum": ["user", "system", "developer"]}, "input_text"),
        message_schema({"const": "assistant"}, "output_text"),
    ]
}
Items = Annotated[
    list[Message], PlainValidator(read_items), WithJsonSchema({"anyOf": [{"type": "string"}, listed(MESSAGE, MESSAGES)]})
]


class FlatSchema(Body):
    """A JSON schema, as this interface has it."""

    type: Literal["json_schema"]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class TextOptions(Body):
    format: Annotated[PlainText | AnyObject | FlatSchema, Field(discriminator="type")] | None = None


class ResponseRequest(Drawing):
    input: Items
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    text: TextOptions | None = None
    include: Annotated[list[Literal["message.output_text.logprobs"]], Field(max_length=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=TOP)] | None = None
    stream: bool | None = None
    truncation: Literal["disabled"] | None = None

    @property
    def tells_logprobs(self) -> bool:
        return bool(self.include)

    def schema_of(self) -> dict[str, Any] | None:
        asked = self.text.format if self.text is not None else None
        if isinstance(asked, FlatSchema):
            return bounded(asked.schema_)
        return {"type": "object"} if isinstance(asked, AnyObject) else None

    @model_validator(mode="after")
    def possible(self) -> ResponseRequest:
        if self.top_logprobs and not self.tells_logprobs:
            raise wrong('top_logprobs has no effect unless include names "message.output_text.logprobs"')
        return self

    def conversation(self) -> list[Message]:
        before: list[Message] = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        return [*before, *self.input]


class Told:
    """A response while it is made."""

    def __init__(self, call: Call, asked: ResponseRequest, text: Text, sampling: Sampling) -> None:
        self.asked, self.tokenizer, self.text = asked, call.service.model.tokenizer, text
        self.id, self.item_id, self.number = new_id("resp"), new_id("msg"), 0
        self.transcript = Transcript(self.text, self.tokenizer)
        self.written, self.places = "", list[TokenLogprob]()
        format: Any = {"type": "text"} if asked.text is None or asked.text.format is None else asked.text.format
        said = format if isinstance(format, dict) else format.model_dump(by_alias=True, exclude_unset=True)
        self.common: dict[str, Any] = {
            "id": self.id, "object": "response", "created_at": int(time.time()), "model": call.service.name,
            "instructions": asked.instructions, "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {}, "parallel_tool_calls": False, "previous_response_id": None,
            "seed": sampling.seed, "store": False, "temperature": sampling.temperature, "text": TextSettings(format=said),
            "tool_choice": "none", "tools": [], "top_logprobs": asked.top_logprobs or 0,
            "top_p": 1.0 if asked.top_p is None else asked.top_p, "truncation": "disabled",
        }  # fmt: skip

    async def pieces(self, writing: Writing, silence: float) -> AsyncIterator[tuple[str, list[TokenLogprob]] | None]:
        """What is new of the text, each time; None for so many seconds of silence."""
        async for news in writing.paced(silence):
            if news is None:
                yield None
                continue
            places = for_chat(self.transcript.take(news), self.tokenizer) if self.asked.tells_logprobs else []
            self.written += news.piece
            self.places += places
            if news.piece or places:
                yield news.piece, places

    @property
    def status(self) -> Literal["in_progress", "completed", "incomplete"]:
        return (
            "in_progress" if not self.text.finish_reason else "completed" if self.text.finish_reason == "stop" else "incomplete"
        )

    def part(self) -> OutputText:
        return OutputText(type="output_text", text=self.written, annotations=[], logprobs=self.places)

    def item(self) -> OutputMessage:
        done = [] if self.status == "in_progress" else [self.part()]
        return OutputMessage(id=self.item_id, type="message", role="assistant", status=self.status, content=done)

    def response(self) -> ResponseBody:
        """The response as it stands."""
        ended, cut = self.status != "in_progress", self.status == "incomplete"
        return ResponseBody(
            **self.common,
            status=self.status,
            output=[self.item()] if ended else [],
            error=None,
            incomplete_details=Incomplete(reason="max_output_tokens") if cut else None,
            usage=self.usage() if ended else None,
        )

    def usage(self) -> ResponseUsage:
        used = usage_of([self.text])
        return ResponseUsage(
            input_tokens=used.prompt_tokens,
            input_tokens_details=CachedInput(cached_tokens=used.prompt_tokens_details.cached_tokens),
            output_tokens=used.completion_tokens,
            output_tokens_details=Reasoning(reasoning_tokens=0),
            total_tokens=used.total_tokens,
        )

    def broken(self, error: ApiError) -> str:
        """The last event of a stream that fails."""
        problem = error.answer.error
        return self.tell(ErrorEvent, "error", message=problem.message, code=problem.code, param=problem.param)

    def tell(self, kind: type[Any], name: str, **fields: Any) -> str:
        """The next event."""
        told = kind(type=name, sequence_number=self.number, **fields)
        self.number += 1
        return event(told, name)


async def respond(call: Call, asked: ResponseRequest) -> Response:
    service, sampling, streamed = call.service, asked.sampling(), bool(asked.stream)
    service.check("/v1/responses", asked.model)
    talk = asked.conversation()
    call.note_text(messages=talk)
    prompt = await service.read(lambda: encoded(service, talk), call.deadline)
    most, tops = asked.max_output_tokens, asked.top_logprobs or 0
    wish = Wish(prompts=[prompt], max_tokens=most, top_logprobs=tops, limit="max_output_tokens")
    [text] = texts = await service.prepare(call, asked, sampling, wish)
    told = Told(call, asked, text, sampling)
    writing = service.begin(call, texts, streamed=streamed)
    if streamed:
        return EventStream(call, writing, events(call, writing, told), broken=told.broken, done="")
    try:
        async for _ in told.pieces(writing, float("inf")):
            pass
    finally:
        writing.close()
        noted(call, writing)
    return as_json(told.response())


async def events(call: Call, writing: Writing, told: Told) -> AsyncIterator[str]:
    """The stream: the response, its one message and the message's one part begin, the text comes, and they end."""
    place = {"item_id": told.item_id, "output_index": 0, "content_index": 0}
    yield told.tell(ResponseEvent, "response.created", response=told.response())
    yield told.tell(ResponseEvent, "response.in_progress", response=told.response())
    yield told.tell(ItemEvent, "response.output_item.added", output_index=0, item=told.item())
    yield told.tell(PartEvent, "response.content_part.added", **place, part=told.part())
    async for new in told.pieces(writing, call.service.settings.heartbeat):
        if new is None:
            yield ALIVE
            continue
        piece, places = new
        yield told.tell(DeltaEvent, "response.output_text.delta", **place, delta=piece, logprobs=places)
    yield told.tell(TextEvent, "response.output_text.done", **place, text=told.written, logprobs=told.places)
    yield told.tell(PartEvent, "response.content_part.done", **place, part=told.part())
    yield told.tell(ItemEvent, "response.output_item.done", output_index=0, item=told.item())
    yield told.tell(ResponseEvent, f"response.{told.status}", response=told.response())
