"""The texts of one request while they are written: what the engine's thread notes of them, and what the event loop hears."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from pellucid.core.errors import PellucidError
from pellucid.generation.text import Text
from pellucid.serving.errors import ApiError

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class News:
    """What is new of one text. `number` is its place in the request."""

    number: int
    piece: str
    tokens: list[int]
    logprobs: list[float]
    top_logprobs: list[dict[int, float]]
    finish_reason: str
    error: PellucidError | None


@dataclass
class Following:
    """What the engine's thread notes of a text. Times are seconds of a clock that only goes forward."""

    text: Text
    writing: Writing
    number: int
    added: float
    admitted: float | None = None
    first: float | None = None  # when its first token was written
    last: float | None = None  # when its latest was
    counted: int = 0  # tokens whose times are noted
    told: int = 0  # tokens that are told

    def moved(self) -> bool:
        """Whether there are more tokens than before, or an end."""
        return bool(len(self.text.tokens) > self.counted or self.text.finish_reason)

    def admit(self, when: float) -> None:
        """It has a place in the engine since a step that began then."""
        if self.admitted is None:
            self.admitted = when

    def news(self) -> News | None:
        """What is new since the last call; of a text that is wanted whole nothing before its end."""
        text, end = self.text, len(self.text.tokens)
        if not (text.finish_reason or self.writing.streamed):
            return None
        told, self.told = self.told, end
        return News(
            number=self.number,
            piece=text.news(),
            tokens=text.tokens[told:end],
            logprobs=text.logprobs[told:end],
            top_logprobs=text.top_logprobs[told:end],
            finish_reason=text.finish_reason,
            error=text.error,
        )


class Left(Protocol):
    def __call__(self, count: int, /) -> None: ...


class Closed(Protocol):
    def __call__(self, writing: Writing, /, *, unfinished: bool) -> None: ...


class Writing:
    """The texts of one request, as the event loop sees them.

    `left` hears how many have ended, `closed` that nobody listens any more.
    """

    def __init__(self, texts: Sequence[Text], *, streamed: bool, deadline: float, left: Left, closed: Closed) -> None:
        self.streamed, self.deadline, self.left, self.closed = streamed, deadline, left, closed
        now = time.monotonic()
        self.following = [Following(text, self, number, now) for number, text in enumerate(texts)]
        self.open = len(texts)  # texts that have not ended
        self.arrived: deque[News] = deque()
        self.failed: Exception | None = None
        self.changed = asyncio.Event()

    def tell(self, news: News) -> None:
        if news.finish_reason and self.open:  # none is, after `close`
            self.open -= 1
            self.left(1)
        self.arrived.append(news)
        self.changed.set()

    def fail(self, error: Exception) -> None:
        self.failed = error
        self.changed.set()

    async def news(self) -> AsyncIterator[News]:
        """Everything that is told of the texts, until all have ended. Raises what they failed of, or a 408 at the deadline."""
        async for news in self.paced(float("inf")):
            if news is not None:
                yield news

    async def paced(self, silence: float) -> AsyncIterator[News | None]:
        """The same, with None for every so many seconds in which nothing was told."""
        unheard = len(self.following)  # texts whose end is not heard yet
        while unheard:
            self.changed.clear()
            while self.arrived:
                news = self.arrived.popleft()
                if news.error is not None:
                    raise news.error
                unheard -= bool(news.finish_reason)
                yield news
            if unheard and self.failed is not None:
                raise self.failed
            if unheard and not await self.change(silence):
                yield None

    async def change(self, silence: float) -> bool:
        """Wait until there is something new; False after that many seconds of silence."""
        left = self.deadline - time.monotonic()
        try:
            async with asyncio.timeout(min(silence, left)):
                return await self.changed.wait()
        except TimeoutError:
            if silence >= left:
                raise late() from None
            return False

    def close(self) -> None:
        """Let go of what is not finished, wherever it stands."""
        unfinished, self.open = self.open, 0
        self.left(unfinished)
        self.closed(self, unfinished=bool(unfinished))


async def within(awaited: Awaitable[Value], deadline: float) -> Value:
    """What is awaited, if it comes before the deadline, a time of the monotonic clock."""
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await awaited
    except TimeoutError:
        raise late() from None


def late() -> ApiError:
    return ApiError(408, "the request took longer than this server allows; ask for less", "timeout")
