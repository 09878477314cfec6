"""How fast a model writes here, and how near that is to what reading its matrices from memory allows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from pellucid.core.device import memory_rate
from pellucid.core.errors import ConfigError
from pellucid.generation.engine import Engine
from pellucid.generation.settings import Sampling
from pellucid.generation.text import Request, Text
from pellucid.network.network import Network
from pellucid.text.tokenizer import Tokenizer

TURNS = 3


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Of so many texts at once."""

    texts: int
    tokens_per_second: float  # new ones, of all texts together
    first_token_seconds: float  # from prompts to the first token of the last text
    prompt_tokens_per_second: float
    share_of_memory_limit: float  # a pass reads every matrix once, which takes at least what memory takes


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What was measured; medians over turns."""

    precision: str
    matrices_bytes: int
    memory_bytes_per_second: float
    prompt: int
    tokens: int
    rates: list[Rate]


@torch.inference_mode()
def measure(network: Network, tokenizer: Tokenizer, *, texts: Sequence[int], prompt: int, tokens: int) -> Rates:
    """Continue so many random prompts of `prompt` tokens by `tokens`, after a short text to warm up.

    Raises `ConfigError` for what does not fit into the model's context.
    """
    context = network.config.context_length
    for name, value, least in (("texts", min(texts), 1), ("prompt", prompt, 1), ("tokens", tokens, 2)):
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, not {value}")
    if prompt + tokens > context:
        raise ConfigError(
            f"a prompt of {prompt:,} and {tokens:,} tokens more exceed the model's context of {context:,}; ask for fewer"
        )
    nbytes, memory = matrices_bytes(network), memory_rate()
    write(network, tokenizer, 1, prompt, 2)
    found = []
    for number in texts:
        turns = [write(network, tokenizer, number, prompt, tokens) for _ in range(TURNS)]
        first, rate = median(first for first, _ in turns), median(rate for _, rate in turns)
        found.append(
            Rate(
                texts=number,
                tokens_per_second=rate,
                first_token_seconds=first,
                prompt_tokens_per_second=number * prompt / first,
                share_of_memory_limit=rate / number * nbytes / memory,
            )
        )
    precision = network.held.precision if network.held is not None else str(network.dtype).removeprefix("torch.")
    return Rates(
        precision=precision,
        matrices_bytes=nbytes,
        memory_bytes_per_second=memory,
        prompt=prompt,
        tokens=tokens,
        rates=found,
    )


def matrices_bytes(network: Network) -> int:
    """Bytes of all matrices that a pass reads: all but the embedding, unless that is the head too."""
    if network.held is not None:
        return network.held.nbytes
    idle = 0 if network.config.tied else network.embedding.weight.nbytes
    return sum(weight.nbytes for weight in network.parameters()) - idle


def write(network: Network, tokenizer: Tokenizer, texts: int, prompt: int, tokens: int) -> tuple[float, float]:
    """Seconds until all texts have a token, and tokens per second from there on."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(tokenizer.vocab_size, (texts, prompt), generator=draw).tolist()
    apart = network.config.architecture == "encoder-decoder"
    engine = Engine(network, known=tokenizer.vocab_size, slots=texts, length=prompt + tokens, sources=prompt if apart else 1)
    asked = [
        Request(
            prompt=each,
            vocabulary=network.config.vocab_size,
            max_tokens=tokens,
            sampling=Sampling(temperature=0),
            endless=True,
            start=network.config.start_token if apart else None,
        )
        for each in ids
    ]
    written = [Text(request, tokenizer) for request in asked]
    begun = time.perf_counter()
    for text in written:
        engine.add(text)
    while not all(text.tokens for text in written):
        engine.step()
    done, now = sum(len(text.tokens) for text in written), time.perf_counter()
    while engine.busy:
        engine.step()
    return now - begun, (texts * tokens - done) / (time.perf_counter() - now)
