"""What a server is besides its protocol: the model under its name, the thread that owns it, and what a request becomes."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch

import pellucid
from pellucid.evaluation.embed import Pooling
from pellucid.generation.engine import Engine
from pellucid.generation.generate import check_ids, encode, requested
from pellucid.generation.settings import Sampling
from pellucid.generation.text import Text
from pellucid.model import Model
from pellucid.network.build import outline
from pellucid.serving.errors import ApiError, refusal
from pellucid.serving.fields import Drawing, Prompt
from pellucid.serving.metrics import Metrics
from pellucid.serving.settings import ServeSettings
from pellucid.serving.worker import Worker
from pellucid.serving.writing import Writing, within
from pellucid.text.chat import ChatTemplate

Value = TypeVar("Value")

READERS = 2  # threads that make tokens of texts
COMPILING = 20.0  # seconds that a request waits for its grammar
MOST_PLACES = 4_000_000  # log-probabilities that one answer may tell: about 100 MB
SHRINKING = 4  # characters that normalising may make one of


@dataclass
class Record:
    """What is known of a request in the end: a line of the log."""

    id: str
    started: float = field(default_factory=time.monotonic)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One request under way."""

    service: Service
    record: Record

    @property
    def deadline(self) -> float:
        return self.record.started + self.service.settings.timeout

    def note(self, **facts: Any) -> None:
        self.record.facts |= facts

    def note_text(self, **texts: Any) -> None:
        """What people wrote or read, which only goes into the log if it is asked for."""
        if self.service.settings.log_text:
            self.note(**texts)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a request wants of the texts that follow its prompts, besides how they are drawn."""

    prompts: Sequence[Prompt]
    max_tokens: int | None
    n: int = 1
    top_logprobs: int = 0
    prompt_logprobs: bool = False
    limit: str = "max_tokens"  # the name of the field


class Service:
    """A model that is served."""

    def __init__(self, model: Model, settings: ServeSettings) -> None:
        self.model, self.settings = model, settings
        self.name = settings.name or name_of(model.path)
        self.created = int(time.time())
        self.context = settings.context_for(model.config)
        self.metrics = Metrics()
        self.worker = Worker(self.engine(), settings.slots + settings.queue, progressed=self.metrics.progressed)
        if self.worker.engine is not None:
            self.metrics.watch(self.worker.engine, settings.slots * self.context)
        self.readers = ThreadPoolExecutor(READERS, thread_name_prefix="pellucid-read")
        self.compilers = ThreadPoolExecutor(1, thread_name_prefix="pellucid-compile")

    def engine(self) -> Engine | None:
        config, size = self.model.config, self.model.tokenizer.vocab_size
        if not config.generates:
            return None
        return Engine(self.model.network, known=size, slots=self.settings.slots, length=self.context, sources=self.context)

    @property
    def abilities(self) -> list[str]:
        """The paths that answer for this model."""
        config = self.model.config
        writes = ["/v1/completions", "/v1/chat/completions", "/v1/responses"] if config.generates else []
        apart = config.architecture == "encoder-decoder"
        scores = ["/v1/score"] if config.generates and not apart else []
        labels = ["/v1/classify"] if config.head in ("classify", "tag") else []
        why = ["/v1/explain"] if config.head != "none" else []
        return [*writes, *scores, *labels, *why, *([] if apart else ["/v1/embeddings"])]

    def check_name(self, name: str | None) -> None:
        """Refuse a model that is not here."""
        if name is not None and name != self.name:
            raise ApiError(
                404, f"the model {name[:200]!r} is not served here; this is {self.name!r}", "model_not_found", "model"
            )

    def check(self, path: str, name: str) -> None:
        """Refuse a model that is not here, what this one cannot do, and everything when nothing is taken any more."""
        self.check_name(name)
        self.worker.check()
        if path not in self.abilities:
            can = ", ".join(self.abilities)
            raise refusal(f"the model {self.name!r} cannot answer {path}; it answers {can}", "model", "unsupported_by_model")

    @cached_property
    def fingerprint(self) -> str:
        """Changes with what may change an answer to a request with a seed."""
        network = self.model.network
        held = network.held and (network.held.precision, network.held.nbytes, network.held.step is not None)
        parts = (pellucid.__version__, torch.__version__, self.name, self.model.config, network.dtype, held)
        return f"fp_{hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}"

    @cached_property
    def template(self) -> ChatTemplate:
        return ChatTemplate.of(self.model.tokenizer)

    @property
    def has_template(self) -> bool:
        """Whether the model came with a chat template of its own, be it one that can be used or not."""
        return self.model.tokenizer.config.get("chat_template") is not None

    @cached_property
    def parameters(self) -> int:
        """How many weights the model has, however they are packed."""
        return sum(weight.numel() for weight in outline(self.model.config).parameters())

    @cached_property
    def pooling(self) -> Pooling:
        path = self.model.path
        return Pooling.of(path) if path is not None and path.is_dir() else Pooling()

    async def read(self, work: Callable[[], Value], deadline: float) -> Value:
        """The result of work that needs a processor, but not the network."""
        return await within(asyncio.get_running_loop().run_in_executor(self.readers, work), deadline)

    async def prepare(self, call: Call, asked: Drawing, sampling: Sampling, wish: Wish) -> list[Text]:
        """The texts that are to be written. Raises what is wrong with the request."""
        if (count := len(wish.prompts) * wish.n) > (most := self.worker.places):
            raise refusal(f"{count} texts are asked for at once, and {most} are allowed; ask for fewer", "n")
        self.worker.check(count)
        work = lambda: self.texts(asked, sampling, wish)  # noqa: E731
        if asked.constrained:  # on a thread of its own, so that nobody's grammar keeps others from being read
            patience = min(call.deadline, time.monotonic() + COMPILING)
            texts = await within(asyncio.get_running_loop().run_in_executor(self.compilers, work), patience)
        else:
            texts = await self.read(work, call.deadline)
        call.note(prompt_tokens=sum(len(text.request.prompt) for text in texts[:: wish.n]), seed=sampling.seed)
        return texts

    def begin(self, call: Call, texts: Sequence[Text], *, streamed: bool) -> Writing:
        """Begin to write them; who gets this closes it, whatever happens."""
        return self.worker.write(texts, streamed=streamed, deadline=call.deadline)

    def texts(self, asked: Drawing, sampling: Sampling, wish: Wish) -> list[Text]:
        network, tokenizer, constraint = self.model.network, self.model.tokenizer, asked.constraint()
        check_ids(asked.stop_token_ids or (), network.config.vocab_size)
        ends = self.model.ends | frozenset(asked.stop_token_ids or ())
        made, places = list[Text](), 0
        for prompt in wish.prompts:
            if isinstance(prompt, str):
                self.check_length(prompt)
            ids = encode(network, tokenizer, prompt)
            room = self.room(len(ids), wish)
            places += ((len(ids) if wish.prompt_logprobs else 0) + room) * wish.n * (1 + wish.top_logprobs)
            if places > MOST_PLACES and (wish.top_logprobs or wish.prompt_logprobs):
                raise refusal(
                    "the answer could hold too many log-probabilities; ask for fewer texts, tokens or logprobs", "logprobs"
                )
            for choice in range(wish.n):
                request = requested(
                    network, tokenizer, ids, room, sampling, asked.stop, ends, choice,
                    top_logprobs=wish.top_logprobs, prompt_logprobs=wish.prompt_logprobs,
                )  # fmt: skip
                made.append(text := Text(request, tokenizer, constraint))
                if text.matcher is not None:
                    text.matcher.allowed()  # may take a second, and fail: here it keeps nobody's text waiting
        return made

    def room(self, length: int, wish: Wish) -> int:
        """How many tokens may follow a prompt of so many; nothing is cut to make room."""
        apart = self.model.config.architecture == "encoder-decoder"  # what it writes does not follow the prompt
        before, wanted = 1 if apart else length, 1 if wish.max_tokens is None else wish.max_tokens
        if length > self.context or before + wanted > self.context:
            more = "" if wish.max_tokens is None else f" and {wish.limit} {wish.max_tokens:,} more"
            raise refusal(
                f"this model's maximum context length is {self.context:,} tokens, but the prompt has {length:,}{more}; "
                "shorten the prompt, or ask for fewer tokens",
                None if wish.max_tokens is None or length >= self.context else wish.limit,
                "context_length_exceeded",
            )
        return self.context - before if wish.max_tokens is None else wish.max_tokens

    @cached_property
    def longest_token(self) -> int | None:
        """The most characters that a token may stand for; None where there is no limit, as for what is dropped or unknown."""
        tokenizer = self.model.tokenizer
        if tokenizer.kind not in ("bpe", "chars"):
            return None
        return SHRINKING * max(len(tokenizer.token_bytes(id)) for id in range(tokenizer.vocab_size))

    def check_length(self, text: str) -> None:
        """Refuse a text that is too long whatever its tokens are, before seconds are spent on making them."""
        if self.longest_token is not None and len(text) > self.longest_token * (self.context + 1):
            raise refusal(
                f"this model's maximum context length is {self.context:,} tokens, but the prompt has {len(text):,} characters, "
                "which are more; shorten the prompt",
                code="context_length_exceeded",
            )

    def text_of(self, prompt: Prompt) -> str:
        return prompt if isinstance(prompt, str) else self.model.tokenizer.decode(prompt)

    async def close(self) -> None:
        await self.worker.stop()
        self.readers.shutdown(wait=False, cancel_futures=True)
        self.compilers.shutdown(wait=False, cancel_futures=True)


def name_of(path: Path | None) -> str:
    """What a model is called: by its folder, or by the run that the folder belongs to."""
    if path is None:
        return "pellucid"
    path = path.resolve()
    name = path.parent.name if path.name == "model" else path.stem if path.suffix in (".gguf", ".bin") else path.name
    return name or "pellucid"
