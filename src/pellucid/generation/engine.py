"""Writing text: a network, a prompt, one token after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from pellucid.core.errors import ConfigError, ModelError
from pellucid.generation.beam import search
from pellucid.generation.decoding import begin
from pellucid.generation.sampling import Sampling, choose
from pellucid.network.network import Network
from pellucid.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A continuation, without its prompt."""

    text: str
    tokens: list[int]
    logprobs: list[float]  # of each token, under the model itself: before penalty, temperature and filters
    finish_reason: str  # "stop": end of text or a stop string; "length": max_tokens


@dataclass
class Row:
    """One continuation under way."""

    prompt: list[int]
    tokenizer: Tokenizer
    stop: Sequence[str]
    ends: frozenset[int] = frozenset()  # tokens that end a text, besides the tokenizer's end of text
    special: bool = False  # of an encoder-decoder, whose text is about the prompt and names special tokens: the gaps
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    told: int = 0  # characters of the text already given out by `news`
    finish_reason: str = ""

    def __post_init__(self) -> None:
        after = () if self.special else self.prompt  # what answers another text does not go on with it
        self.decoder = self.tokenizer.stream(special=self.special, after=after)

    def take(self, token: int, logprob: float, max_tokens: int) -> None:
        """Append a token; end at end of text, at a stop string, or at `max_tokens`."""
        if token == self.tokenizer.end_of_text or token in self.ends:
            return self.finish("stop")
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.text += self.decoder.push(token)
        if not self.cut() and len(self.tokens) == max_tokens:
            self.finish("length")

    def finish(self, reason: str) -> None:
        self.text += self.decoder.finish()
        if not self.cut():
            self.finish_reason = reason

    def cut(self) -> bool:
        """End the text before the first stop string in it, if there is one."""
        found = [at for stop in self.stop if (at := self.text.find(stop)) >= 0]
        if found:
            self.text, self.finish_reason = self.text[: min(found)], "stop"
        return bool(found)

    def news(self) -> str:
        """The text that is new since the last call, less an ending that may become a stop string."""
        end = whole = len(self.text)
        if not self.finish_reason:
            for stop in self.stop:
                longest = next((n for n in range(min(len(stop) - 1, whole), 0, -1) if self.text.endswith(stop[:n])), 0)
                end = min(end, whole - longest)
        new, self.told = self.text[self.told : end], max(self.told, end)
        return new

    def result(self) -> Generation:
        return Generation(text=self.text, tokens=self.tokens, logprobs=self.logprobs, finish_reason=self.finish_reason)


def generate(
    network: Network,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    *,
    max_tokens: int | None = None,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    cache: bool = True,
    beams: int = 1,
    length_penalty: float = 1.0,
    ends: frozenset[int] = frozenset(),
) -> list[Generation]:
    """Continue every prompt (text or token ids) by at most `max_tokens` tokens (None: up to the context's end).

    An encoder-decoder reads the prompt and writes a text about it. The same prompt and seed give the same tokens alone or in a
    batch, with or without the cache. With `beams`, the likeliest continuation that beam search finds; nothing is drawn then.
    A text ends at the tokenizer's end of text, or at one of `ends`.
    Raises `ConfigError` when a prompt and its continuation do not fit into the context.
    """
    rows = [begun(network, tokenizer, prompt, stop, ends) for prompt in prompts]
    check_search(beams, length_penalty)
    if beams > 1:
        for row in rows:
            searched(network, row, max_tokens, sampling or Sampling(), beams, length_penalty)
    else:
        for _ in run(network, rows, max_tokens, sampling or Sampling(), cache):
            pass
    return [row.result() for row in rows]


def stream(
    network: Network,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    *,
    max_tokens: int | None = None,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    beams: int = 1,
    length_penalty: float = 1.0,
    ends: frozenset[int] = frozenset(),
) -> Iterator[str]:
    """Continue one prompt, piece by piece as the text becomes certain; the pieces add up to `generate`'s text.

    With `beams` nothing is certain before the search ends, so that the text is one piece.
    """
    row = begun(network, tokenizer, prompt, stop, ends)
    check_search(beams, length_penalty)
    if beams > 1:
        searched(network, row, max_tokens, sampling or Sampling(), beams, length_penalty)
    else:
        for _ in run(network, [row], max_tokens, sampling or Sampling(), cache=True):
            if piece := row.news():
                yield piece
    if piece := row.news():
        yield piece


def begun(
    network: Network, tokenizer: Tokenizer, prompt: str | Sequence[int], stop: Sequence[str], ends: frozenset[int]
) -> Row:
    """A continuation of which nothing is written yet."""
    gaps = network.config.architecture == "encoder-decoder"
    return Row(encode(network, tokenizer, prompt), tokenizer, check_stop(stop), ends, special=gaps)


