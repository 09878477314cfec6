"""From logits to the next token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pellucid.generation.settings import Sampling


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What one text's next token depends on, besides the logits."""

    sampling: Sampling
    read: Sequence[int] = ()  # its tokens so far, as the repetition penalty counts them: with those of the prompt
    written: Sequence[int] = ()
    choice: int = 0  # which of several continuations of the same prompt it is


def choose(logits: Float[Tensor, "texts vocab"], draws: Sequence[Draw]) -> Int[Tensor, " texts"]:
    """The next token of every text.

    The random number is a function of the seed, the choice and the number of tokens written alone (a counter-based generator:
    Salmon et al., 2011), and a text's row is worked on as if it were alone: it goes on the same way in any company.
    """
    if any(adjusts(draw.sampling) for draw in draws):
        logits = torch.stack([adjusted(row, draw) for row, draw in zip(logits, draws, strict=True)])
    chosen = logits.argmax(dim=-1)
    groups: dict[tuple[Any, ...], list[int]] = {}  # texts whose logits are filtered alike
    for number, draw in enumerate(draws):
        if draw.sampling.temperature:
            groups.setdefault((draw.sampling.temperature, draw.sampling.filters), []).append(number)
    for numbers in groups.values():
        cumulative = distribution(logits[numbers], draws[numbers[0]].sampling).double().cumsum(dim=-1)
        random = [uniform(draws[n].sampling.seed, len(draws[n].written), draws[n].choice) for n in numbers]
        goal = torch.tensor(random, dtype=torch.float64, device=logits.device) * cumulative[:, -1]
        found = torch.searchsorted(cumulative, goal[:, None], right=True)[:, 0]
        chosen[numbers] = found.clamp(max=logits.shape[-1] - 1)
    return chosen


def adjusts(sampling: Sampling) -> bool:
    """Whether logits are changed before temperature and filters."""
    penalties = sampling.repetition_penalty != 1.0, sampling.presence_penalty, sampling.frequency_penalty
    return any(penalties) or bool(sampling.logit_bias)


def adjusted(logits: Float[Tensor, " vocab"], draw: Draw) -> Float[Tensor, " vocab"]:
    """Logits after penalties and biases.

    The repetition penalty divides positive logits of seen tokens and multiplies negative ones; presence and frequency
    penalties are as OpenAI's interface defines them.
    """
    asked, logits = draw.sampling, logits.clone()
    if asked.repetition_penalty != 1.0 and draw.read:
        ids = torch.tensor(sorted(set(draw.read)), device=logits.device)
        known = logits[ids]
        logits[ids] = torch.where(known > 0, known / asked.repetition_penalty, known * asked.repetition_penalty)
    if draw.written and (asked.presence_penalty or asked.frequency_penalty):
        counts = Counter(draw.written)
        less = [asked.presence_penalty + asked.frequency_penalty * count for count in counts.values()]
        logits[torch.tensor([*counts], device=logits.device)] -= torch.tensor(less, device=logits.device)
    if asked.logit_bias:
        ids, biases = (torch.tensor(each, device=logits.device) for each in zip(*asked.logit_bias, strict=True))
        logits = logits.index_add(0, ids, biases.to(logits.dtype))
    return logits


def distribution(logits: Float[Tensor, "texts vocab"], sampling: Sampling) -> Float[Tensor, "texts vocab"]:
    """The probabilities that a token is drawn from, after temperature, top-k, top-p, min-p and typical-p."""
    logits = ((logits - logits.amax(dim=-1, keepdim=True)).double() / sampling.temperature).float()
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1.0:
        probabilities, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        before = probabilities.cumsum(dim=-1) - probabilities
        out = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= sampling.top_p)
        logits = logits.masked_fill(out, -torch.inf)
    probabilities = logits.softmax(dim=-1)
    if sampling.min_p > 0.0:
        least = sampling.min_p * probabilities.max(dim=-1, keepdim=True).values
        probabilities = normed(torch.where(probabilities < least, 0.0, probabilities))
    if sampling.typical_p < 1.0:
        probabilities = normed(torch.where(typical(probabilities, sampling.typical_p), probabilities, 0.0))
    return probabilities


def normed(weights: Float[Tensor, "texts vocab"]) -> Float[Tensor, "texts vocab"]:
    return weights / weights.sum(dim=-1, keepdim=True)


def typical(probabilities: Float[Tensor, "texts vocab"], share: float) -> Bool[Tensor, "texts vocab"]:
    """The tokens whose surprise is nearest to the entropy, as many as together have a probability of `share`."""
    surprise = -probabilities.log()
    entropy = torch.where(probabilities > 0, probabilities * surprise, 0.0).sum(dim=-1, keepdim=True)
    unusual = (surprise - entropy).abs()
    order = unusual.argsort(dim=-1, stable=True)
    together = probabilities.gather(1, order).cumsum(dim=-1)
    last = (together < share).sum(dim=-1, keepdim=True).clamp(max=order.shape[1] - 1)
    return unusual <= unusual.gather(1, order.gather(1, last))


def uniform(seed: int, index: int, choice: int = 0) -> float:
    """Number `index` of the random stream of a seed and a choice, in [0, 1)."""
    return float(np.random.Philox(key=seed, counter=index + (choice << 64)).random_raw() >> 11) / 2**53
