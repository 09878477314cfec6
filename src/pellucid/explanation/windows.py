"""Stretches of text of equal length, on which parts of a network are watched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.core.errors import ConfigError, CorpusError
from pellucid.evaluation.likelihood import check_scores_text, opening
from pellucid.generation.generate import generate
from pellucid.generation.settings import Sampling
from pellucid.network.network import Network
from pellucid.network.taps import Taps
from pellucid.network.transformer import Since
from pellucid.text.tokenizer import Tokenizer

SHORTEST = 8
TOKENS = 1024  # whose scores over the whole vocabulary are held at once


def windows_of(
    network: Network, tokenizer: Tokenizer, texts: Iterable[str] | None, *, count: int, length: int, seed: int = 0
) -> Int[Tensor, "windows seq"]:
    """The first `count` windows of texts, one behind the other; without texts, of what the model itself writes.

    Each begins with what stands before a text. Raises `CorpusError` for texts too short for two.
    """
    check_scores_text(network)
    if count < 2 or length < SHORTEST:
        raise ConfigError(f"{count} windows of {length} tokens show nothing; take 2 or more, of {SHORTEST} or more")
    length = min(length, network.config.context_length)
    before = opening(tokenizer)[: length - 1]
    room = length - len(before)
    if texts is None:
        end = tokenizer.end_of_text
        never = () if end is None else ((end, -100.0),)  # a window is full
        sampling = Sampling(temperature=1.0, seed=seed, logit_bias=never)
        made = generate(network, tokenizer, [before], max_tokens=room, sampling=sampling, n=count)
        ids = [id for one in made for id in one.tokens]
    else:
        ids = []
        for text in texts:
            ids += tokenizer.encode(text)
            if len(ids) >= count * room:
                break
    rows = [before + ids[start : start + room] for start in range(0, len(ids) - room + 1, room)][:count]
    if len(rows) < 2:
        raise CorpusError(f"the text has {len(ids):,} tokens, too few for two windows of {room:,}; give more")
    return torch.tensor(rows, device=network.device)


def repeated(network: Network, tokenizer: Tokenizer, *, count: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random tokens that are said twice, [count 1 + 2 length], and the same with the second half in another order."""
    random = np.random.default_rng(seed)
    known = np.setdiff1d(np.arange(min(tokenizer.vocab_size, network.config.vocab_size)), list(tokenizer.special_ids))
    first = random.choice(known, size=(count, length), replace=True)
    shuffled = random.permuted(first, axis=1)
    start = np.full((count, 1), opening(tokenizer)[0])
    both = [np.concatenate([start, first, second], axis=1) for second in (first, shuffled)]
    twice, control = (torch.from_numpy(rows).to(network.device) for rows in both)
    return twice, control


@torch.no_grad()
def losses(
    network: Network, ids: Int[Tensor, "windows seq"], taps: Taps | None = None, since: Since | None = None
) -> Float[Tensor, "windows predicted"]:
    """The loss at every token but the first, in nats; a transformer's pass may begin `since` a block."""
    hidden = network.encode(ids, None, taps) if since is None else network.encode(ids, None, taps, since=since)
    hidden = hidden[:, :-1] if network.held is not None else hidden[:, :-1].float()
    found = []
    parts = (torch.split(flat, TOKENS) for flat in (hidden.flatten(0, 1), ids[:, 1:].flatten()))
    for states, following in zip(*parts, strict=True):
        found.append(torch.nn.functional.cross_entropy(network.scores(states).float(), following, reduction="none"))
    return torch.cat(found).view(len(ids), -1)


def decoded(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    return [tokenizer.decode([id], special=True) for id in ids]
