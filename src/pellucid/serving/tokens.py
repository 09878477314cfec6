"""/tokenize, /detokenize, /tokenizer_info: what the model reads, for clients that count or send tokens themselves."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field, model_validator
from starlette.responses import Response

from pellucid.core.errors import TokenizerError
from pellucid.serving.answers import as_json
from pellucid.serving.bodies import Body
from pellucid.serving.chat import MESSAGES, ChatMessage, encoded, talk_of
from pellucid.serving.fields import TokenId, wrong
from pellucid.serving.logprobs import named
from pellucid.serving.service import Call, Service

MOST = 1_000_000  # tokens of a request


class TokenizeRequest(Body):
    """A text, or a conversation up to where the assistant is to go on. What frames a text is added, unless it is not wanted.

    A text that is nothing but the name of a special token is that token: so clients ask for its id. Within other text such a
    name is text, as in a prompt.
    """

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MESSAGES)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def one_of_them(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise wrong("one of prompt and messages is needed; give one")
        if self.messages is not None and self.add_special_tokens is not None:
            raise wrong("add_special_tokens has no effect on messages, whose template says what is added; leave it out")
        return self


class Tokenized(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: Annotated[list[TokenId], Field(max_length=MOST)]


class Detokenized(BaseModel):
    prompt: str


class TokenizerInfo(BaseModel):
    """The tokenizer: its kind, its size, and the names of the tokens that clients ask for."""

    kind: str
    vocab_size: int
    model_max_length: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    special_tokens: dict[str, int]
    chat_template: str | None


async def tokenize(call: Call, asked: TokenizeRequest) -> Response:
    service = call.service
    service.check_name(asked.model)
    ids = await service.read(lambda: ids_of(service, asked), call.deadline)
    found = Tokenized(count=len(ids), max_model_len=service.context, tokens=ids)
    if asked.return_token_strs:
        found.token_strs = [named(service.model.tokenizer, id)[0] for id in ids]
    call.note(prompt_tokens=len(ids))
    return as_json(found)


def ids_of(service: Service, asked: TokenizeRequest) -> list[int]:
    if asked.messages is not None:
        return encoded(service, talk_of(asked.messages))
    tokenizer, text = service.model.tokenizer, asked.prompt or ""
    special = tokenizer.backend.token_to_id(text) in tokenizer.special_ids
    return tokenizer.encode(text, special=special, framed=asked.add_special_tokens is not False)


async def detokenize(call: Call, asked: DetokenizeRequest) -> Response:
    call.service.check_name(asked.model)
    decode = call.service.model.tokenizer.decode
    return as_json(Detokenized(prompt=await call.service.read(lambda: decode(asked.tokens, special=True), call.deadline)))


async def tokenizer_info(call: Call) -> Response:
    tokenizer = call.service.model.tokenizer

    def name(id: int | None) -> str | None:
        return None if id is None else tokenizer.backend.id_to_token(id)

    try:
        template: str | None = call.service.template.source
    except TokenizerError:  # one that is not Jinja: chats say so, and nothing else needs it
        template = None
    special = {found: id for id in sorted(tokenizer.special_ids) if (found := name(id)) is not None}
    return as_json(
        TokenizerInfo(
            kind=tokenizer.kind,
            vocab_size=tokenizer.vocab_size,
            model_max_length=call.service.context,
            bos_token=name(tokenizer.beginning),
            eos_token=name(tokenizer.end_of_text),
            pad_token=name(tokenizer.pad),
            special_tokens=special,
            chat_template=template,
        )
    )
