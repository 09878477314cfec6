"""The fields that several requests share, with their limits: whatever costs is bounded."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from pellucid.generation.constrain import Constraint
from pellucid.generation.settings import Sampling
from pellucid.serving.bodies import Body

PROMPTS = 128  # of one request
TEXTS = 2048  # of one request that only reads
STOPS, STOP_LENGTH = 16, 256
BIASES = 1024
TOP = 20  # alternatives told at each place
PATTERN = 10_000  # characters of a regular expression
SCHEMA = 65_536  # characters of a JSON schema, or of all choices
CHOICES = 1024

Prompt = str | list[int]


def wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("wrong", message)


def is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(id) is int for id in value)


def several(most: int) -> Callable[[Any], list[Prompt]]:
    """Texts or lists of token ids: one, or a list of up to so many."""

    def read(value: Any) -> list[Prompt]:
        found = [value] if isinstance(value, str) or is_ids(value) else value
        if not isinstance(found, list) or not found or not all(isinstance(one, str) or is_ids(one) for one in found):
            raise wrong("Input should be a text, token ids, or a list of either that is not empty")
        if len(found) > most:
            raise wrong(f"Input should have at most {most:,} texts")
        if any(not 0 <= id < 2**31 for one in found if isinstance(one, list) for id in one):
            raise wrong("Token ids should be in the vocabulary")
        return found

    return read


def read_stop(value: Any) -> list[str]:
    found = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(one, str) and 0 < len(one) <= STOP_LENGTH for one in found):
        raise wrong(f"Input should be a text of 1 to {STOP_LENGTH} characters, or a list of such")
    if len(found) > STOPS:
        raise wrong(f"Input should have at most {STOPS} texts")
    return found


def read_false(value: bool) -> bool:
    if value:
        raise wrong("Input should be false, as nothing is kept here")
    return value


def listed(item: dict[str, Any], most: int, least: int = 1) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": least, "maxItems": most}


TOKEN = "token-id"  # the format of a token's id, which is below the size of a vocabulary
IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "format": TOKEN}, "minItems": 1}
TEXT = {"type": "string"}
STOP = {"type": "string", "minLength": 1, "maxLength": STOP_LENGTH}


NOT_EMPTY = TEXT | {"minLength": 1}


def prompts_schema(most: int, text: dict[str, Any] = TEXT) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [text, listed(text, most), IDS, listed(IDS, most)]})


Prompts = Annotated[list[Prompt], PlainValidator(several(PROMPTS)), prompts_schema(PROMPTS)]
Inputs = Annotated[list[Prompt], PlainValidator(several(TEXTS)), prompts_schema(TEXTS, NOT_EMPTY)]
Stop = Annotated[
    list[str], PlainValidator(read_stop), WithJsonSchema({"anyOf": [STOP, listed(STOP, STOPS, 0), {"type": "null"}]})
]
TokenId = Annotated[int, Field(ge=0, lt=2**31, json_schema_extra={"format": TOKEN})]
BiasedToken = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,6})$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Label = Annotated[str, Field(max_length=512)]
False_ = Annotated[bool, AfterValidator(read_false), WithJsonSchema({"type": "boolean", "const": False})]  # 0 is none


class StreamOptions(Body):
    include_usage: bool | None = None


class PlainText(Body):
    type: Literal["text"]


class AnyObject(Body):
    type: Literal["json_object"]


class NamedSchema(Body):
    """A JSON schema. The answer always follows it, `strict` or not."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class SchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: NamedSchema


Format = Annotated[PlainText | AnyObject | SchemaFormat, Field(discriminator="type")]


class Named(Body):
    """A request that names its model."""

    model: str


class Harmless(Named):
    """What clients send for their own records, and what says what is so here anyway."""

    user: Label | None = None
    metadata: Annotated[dict[str, Label], Field(max_length=16)] | None = None
    store: False_ | None = None
    service_tier: Literal["auto", "default"] | None = None


class Drawing(Harmless):
    """How the next token is chosen: the settings of `pellucid generate`, by OpenAI's names where it has them.

    At temperature 0 the likeliest token has all of the probability, and every filter (top_p, top_k, min_p, typical_p) keeps it:
    clients send both, and get the likeliest token.
    """

    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[dict[BiasedToken, Bias], Field(max_length=BIASES, json_schema_extra={"additionalProperties": False})] | None
    ) = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: Stop = Field(default_factory=list)
    stop_token_ids: Annotated[list[TokenId], Field(max_length=STOPS)] | None = None
    regex: Annotated[str, Field(min_length=1, max_length=PATTERN, json_schema_extra={"format": "regex"})] | None = None
    choices: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=SCHEMA)]], Field(min_length=1, max_length=CHOICES)] | None
    ) = None

    def sampling(self) -> Sampling:
        """The settings; without a seed a new one, small enough to be a number in any language."""
        filters = ("top_p", "top_k", "min_p", "typical_p") if self.temperature != 0 else ()
        names = (*filters, "temperature", "repetition_penalty", "presence_penalty", "frequency_penalty")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        biases = {int(token): bias for token, bias in (self.logit_bias or {}).items()}
        seed = secrets.randbelow(2**53) if self.seed is None else self.seed
        return Sampling.of({**given, "logit_bias": biases, "seed": seed})  # type: ignore[typeddict-item]

    def schema_of(self) -> dict[str, Any] | None:
        """The JSON schema that the answer has to follow, if it has."""
        return None

    @property
    def constrained(self) -> bool:
        return not (self.schema_of() is None and self.regex is None and self.choices is None)

    @model_validator(mode="after")
    def ends_once(self) -> Drawing:
        if self.constrained and self.stop_token_ids:
            raise wrong("stop_token_ids has no effect on a text of a given form, which ends where its form does; leave it out")
        return self

    def constraint(self) -> Constraint | None:
        return Constraint.of(self.schema_of(), self.regex, self.choices)


class Asking(Drawing):
    """What completions and chat completions share."""

    n: Annotated[int, Field(ge=1, le=PROMPTS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: Format | None = None

    @property
    def usage_at_end(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def schema_of(self) -> dict[str, Any] | None:
        return schema_in(self.response_format)

    @model_validator(mode="after")
    def effective(self) -> Asking:
        """Refuse what would have no effect."""
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options has no effect without stream; leave it out")
        return self


def schema_in(format: PlainText | AnyObject | SchemaFormat | None) -> dict[str, Any] | None:
    """The JSON schema that a format asks for."""
    if isinstance(format, AnyObject):
        return {"type": "object"}
    return bounded(format.json_schema.schema_) if isinstance(format, SchemaFormat) else None


def bounded(schema: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(schema)) > SCHEMA:
        raise wrong(f"the JSON schema has more than {SCHEMA:,} characters")
    return schema
