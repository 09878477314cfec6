"""POST /v1/explain: what an answer hangs on, and how far that can be trusted."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema
from starlette.responses import Response

from pellucid.core.progress import Silent
from pellucid.explanation.attribution import Attribution, Attributions, Method, attribute, missing
from pellucid.explanation.question import Question, ask, read
from pellucid.explanation.removal import Removal
from pellucid.generation.generate import check_ids
from pellucid.serving.answers import as_json
from pellucid.serving.embeddings import ReadUsage
from pellucid.serving.errors import refusal
from pellucid.serving.fields import IDS, NOT_EMPTY, Harmless, Prompt, is_ids, wrong
from pellucid.serving.service import Call, Service
from pellucid.serving.worker import Pause

MOST = 2048  # tokens of a text that is explained here
TOGETHER = 256  # tokens, or one text, that are read between two steps: other requests wait so long
ANSWER = 256  # characters of a target or foil
METHODS: tuple[Method, ...] = ("shapley", "occlusion", "attention")  # without a gradient, which no model held for serving has


def read_one(value: Any) -> Prompt:
    if not (isinstance(value, str) and value) and not (is_ids(value) and all(0 <= id < 2**31 for id in value)):
        raise wrong("Input should be a text or token ids, and not empty")
    return value  # type: ignore[no-any-return]


One = Annotated[Prompt, PlainValidator(read_one), WithJsonSchema({"anyOf": [NOT_EMPTY, IDS]})]
Answer = Annotated[str, Field(min_length=1, max_length=ANSWER)]


class ExplainRequest(Harmless):
    """A text, or the tokens of a conversation, and what the model may answer: a continuation or a label.

    Without a target it is the likeliest answer, without a foil the likeliest other one.
    """

    input: One
    target: Answer | None = None
    foil: Answer | None = None
    by: Literal["auto", "words", "tokens", "sentences"] | None = None
    methods: Annotated[list[Method], Field(min_length=1, max_length=6)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None


class ExplainedUnit(BaseModel):
    """Some characters of the text, from `start` up to `end`."""

    text: str
    start: int
    end: int


class ExplainedBy(BaseModel):
    """What one method says of each unit, and how faithful it is; `score` is to be held against chance."""

    method: str
    values: list[float]
    errors: list[float] | None
    score: float
    comprehensiveness: float
    sufficiency: float
    deletion: float
    insertion: float
    probability: float
    beats_chance: bool


class ByChance(BaseModel):
    """The score of random orders of the units: its mean, and where 95 % of them lie."""

    value: float
    low: float
    high: float
    orders: int


class Explained(BaseModel):
    """The difference that is explained, in nats, and attributions of it, the most faithful first."""

    object: Literal["explanation"]
    model: str
    measure: str
    difference: float
    target: str
    foil: str | None
    text: str
    units: list[ExplainedUnit]
    verdict: str
    attributions: list[ExplainedBy]
    chance: ByChance
    usage: ReadUsage


async def explain(call: Call, asked: ExplainRequest) -> Response:
    service = call.service
    service.check("/v1/explain", asked.model)
    call.note_text(prompts=[asked.input])
    await service.read(lambda: check_length(service, asked.input), call.deadline)
    question, found = await service.worker.do_long(lambda pause: explained(service, asked, pause), deadline=call.deadline)
    call.note(prompt_tokens=len(question.ids))
    return as_json(told(service, question, found))


def check_length(service: Service, given: Prompt) -> None:
    """Refuse what is no token, and more tokens than are explained here."""
    network, tokenizer, most = service.model.network, service.model.tokenizer, min(MOST, service.context)
    if isinstance(given, str):
        service.check_length(given)
    else:
        check_ids(given, network.config.vocab_size)
    if (count := len(read(network, tokenizer, given)[1])) > most:
        said = f"the text has {count:,} tokens, and {most:,} can be explained here; explain a part of it"
        raise refusal(said, "input", "context_length_exceeded")


def explained(service: Service, asked: ExplainRequest, pause: Pause) -> tuple[Question, Attributions]:
    """The work, on the thread that owns the network, which pauses for others after every few texts."""
    network, tokenizer = service.model.network, service.model.tokenizer
    question = ask(network, tokenizer, asked.input, target=asked.target, foil=asked.foil, by=asked.by or "auto")
    methods = asked.methods or [method for method in METHODS if method not in missing(question)]
    removal = Removal(question, batch_tokens=TOGETHER)
    return question, attribute(question, methods=methods, removal=removal, seed=asked.seed or 0, progress=Pausing(pause))


class Pausing(Silent):
    """Progress of long work, at every step of which others have their turn."""

    def __init__(self, pause: Pause) -> None:
        self.pause = pause

    def advance(self, amount: float, note: str = "") -> None:  # noqa: ARG002 - it only keeps time
        self.pause()


def told(service: Service, question: Question, found: Attributions) -> Explained:
    """What was found, for a client."""
    score = found.chance.intervals["score"]
    return Explained(
        object="explanation",
        model=service.name,
        measure=question.measure,
        difference=found.chance.removal.whole,
        target=question.target.name,
        foil=None if question.foil is None else question.foil.name,
        text=question.text,
        units=[ExplainedUnit(text=unit.text, start=unit.start, end=unit.end) for unit in question.units],
        verdict=found.verdict,
        attributions=[explained_by(one) for one in found.found],
        chance=ByChance(value=score.value, low=score.low, high=score.high, orders=found.chance.orders),
        usage=ReadUsage(prompt_tokens=len(question.ids), total_tokens=len(question.ids)),
    )


def explained_by(one: Attribution) -> ExplainedBy:
    errors = None if one.errors is None else one.errors.tolist()
    return ExplainedBy(method=one.method, values=one.values.tolist(), errors=errors, **asdict(one.faithfulness))
