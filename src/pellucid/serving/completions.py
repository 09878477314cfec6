"""POST /v1/completions: texts that go on with prompts."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator
from starlette.responses import Response

from pellucid.generation.settings import Sampling
from pellucid.generation.text import Text
from pellucid.serving.answers import ALIVE, EventStream, Usage, as_json, event, new_id, noted, usage_of
from pellucid.serving.errors import refusal
from pellucid.serving.fields import TOP, Asking, Prompts, wrong
from pellucid.serving.logprobs import CompletionLogprobs, Place, Transcript, ending_place, for_completions, prompt_places
from pellucid.serving.service import Call, Wish
from pellucid.serving.writing import News, Writing

USUAL = 16  # tokens, where a request does not say: as OpenAI's interface has it


class CompletionRequest(Asking):
    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=TOP)] | None = None
    echo: bool | None = None

    @model_validator(mode="after")
    def possible(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise wrong("best_of other than n is not supported; leave it out")
        if self.max_tokens == 0 and not self.echo:
            raise wrong("max_tokens 0 without echo asks for nothing; ask for at least 1")
        return self


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(BaseModel):
    """The texts that follow the prompts; one with the same seed is the same. A stream sends their pieces as such objects."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    seed: int
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Told:
    """What is told of the texts of one request, in pieces or at once."""

    def __init__(self, call: Call, asked: CompletionRequest, texts: Sequence[Text], sampling: Sampling) -> None:
        self.asked, self.tokenizer = asked, call.service.model.tokenizer
        self.texts = texts
        self.echoes = [self.echo(call, number) for number in range(len(self.texts))]
        self.transcripts = [
            Transcript(text, self.tokenizer, len(echo)) for text, echo in zip(self.texts, self.echoes, strict=True)
        ]
        self.begun = [False] * len(self.texts)
        self.common: dict[str, Any] = {
            "id": new_id("cmpl"), "object": "text_completion", "created": int(time.time()), "model": call.service.name,
            "system_fingerprint": call.service.fingerprint, "seed": sampling.seed,
        }  # fmt: skip

    def echo(self, call: Call, number: int) -> str:
        return call.service.text_of(self.asked.prompt[number // (self.asked.n or 1)]) if self.asked.echo else ""

    def choice(self, news: News) -> CompletionChoice:
        """What is new of one text, its prompt first if that is to be repeated."""
        number, text = news.number, self.texts[news.number]
        first, self.begun[number] = not self.begun[number], True
        places: list[Place] = []
        if self.asked.logprobs is not None:
            places += prompt_places(text, self.tokenizer) if first and self.asked.echo else []
            places += (transcript := self.transcripts[number]).take(news)
            places += ending_place(text, transcript.offset + transcript.told) if news.finish_reason else []
        return CompletionChoice(
            index=number,
            text=(self.echoes[number] if first else "") + news.piece,
            logprobs=None
            if self.asked.logprobs is None
            else for_completions(places, self.tokenizer, top=self.asked.logprobs > 0),
            finish_reason=news.finish_reason or None,  # errors were raised
        )

    def completion(self, choices: list[CompletionChoice], **usage: Usage | None) -> Completion:
        return Completion(**self.common, choices=choices, **usage)


async def complete(call: Call, asked: CompletionRequest) -> Response:
    call.service.check("/v1/completions", asked.model)
    sampling, n, streamed = asked.sampling(), asked.n or 1, bool(asked.stream)
    wish = Wish(
        prompts=asked.prompt,
        max_tokens=USUAL if asked.max_tokens is None else asked.max_tokens,
        n=n,
        top_logprobs=asked.logprobs or 0,
        prompt_logprobs=bool(asked.echo and (asked.logprobs is not None or asked.max_tokens == 0)),
    )
    if wish.prompt_logprobs and call.service.model.config.architecture == "encoder-decoder":
        raise refusal("an encoder-decoder gives its prompt no probability; leave echo or logprobs out", "echo")
    call.note_text(prompts=asked.prompt)
    texts = await call.service.prepare(call, asked, sampling, wish)
    told = Told(call, asked, texts, sampling)
    writing = call.service.begin(call, texts, streamed=streamed)
    if streamed:
        return EventStream(call, writing, events(asked, writing, told, call.service.settings.heartbeat))
    try:
        choices = [await choice_of(call, told, news) async for news in writing.news()]
    finally:
        writing.close()
        noted(call, writing)
    choices.sort(key=lambda choice: choice.index)
    return as_json(told.completion(choices, usage=usage_of(told.texts, n)))


async def choice_of(call: Call, told: Told, news: News) -> CompletionChoice:
    """A whole text; one with log-probabilities may hold thousands of them, and is not made on the event loop."""
    if told.asked.logprobs is None:
        return told.choice(news)
    return await call.service.read(lambda: told.choice(news), call.deadline)


async def events(asked: CompletionRequest, writing: Writing, told: Told, heartbeat: float) -> AsyncIterator[str]:
    """The stream: an event for each piece, and one for the usage."""
    unused: dict[str, Usage | None] = {"usage": None} if asked.usage_at_end else {}
    async for news in writing.paced(heartbeat):
        if news is None:
            yield ALIVE
            continue
        choice = told.choice(news)
        if choice.text or choice.finish_reason or (choice.logprobs is not None and choice.logprobs.tokens):
            yield event(told.completion([choice], **unused))
    if asked.usage_at_end:
        yield event(told.completion([], usage=usage_of(told.texts, asked.n or 1)))
