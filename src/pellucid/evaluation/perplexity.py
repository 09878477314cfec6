"""How well a language model predicts a text: perplexity and bits per byte, with a window that slides over each document."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import itemgetter

import numpy as np

from pellucid.core.errors import ConfigError, ModelError, TokenizerError
from pellucid.core.progress import Progress, Silent, Task
from pellucid.evaluation.intervals import Floats, bootstrap, percentiles
from pellucid.evaluation.likelihood import BATCH_TOKENS, Pair, check_batch, check_scores_text, likelihoods, opening
from pellucid.network.network import Network
from pellucid.text.corpus import Corpus
from pellucid.text.tokenizer import Tokenizer

SECTIONS = 64  # sections whose tokens are made at once, on all cores
BATCHES = 16  # batches' worth of windows, of which those of like length are read together

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """How well a text was predicted; the intervals are of 95 %, over the documents, where there are several."""

    perplexity: float
    perplexity_interval: Interval | None = None
    bits_per_byte: float  # comparable between tokenizers
    bits_per_byte_interval: Interval | None = None
    loss: float  # nats per token
    tokens: int
    bytes: int
    documents: int
    context: int
    stride: int


@dataclass
class Tally:
    """What is known of each document so far."""

    nats: array[float] = field(default_factory=lambda: array("d"))
    tokens: array[int] = field(default_factory=lambda: array("q"))
    bytes: array[int] = field(default_factory=lambda: array("q"))

    def begin(self) -> None:
        for numbers in (self.nats, self.tokens, self.bytes):
            numbers.append(0)

    def result(self, *, context: int, stride: int) -> Perplexity:
        nats, tokens, size = (np.array(numbers, dtype=np.float64) for numbers in (self.nats, self.tokens, self.bytes))
        if not tokens.sum():
            raise TokenizerError("the tokenizer makes no token of the text, so nothing was predicted; give other text")
        if not np.isfinite(nats).all():
            raise ModelError("the model's probabilities are no numbers (NaN or 0): its weights are damaged; restore them")

        def figures(weights: Floats) -> Floats:
            """Perplexity and bits per byte of some of the documents, [resamples 2]."""
            total = weights @ nats
            loss = total / np.maximum(weights @ tokens, 1)
            return np.stack([np.exp(np.minimum(loss, 700)), total / math.log(2) / (weights @ size)], axis=1)

        [[value, bits]] = figures(np.ones((1, len(nats))))
        intervals: list[Interval | None] = [None, None]
        if len(nats) > 1:
            drawn = bootstrap(figures, np.ones(len(nats), dtype=np.int64), seed=0)
            ends = [percentiles(0, drawn[:, n]) for n in range(2)]
            intervals = [(end.low, end.high) for end in ends]
        return Perplexity(
            perplexity=float(value),
            perplexity_interval=intervals[0],
            bits_per_byte=float(bits),
            bits_per_byte_interval=intervals[1],
            loss=float(nats.sum() / tokens.sum()),
            tokens=int(tokens.sum()),
            bytes=int(size.sum()),
            documents=len(nats),
            context=context,
            stride=stride,
        )


def perplexity(
    network: Network,
    tokenizer: Tokenizer,
    corpus: Corpus,
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> Perplexity:
    """How well `network` predicts every token of a corpus, each document by itself.

    The network reads at most `context` tokens (None: all that it can), and goes on `stride` tokens at a time (None: half of
    that). Every token is scored once, with at least `context - stride` tokens before it, or all that there are: a smaller
    stride takes longer and flatters less. Memory is bounded: long documents are encoded in sections, as for training.
    Raises `ConfigError`, `CorpusError`, `ModelError`.
    """
    check_scores_text(network)
    check_batch(batch_tokens)
    context, stride = window(network.config.context_length, context, stride)
    before, tally, nats, tokens = opening(tokenizer), Tally(), 0.0, 0
    with (progress or Silent()).task("reading", corpus.bytes and corpus.bytes / 1e6, "MB") as task:
        documents = groupby(encoded(corpus, tokenizer, tally, task), key=itemgetter(0))
        pairs = ((n, pair) for n, parts in documents for pair in slide(map(itemgetter(1), parts), before, context, stride))
        while pool := list(take(pairs, BATCHES * batch_tokens)):
            found = likelihoods(network, [pair for _, pair in pool], batch_tokens=batch_tokens)
            for (number, (_, after)), likelihood in zip(pool, found, strict=True):
                tally.nats[number] -= likelihood.logprob
                tally.tokens[number] += len(after)
                nats, tokens = nats - likelihood.logprob, tokens + len(after)
            task.advance(0, f"loss {nats / tokens:.3f}")
    return tally.result(context=context, stride=stride)


def window(longest: int, context: int | None, stride: int | None) -> tuple[int, int]:
    """The window's size and how far it moves; both in tokens."""
    context = longest if context is None else context
    if not 1 <= context <= longest:
        raise ConfigError(f"context must be from 1 to {longest:,}, which is the model's, not {context:,}")
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise ConfigError(f"stride must be from 1 to {context:,}, the context, not {stride:,}: it would leave tokens out")
    return context, stride


def encoded(corpus: Corpus, tokenizer: Tokenizer, tally: Tally, task: Task) -> Iterator[tuple[int, list[int]]]:
    """The number of the document and the tokens of every section."""
    sections = iter(corpus)
    while batch := list(islice(sections, SECTIONS)):
        for section, ids in zip(batch, tokenizer.encode_batch([section.text for section in batch]), strict=True):
            if section.part == 0:
                tally.begin()
            size = len(section.text.encode())
            tally.bytes[-1] += size
            task.advance(size / 1e6)
            yield len(tally.bytes) - 1, ids.tolist()


def slide(parts: Iterable[Sequence[int]], before: Sequence[int], context: int, stride: int) -> Iterator[Pair]:
    """The windows of one document, whose tokens come in parts: what each only reads, and what it scores.

    The window of transformers' guide to perplexity, one token longer: the last one is scored, so it need not be read.
    """
    held, known = list(before), len(before)  # tokens from the window's beginning on; how many of them need no score
    for part in parts:
        held += part
        begin = 0
        while len(held) - begin > context:
            end = begin + context + 1
            if begin + known < end:
                yield held[begin : begin + known], held[begin + known : end]
            begin, known = begin + stride, max(known, context + 1) - stride
        held = held[begin:]
    if known < len(held):
        yield held[:known], held[known:]


def take(pairs: Iterator[tuple[int, Pair]], tokens: int) -> Iterator[tuple[int, Pair]]:
    """Pairs of so many tokens together, at least one."""
    for number, (before, after) in pairs:
        yield number, (before, after)
        tokens -= len(before) + len(after)
        if tokens <= 0:
            return
