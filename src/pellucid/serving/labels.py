"""POST /v1/classify: what a classifier or a tagger says of texts. POST /v1/score: how likely a language model finds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema
from starlette.responses import Response

from pellucid.evaluation.likelihood import opening
from pellucid.evaluation.predict import Prediction
from pellucid.serving.answers import as_json
from pellucid.serving.embeddings import ReadUsage
from pellucid.serving.errors import refusal
from pellucid.serving.fields import NOT_EMPTY, TEXTS, Harmless, listed, wrong
from pellucid.serving.logprobs import named, number
from pellucid.serving.service import Call, Service

TOGETHER = 8  # texts that are read at once: other requests' tokens wait so long
Value = TypeVar("Value")


def read_texts(value: Any) -> list[str]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not 0 < len(found) <= TEXTS or not all(isinstance(one, str) and one for one in found):
        raise wrong(f"Input should be a text, or a list of up to {TEXTS:,} texts; none may be empty")
    return found


Texts = Annotated[list[str], PlainValidator(read_texts), WithJsonSchema({"anyOf": [NOT_EMPTY, listed(NOT_EMPTY, TEXTS)]})]


class ClassifyRequest(Harmless):
    """Texts. One that is too long is refused, unless it may be cut or split into parts whose scores are averaged."""

    input: Texts
    long: Literal["error", "cut", "split"] | None = None
    temperature: Annotated[float, Field(gt=0, le=100)] | None = None


class Span(BaseModel):
    start: int
    end: int
    label: str
    text: str


class Classified(BaseModel):
    """What the model says of a text. A classifier: label, probability, probabilities; one that gives several labels: labels,
    probabilities; a regression: value; a tagger: words, tags, spans."""

    index: int
    label: str | None = None
    labels: list[str] | None = None
    probability: float | None = None
    probabilities: dict[str, float] | None = None
    value: float | None = None
    words: list[str] | None = None
    tags: list[str] | None = None
    spans: list[Span] | None = None


class Classification(BaseModel):
    object: Literal["list"]
    model: str
    data: list[Classified]
    usage: ReadUsage


class ScoreRequest(Harmless):
    input: Texts


class Scored(BaseModel):
    """The natural logarithm of a text's probability, and of each of its tokens'."""

    index: int
    logprob: float
    tokens: list[str]
    token_logprobs: list[float]


class Scores(BaseModel):
    object: Literal["list"]
    model: str
    data: list[Scored]
    usage: ReadUsage


async def classify(call: Call, asked: ClassifyRequest) -> Response:
    service, long = call.service, asked.long or "error"
    service.check("/v1/classify", asked.model)
    rows = await service.read(
        lambda: tokens_of(service, asked.input, room=service.context if long == "error" else None), call.deadline
    )

    def work(texts: Sequence[str]) -> list[Prediction]:
        return service.model.predict(texts, temperature=asked.temperature, long=long)

    found = await in_batches(call, asked.input, work)
    data = [Classified(index=n, **as_lists(asdict(prediction))) for n, prediction in enumerate(found)]
    return as_json(Classification(object="list", model=service.name, data=data, usage=usage_of(call, rows)))


async def score(call: Call, asked: ScoreRequest) -> Response:
    service = call.service
    service.check("/v1/score", asked.model)
    before = len(opening(service.model.tokenizer))
    rows = await service.read(lambda: tokens_of(service, asked.input, room=service.context + 1 - before), call.deadline)

    def work(texts: Sequence[str]) -> list[list[float]]:
        return [service.model.score(text).tolist() for text in texts]

    found = await in_batches(call, asked.input, work)
    data = [
        Scored(
            index=n,
            logprob=number(sum(logprobs)),
            tokens=[named(service.model.tokenizer, id)[0] for id in row],
            token_logprobs=[number(logprob) for logprob in logprobs],
        )
        for n, (row, logprobs) in enumerate(zip(rows, found, strict=True))
    ]
    return as_json(Scores(object="list", model=service.name, data=data, usage=usage_of(call, rows)))


def tokens_of(service: Service, texts: Sequence[str], *, room: int | None) -> list[list[int]]:
    """The tokens of texts, of which none may have more than there is room for."""
    rows: list[list[int]] = [ids.tolist() for ids in service.model.tokenizer.encode_batch(texts)]
    for number_, row in enumerate(rows):
        if room is not None and len(row) > room:
            raise refusal(
                f"this model's maximum context length is {room:,} tokens, but text {number_} has {len(row):,}; shorten it",
                "input",
                "context_length_exceeded",
            )
    return rows


async def in_batches(call: Call, texts: Sequence[str], work: Callable[[Sequence[str]], list[Value]]) -> list[Value]:
    """What the work makes of the texts, few at a time, so that others are not held up."""
    found: list[Value] = []
    for at in range(0, len(texts), TOGETHER):
        found += await call.service.worker.do(partial(work, texts[at : at + TOGETHER]), deadline=call.deadline)
    call.note(texts=len(texts))
    call.note_text(prompts=[*texts])
    return found


def as_lists(prediction: dict[str, Any]) -> dict[str, Any]:
    return {name: [*value] if isinstance(value, tuple) else value for name, value in prediction.items()}


def usage_of(call: Call, rows: Sequence[Sequence[int]]) -> ReadUsage:
    count = sum(map(len, rows))
    call.note(prompt_tokens=count)
    return ReadUsage(prompt_tokens=count, total_tokens=count)
