"""Log-probabilities of tokens in the two layouts that OpenAI's interface has: that of completions, and that of chats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from pydantic import BaseModel

from pellucid.generation.text import Text
from pellucid.serving.writing import News
from pellucid.text.tokenizer import Tokenizer

LEAST = -9999.0  # stands for minus infinity, which JSON has not


@dataclass(frozen=True)
class Place:
    """A token of a text: where its characters begin, how likely it was, and what else was."""

    token: int
    offset: int
    logprob: float | None  # None: of a prompt's first token, which follows nothing
    top: Mapping[int, float] | None


class Transcript:
    """The places of one text's tokens, released as its characters are told.

    What a stop string cut off is never released: not its characters, and not their tokens.
    """

    def __init__(self, text: Text, tokenizer: Tokenizer, offset: int = 0) -> None:
        after = () if text.request.apart else text.request.prompt
        self.decoder = tokenizer.stream(special=text.request.apart, after=after)
        self.offset = offset  # of the text's beginning
        self.read = self.told = 0  # characters that the tokens make, and of them those told
        self.held: list[Place] = []

    def take(self, news: News) -> list[Place]:
        """The places that belong to what was told up to now."""
        for at, (token, logprob) in enumerate(zip(news.tokens, news.logprobs, strict=True)):
            top = news.top_logprobs[at] if news.top_logprobs else None
            self.held.append(Place(token, self.offset + self.read, logprob, top))
            self.read += len(self.decoder.push(token))
        self.told += len(news.piece)
        end = self.offset + self.told
        if news.finish_reason and self.read + len(self.decoder.finish()) == self.told:
            end += 1  # nothing is cut off: tokens without characters at the end belong to the text too
        ready = [place for place in self.held if place.offset < end]
        self.held = self.held[len(ready) :]
        return ready


def prompt_places(text: Text, tokenizer: Tokenizer) -> list[Place]:
    """The places of a prompt's tokens, once it is read."""
    decoder, offset, places = tokenizer.stream(), 0, list[Place]()
    logprobs = [None, *text.prompt_logprobs]
    tops: list[Mapping[int, float] | None] = [None, *text.prompt_top_logprobs]
    for at, token in enumerate(text.request.prompt):
        places.append(Place(token, offset, logprobs[at], tops[at] if text.prompt_top_logprobs else None))
        offset += len(decoder.push(token))
    return places


def ending_place(text: Text, offset: int) -> list[Place]:
    """The token that ended a text, if one did: no part of the text, but what the model said."""
    return [] if text.ending is None else [Place(text.ending[0], offset, text.ending[1], text.ending[2])]


@lru_cache(maxsize=65_536)
def named(tokenizer: Tokenizer, token: int) -> tuple[str, bytes]:
    """A token as text, by its bytes if they are no whole characters, and its bytes."""
    found = tokenizer.token_bytes(token) if token < tokenizer.vocab_size else b""
    try:
        name = found.decode()
    except UnicodeDecodeError:
        name = "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)
    return name or f"<{token}>", found


def number(logprob: float) -> float:
    return max(logprob, LEAST)


class CompletionLogprobs(BaseModel):
    """Four lists, with an entry for every token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


def for_completions(places: Sequence[Place], tokenizer: Tokenizer, *, top: bool) -> CompletionLogprobs:
    """The layout of completions; its alternatives, told if `top`, have the token itself among them."""
    return CompletionLogprobs(
        tokens=[named(tokenizer, place.token)[0] for place in places],
        token_logprobs=[None if place.logprob is None else number(place.logprob) for place in places],
        top_logprobs=[alternatives(place, tokenizer) for place in places] if top else None,
        text_offset=[place.offset for place in places],
    )


def alternatives(place: Place, tokenizer: Tokenizer) -> dict[str, float] | None:
    if place.top is None:
        return None
    found: dict[str, float] = {}
    for token, logprob in (*place.top.items(), (place.token, place.logprob or 0.0)):
        found.setdefault(named(tokenizer, token)[0], number(logprob))  # of two tokens of one name the likelier
    return found


class Alternative(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Alternative):
    top_logprobs: list[Alternative]


class ChatLogprobs(BaseModel):
    """A list with an object for every token."""

    content: list[TokenLogprob]


def for_chat(places: Sequence[Place], tokenizer: Tokenizer) -> list[TokenLogprob]:
    """The layout of chats."""
    found = []
    for place in places:
        name, raw = named(tokenizer, place.token)
        others = []
        for token, logprob in (place.top or {}).items():
            other, its_bytes = named(tokenizer, token)
            others.append(Alternative(token=other, logprob=number(logprob), bytes=[*its_bytes]))
        found.append(TokenLogprob(token=name, logprob=number(place.logprob or 0.0), bytes=[*raw], top_logprobs=others))
    return found
