"""Writing text: prompts in, continuations out, all at once or piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pellucid.core.errors import ConfigError, ModelError
from pellucid.generation.beam import search
from pellucid.generation.constrain import Constraint
from pellucid.generation.engine import Engine
from pellucid.generation.settings import Sampling
from pellucid.generation.text import Generation, Request, Text
from pellucid.network.network import Network
from pellucid.text.tokenizer import Tokenizer

TOGETHER = 32  # texts that are under way at once


def generate(
    network: Network,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    *,
    max_tokens: int | None = None,
    sampling: Sampling | None = None,
    stop: str | Sequence[str] = (),
    cache: bool = True,
    beams: int = 1,
    length_penalty: float = 1.0,
    ends: frozenset[int] = frozenset(),
    n: int = 1,
    top_logprobs: int = 0,
    prompt_logprobs: bool = False,
    constraint: Constraint | None = None,
) -> list[Generation]:
    """Continue every prompt (text or token ids) by at most `max_tokens` tokens (None: up to the context's end).

    An encoder-decoder reads the prompt and writes a text about it. The same prompt and seed give the same tokens alone or in a
    batch. With `beams`, the likeliest continuation that beam search finds; nothing is drawn then. Each prompt
    has `n` continuations, one behind the other, and all of them are what `constraint` says that they must be.
    A text ends at the tokenizer's end of text, or at one of `ends`.
    Raises `ConfigError` when a prompt and its continuation do not fit into the context.
    """
    asked = sampling or Sampling()
    check_search(beams, length_penalty, asked, n, alone=bool(top_logprobs or prompt_logprobs or constraint))
    requests = [
        requested(
            network, tokenizer, prompt, max_tokens, asked, stop, ends, choice,
            top_logprobs=top_logprobs, prompt_logprobs=prompt_logprobs,
        )
        for prompt in prompts
        for choice in range(n)
    ]  # fmt: skip
    texts = [Text(request, tokenizer, constraint) for request in requests]
    if beams > 1:
        for text in texts:
            searched(network, text, beams, length_penalty)
    elif texts:
        engine = fitting(network, tokenizer, requests, cache=cache)
        for text in texts:
            engine.add(text)
        while engine.busy:
            engine.step()
    return [text.result() for text in texts]


def stream(
    network: Network,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    *,
    max_tokens: int | None = None,
    sampling: Sampling | None = None,
    stop: str | Sequence[str] = (),
    beams: int = 1,
    length_penalty: float = 1.0,
    ends: frozenset[int] = frozenset(),
    constraint: Constraint | None = None,
) -> Iterator[str]:
    """Continue one prompt, piece by piece as the text becomes certain; the pieces add up to `generate`'s text.

    With `beams` nothing is certain before the search ends, so that the text is one piece.
    """
    asked = sampling or Sampling()
    check_search(beams, length_penalty, asked, alone=constraint is not None)
    request = requested(network, tokenizer, prompt, max_tokens, asked, stop, ends)
    text = Text(request, tokenizer, constraint)
    if beams > 1:
        searched(network, text, beams, length_penalty)
    else:
        engine = fitting(network, tokenizer, [request])
        engine.add(text)
        while engine.busy:
            engine.step()
            if piece := text.news():
                yield piece
    if text.error is not None:
        raise text.error
    if piece := text.news():
        yield piece


def fitting(network: Network, tokenizer: Tokenizer, requests: Sequence[Request], *, cache: bool = True) -> Engine:
    """An engine with room for these requests, and no more than that."""
    apart = network.config.architecture == "encoder-decoder"
    prompts = [len(request.prompt) for request in requests]
    longest = max((1 if apart else prompt) + request.max_tokens for prompt, request in zip(prompts, requests, strict=True))
    sources = max(prompts) if apart else 1
    slots = min(len(requests), TOGETHER)
    return Engine(network, known=tokenizer.vocab_size, slots=slots, length=longest, sources=sources, cache=cache)


def requested(
    network: Network,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    max_tokens: int | None,
    sampling: Sampling,
    stop: str | Sequence[str],
    ends: frozenset[int],
    choice: int = 0,
    *,
    top_logprobs: int = 0,
    prompt_logprobs: bool = False,
) -> Request:
    """A request that this network can fulfil."""
    vocabulary, apart = network.config.vocab_size, network.config.architecture == "encoder-decoder"
    check_ids((id for id, _ in sampling.logit_bias), vocabulary)
    if not 0 <= top_logprobs <= vocabulary:
        raise ConfigError(f"top_logprobs must be from 0 to the vocabulary's {vocabulary:,}, not {top_logprobs}")
    if apart and prompt_logprobs:
        raise ConfigError("an encoder-decoder gives its prompt no probability; leave prompt_logprobs out")
    ids = encode(network, tokenizer, prompt)
    return Request(
        prompt=ids,
        vocabulary=vocabulary,
        max_tokens=room(network, len(ids), max_tokens, least=0 if prompt_logprobs else 1),
        sampling=sampling,
        stop=check_stop(stop),
        ends=ends,
        choice=choice,
        top_logprobs=top_logprobs,
        prompt_logprobs=prompt_logprobs,
        start=network.config.start_token if apart else None,
    )


def check_stop(stop: str | Sequence[str]) -> Sequence[str]:
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


def room(network: Network, length: int, max_tokens: int | None, *, least: int = 1) -> int:
    """How many tokens may follow a prompt of so many."""
    context = network.config.context_length
    if max_tokens is not None and max_tokens < least:
        raise ConfigError(f"max_tokens must be at least {least}, not {max_tokens}")
    if max_tokens == 0 and length <= context:
        return 0
    apart = network.config.architecture == "encoder-decoder"  # what it writes does not follow the prompt
    if apart and length > context:
        raise ConfigError(f"the prompt has {length:,} tokens, but the model's context is {context:,}; shorten it")
    before = 1 if apart else length
    if before >= context:
        raise ConfigError(
            f"the prompt has {length:,} tokens, but the model's context is {context:,} and must hold the continuation too; "
            "shorten the prompt"
        )
    if max_tokens is not None and before + max_tokens > context:
        both = f"the prompt's {length:,} tokens and {max_tokens:,} more exceed"
        raise ConfigError(
            f"{f'an answer of {max_tokens:,} tokens exceeds' if apart else both} the model's context of {context:,}; "
            f"use --max-tokens {context - before} or less"
        )
    return max_tokens or context - before


def check_search(beams: int, length_penalty: float, sampling: Sampling, n: int = 1, *, alone: bool = False) -> None:
    """Refuse what has no effect with, or without, beams."""
    if beams < 1:
        raise ConfigError(f"beams must be at least 1, not {beams}")
    if n < 1:
        raise ConfigError(f"n must be at least 1, not {n}")
    if beams == 1 and length_penalty != 1:
        raise ConfigError(f"length_penalty {length_penalty} has no effect without beams; leave it out, or give 2 beams or more")
    if beams > 1 and sampling not in (Sampling(), Sampling(temperature=0)):
        raise ConfigError("beam search draws nothing, so sampling options have no effect with beams; leave them out")
    if beams > 1 and (n > 1 or alone):
        raise ConfigError(
            "beam search gives the one likeliest text; leave out n, log-probabilities and what it must be, or beams"
        )


def searched(network: Network, text: Text, beams: int, length_penalty: float) -> None:
    """One prompt's continuation by beam search."""
    request = text.request
    found = search(
        network, request.prompt, beams=beams, max_tokens=request.max_tokens, ends=text.ends, length_penalty=length_penalty
    )
    for token, logprob in zip(found.tokens, found.logprobs, strict=False):
        if not text.finish_reason:
            text.take(token, logprob)
    if not text.finish_reason:
        text.finish("stop" if found.ended else "length")
