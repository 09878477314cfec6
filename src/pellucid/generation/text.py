"""One text under way: what was asked for, what is written, and how it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.errors import ModelError, PellucidError
from pellucid.generation.constrain import Constraint, Matcher
from pellucid.generation.lookup import Lookup
from pellucid.generation.sampling import Draw
from pellucid.generation.settings import Sampling
from pellucid.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A continuation, without its prompt."""

    text: str
    tokens: list[int]
    logprobs: list[float]  # of each token, under the model itself: before penalty, temperature and filters
    finish_reason: str  # "stop": an end of text, a stop string or the end of what it must be; "length": max_tokens
    top_logprobs: list[dict[int, float]] = field(default_factory=list)  # the likeliest tokens at each place, if asked for
    prompt_logprobs: list[float] | None = None  # of each token of the prompt but the first, if asked for


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt and how to go on with it."""

    prompt: list[int]
    vocabulary: int  # of the network
    max_tokens: int
    sampling: Sampling
    stop: Sequence[str] = ()  # strings before which the text ends
    ends: frozenset[int] = frozenset()  # tokens that end a text, besides the tokenizer's end of text
    endless: bool = False  # no token ends it, for measurements
    choice: int = 0  # which of several continuations of the same prompt it is
    top_logprobs: int = 0  # how many of the likeliest tokens to tell at each place
    prompt_logprobs: bool = False
    start: int | None = None  # what an encoder-decoder's text begins with, which does not go on with the prompt

    @property
    def apart(self) -> bool:
        """Whether the text is about the prompt; it then names special tokens too: the gaps."""
        return self.start is not None


class Text:
    """What is written of a request."""

    def __init__(self, request: Request, tokenizer: Tokenizer, constraint: Constraint | None = None) -> None:
        self.request = request
        self.ends = request.ends if tokenizer.end_of_text is None else request.ends | {tokenizer.end_of_text}
        if request.endless:
            self.ends = frozenset()
        # what answers another text does not go on with it
        self.decoder = tokenizer.stream(special=request.apart, after=() if request.apart else request.prompt)
        self.matcher = None if constraint is None else Matcher(constraint, tokenizer, request.vocabulary, self.ends)
        self.tokens: list[int] = []
        self.lookup = Lookup(request.prompt)
        self.logprobs: list[float] = []
        self.top_logprobs: list[dict[int, float]] = []
        self.prompt_logprobs: list[float] = []
        self.prompt_top_logprobs: list[dict[int, float]] = []  # the likeliest tokens at each place of the prompt but the first
        self.ending: tuple[int, float, dict[int, float] | None] | None = None  # the token that ended it, as `take` got it
        self.text = ""
        self.told = 0  # characters of the text already given out by `news`
        self.finish_reason = ""
        self.error: PellucidError | None = None  # why it failed, if it did
        self.cached = 0  # tokens of the prompt that were remembered

    @property
    def draw(self) -> Draw:
        """What its next token depends on."""
        request = self.request
        read = self.lookup.tokens if request.start is None else [request.start, *self.tokens]
        return Draw(sampling=request.sampling, read=read, written=self.tokens, choice=request.choice)

    def take(self, token: int, logprob: float, top: dict[int, float] | None = None) -> None:
        """Append a token; end at an end of text, at a stop string, or at the limit."""
        if not self.request.max_tokens:  # only the prompt's log-probabilities are asked for
            return self.finish("length")
        if token in self.ends:
            self.ending = token, logprob, top
            return self.finish("stop")
        self.tokens.append(token)
        self.lookup.extend([token])
        self.logprobs.append(logprob)
        if top is not None:
            self.top_logprobs.append(top)
        self.text += self.decoder.push(token)
        if self.cut():
            return None
        try:
            if self.matcher is not None:
                self.matcher.take(token)
        except ModelError as error:
            return self.fail(error)
        if self.matcher is not None and self.matcher.ended:
            self.finish("stop")
        elif len(self.tokens) == self.request.max_tokens:
            self.finish("length")

    def restrict(self, logits: Float[Tensor, " vocab"]) -> None:
        """Make impossible, in place, what may not come next."""
        if self.matcher is not None:
            try:
                logits.masked_fill_(~self.matcher.allowed().to(logits.device), -torch.inf)
            except ModelError as error:
                self.fail(error)

    def fail(self, error: PellucidError) -> None:
        """End a text that cannot go on, which is no concern of the others."""
        self.error, self.finish_reason = error, "error"

    def finish(self, reason: str) -> None:
        self.text += self.decoder.finish()
        if not self.cut():
            self.finish_reason = reason

    def cut(self) -> bool:
        """End the text before the first stop string in it, if there is one."""
        found = [at for stop in self.request.stop if (at := self.text.find(stop)) >= 0]
        if found:
            self.text, self.finish_reason = self.text[: min(found)], "stop"
        return bool(found)

    def news(self) -> str:
        """The text that is new since the last call, less an ending that may become a stop string."""
        end = whole = len(self.text)
        if not self.finish_reason:
            for stop in self.request.stop:
                longest = next((n for n in range(min(len(stop) - 1, whole), 0, -1) if self.text.endswith(stop[:n])), 0)
                end = min(end, whole - longest)
        new, self.told = self.text[self.told : end], max(self.told, end)
        return new

    def result(self) -> Generation:
        """What was written; raises why it could not be."""
        if self.error is not None:
            raise self.error
        return Generation(
            text=self.text,
            tokens=self.tokens,
            logprobs=self.logprobs,
            finish_reason=self.finish_reason,
            top_logprobs=self.top_logprobs,
            prompt_logprobs=self.prompt_logprobs if self.request.prompt_logprobs else None,
        )