def check_stop(stop: Sequence[str]) -> Sequence[str]:
    if isinstance(stop, str):
        stop = [stop]
    if "" in stop:
        raise ConfigError("a stop string is empty, which would end every text at once; leave it out")
    return stop


def encode(network: Network, tokenizer: Tokenizer, prompt: str | Sequence[int]) -> list[int]:
    """A prompt's ids; an empty prompt becomes an end of text, after which training has seen documents begin."""
    gaps = network.config.architecture == "encoder-decoder"  # its prompts may name them: <extra_id_0>
    ids = tokenizer.encode(prompt, special=gaps, framed=True) if isinstance(prompt, str) else list(prompt)
    if not ids:
        if tokenizer.end_of_text is None:
            raise ModelError("this model's tokenizer has no end-of-text token to start from; give a prompt")
        ids = [tokenizer.end_of_text]
    check_ids(ids, network.config.vocab_size)
    return ids


def check_ids(ids: Iterable[int], size: int) -> None:
    for id in ids:
        if not 0 <= id < size:
            raise ConfigError(f"token id {id} is not in the vocabulary of {size:,}")


def room(network: Network, rows: list[Row], max_tokens: int | None) -> list[int]:
    """How many tokens each row may generate."""
    context = network.config.context_length
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError(f"max_tokens must be at least 1, not {max_tokens}")
    apart = network.config.architecture == "encoder-decoder"  # what it writes does not follow the prompt
    for row in rows:
        length = len(row.prompt)
        if apart:
            if length > context:
                raise ConfigError(f"the prompt has {length:,} tokens, but the model's context is {context:,}; shorten it")
            length = 1
        if length >= context:
            raise ConfigError(
                f"the prompt has {length:,} tokens, but the model's context is {context:,} and must hold the continuation too; "
                "shorten the prompt"
            )
        if max_tokens is not None and length + max_tokens > context:
            both = f"the prompt's {length:,} tokens and {max_tokens:,} more exceed"
            raise ConfigError(
                f"{f'an answer of {max_tokens:,} tokens exceeds' if apart else both} the model's context of {context:,}; "
                f"use --max-tokens {context - length} or less"
            )
    return [max_tokens or context - (1 if apart else len(row.prompt)) for row in rows]


@torch.inference_mode()
def run(network: Network, rows: list[Row], max_tokens: int | None, sampling: Sampling, cache: bool) -> Iterator[None]:
    """Advance all unfinished rows by one token, again and again; yields after each."""
    if not rows:
        return
    limits = room(network, rows, max_tokens)
    decoding, inputs = begin(network, [row.prompt for row in rows], limits, cache=cache)
    first = inputs
    while any(not row.finish_reason for row in rows):
        logits = network.scores(decoding.advance(inputs)).float()
        logprobs = logits.log_softmax(dim=-1)
        penalised = zip(first, rows, strict=True) if sampling.repetition_penalty != 1 else ()
        seen = [torch.tensor(before + row.tokens, device=network.device) for before, row in penalised]
        chosen = choose(logits, seen, sampling, [len(row.tokens) for row in rows])
        for i, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
            if not row.finish_reason:
                row.take(token, float(logprobs[i, token]), limits[i])
        inputs = [[] if row.finish_reason else [token] for row, token in zip(rows, chosen.tolist(), strict=True)]
        yield


def check_search(beams: int, length_penalty: float) -> None:
    if beams < 1:
        raise ConfigError(f"beams must be at least 1, not {beams}")
    if beams == 1 and length_penalty != 1:
        raise ConfigError(f"length_penalty {length_penalty} has no effect without beams; leave it out, or give 2 beams or more")


def searched(network: Network, row: Row, max_tokens: int | None, sampling: Sampling, beams: int, length_penalty: float) -> None:
    """One prompt's continuation by beam search."""
    if sampling not in (Sampling(), Sampling(temperature=0)):
        raise ConfigError("beam search draws nothing, so sampling options have no effect with beams; leave them out")
    [limit] = room(network, [row], max_tokens)
    end = row.tokenizer.end_of_text
    ends = row.ends if end is None else row.ends | {end}
    found = search(network, row.prompt, beams=beams, max_tokens=limit, ends=ends, length_penalty=length_penalty)
    for token, logprob in zip(found.tokens, found.logprobs, strict=False):
        if not row.finish_reason:
            row.take(token, logprob, len(found.tokens) + 1)
    if not row.finish_reason:
        row.finish("stop" if found.ended else "length")
