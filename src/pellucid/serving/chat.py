"""POST /v1/chat/completions: what the assistant answers to a conversation."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema, model_validator
from starlette.responses import Response

from pellucid.generation.settings import Sampling
from pellucid.generation.text import Text
from pellucid.serving.answers import ALIVE, EventStream, Usage, as_json, event, new_id, noted, usage_of
from pellucid.serving.bodies import Body
from pellucid.serving.fields import TOP, Asking, wrong
from pellucid.serving.logprobs import ChatLogprobs, TokenLogprob, Transcript, for_chat
from pellucid.serving.service import Call, Service, Wish
from pellucid.serving.writing import News, Writing
from pellucid.text.chat import Message, encode_chat

MESSAGES = 1024  # of a conversation
PARTS = 64  # of a message


def read_content(value: Any) -> str:
    """The text of a message: one text, or several in the parts that clients may send."""
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else []
    if not 0 < len(parts) <= PARTS or not all(
        isinstance(part, dict) and part.keys() == {"type", "text"} and part["type"] == "text" and isinstance(part["text"], str)
        for part in parts
    ):
        raise wrong('Input should be a text, or a list of parts of the form {"type": "text", "text": ...}')
    return "".join(part["text"] for part in parts)


PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
    "additionalProperties": False,
}
Content = Annotated[
    str,
    PlainValidator(read_content),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": PART, "minItems": 1, "maxItems": PARTS}]}),
]


class ChatMessage(Body):
    """A turn. An assistant's may carry the empty fields that clients get from other servers and send back."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None


class ChatRequest(Asking):
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=TOP)] | None = None

    @model_validator(mode="after")
    def possible(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise wrong("top_logprobs has no effect without logprobs; leave it out")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise wrong("max_tokens and max_completion_tokens are both given; give one")
        return self


class ChatAnswer(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatHead(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: str
    seed: int


class ChatCompletion(ChatHead):
    """What the assistant answers; with the same seed it is the same."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatPiece(BaseModel):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class ChatChunk(ChatHead):
    """A piece of it, in a stream."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatPiece]
    usage: Usage | None = None


def talk_of(messages: list[ChatMessage]) -> list[Message]:
    """A conversation as templates know it: a developer's message is what used to be called a system's."""
    return [
        {"role": "system" if message.role == "developer" else message.role, "content": message.content} for message in messages
    ]


def encoded(service: Service, messages: list[Message]) -> list[int]:
    """The tokens of a conversation, up to where the assistant is to go on."""
    for message in messages:
        service.check_length(message["content"])
    return encode_chat(service.model.tokenizer, service.template, messages, add_generation_prompt=True)


class Told:
    """What is told of the answers to one request, in pieces or at once."""

    def __init__(self, call: Call, asked: ChatRequest, texts: Sequence[Text], sampling: Sampling) -> None:
        self.asked, self.tokenizer = asked, call.service.model.tokenizer
        self.texts = texts
        self.transcripts = [Transcript(text, self.tokenizer) for text in self.texts]
        self.common: dict[str, Any] = {
            "id": new_id("chatcmpl"), "created": int(time.time()), "model": call.service.name,
            "system_fingerprint": call.service.fingerprint, "seed": sampling.seed,
        }  # fmt: skip

    def places(self, news: News) -> list[TokenLogprob]:
        return for_chat(self.transcripts[news.number].take(news), self.tokenizer) if self.asked.logprobs else []

    def choice(self, news: News) -> ChatChoice:
        """A whole answer."""
        return ChatChoice(
            index=news.number,
            message=ChatAnswer(role="assistant", content=news.piece, refusal=None),
            logprobs=ChatLogprobs(content=self.places(news)) if self.asked.logprobs else None,
            finish_reason=news.finish_reason,  # errors were raised
        )

    def chunk(self, pieces: list[ChatPiece], **usage: Usage | None) -> str:
        return event(ChatChunk(**self.common, object="chat.completion.chunk", choices=pieces, **usage))


async def chat(call: Call, asked: ChatRequest) -> Response:
    service, n, sampling, streamed = call.service, asked.n or 1, asked.sampling(), bool(asked.stream)
    service.check("/v1/chat/completions", asked.model)
    talk = talk_of(asked.messages)
    call.note_text(messages=talk)
    prompt = await service.read(lambda: encoded(service, talk), call.deadline)
    limit = "max_completion_tokens" if asked.max_tokens is None else "max_tokens"
    most, tops = asked.max_tokens or asked.max_completion_tokens, asked.top_logprobs or 0
    wish = Wish(prompts=[prompt], max_tokens=most, n=n, top_logprobs=tops, limit=limit)
    texts = await service.prepare(call, asked, sampling, wish)
    told = Told(call, asked, texts, sampling)
    writing = service.begin(call, texts, streamed=streamed)
    if streamed:
        return EventStream(call, writing, events(asked, writing, told, call.service.settings.heartbeat))
    try:
        choices = [told.choice(news) async for news in writing.news()]
    finally:
        writing.close()
        noted(call, writing)
    choices.sort(key=lambda choice: choice.index)
    usage = usage_of(told.texts, n)
    return as_json(ChatCompletion(**told.common, object="chat.completion", choices=choices, usage=usage))


async def events(asked: ChatRequest, writing: Writing, told: Told, heartbeat: float) -> AsyncIterator[str]:
    """The stream: who speaks, an event for each piece, how each answer ended, and the usage."""
    unused: dict[str, Usage | None] = {"usage": None} if asked.usage_at_end else {}

    def piece(number: int, delta: ChatDelta, places: list[TokenLogprob] | None = None, reason: str = "") -> str:
        logprobs = ChatLogprobs(content=places) if places else None
        reason_or_none: Any = reason or None
        return told.chunk([ChatPiece(index=number, delta=delta, logprobs=logprobs, finish_reason=reason_or_none)], **unused)

    for number in range(len(told.texts)):
        yield piece(number, ChatDelta(role="assistant", content=""))
    async for news in writing.paced(heartbeat):
        if news is None:
            yield ALIVE
            continue
        places = told.places(news)
        if news.piece or places:
            yield piece(news.number, ChatDelta(content=news.piece), places)
        if news.finish_reason:
            yield piece(news.number, ChatDelta(), reason=news.finish_reason)
    if asked.usage_at_end:
        yield told.chunk([], usage=usage_of(told.texts, asked.n or 1))
