"""How likely a network finds given tokens after others: many at once, read in batches of like length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pellucid.core.errors import ConfigError, ModelError
from pellucid.core.progress import Silent, Task
from pellucid.network.network import Network
from pellucid.text.tokenizer import Tokenizer

BATCH_TOKENS = 4096
LIKE = 0.75  # rows that are read together have at least this share of the longest one's length: filling is work for nothing
SCORES = 2**23  # scores that are held at once: 32 MB, whatever the vocabulary

Pair = tuple[Sequence[int], Sequence[int]]  # tokens that are only read, and those after them whose likelihood is asked


@dataclass(frozen=True, slots=True)
class Likelihood:
    """What a network says of a continuation."""

    logprob: float  # natural logarithm of the probability of all its tokens
    greedy: bool  # whether each of them is the likeliest


def check_scores_text(network: Network) -> None:
    """Refuse a network that gives no probability to a text."""
    config = network.config
    if config.architecture == "encoder-decoder":
        raise ModelError(
            f"this {config.family} model answers a text instead of continuing it, so it gives no probability to one; "
            "evaluate a decoder, such as GPT-2 or Llama"
        )
    if not config.generates:
        raise ModelError(
            f"this {config.family} model does not continue texts, so it gives no probability to one; evaluate a decoder"
            + (", or see with `pellucid fill` what it puts in the place of a mask" if config.head == "mlm" else "")
        )


def check_batch(tokens: int) -> None:
    if tokens < 1:
        raise ConfigError(f"batch_tokens must be at least 1, not {tokens}")


def opening(tokenizer: Tokenizer) -> list[int]:
    """What stands before the first token of a text: the model's own beginning, or the end of the text before it."""
    end = tokenizer.end_of_text
    before = tokenizer.frame[0] or ([] if end is None else [end])
    if not before:
        raise ModelError("this model's tokenizer has no end-of-text token, so its first token has no probability")
    return before


@torch.inference_mode()
def likelihoods(
    network: Network, pairs: Iterable[Pair], *, batch_tokens: int = BATCH_TOKENS, task: Task | None = None
) -> list[Likelihood]:
    """The likelihood of each pair's second part after its first, in their order; `task` hears of every pair.

    Of what exceeds the context the beginning is not read; the caller counts that. Equal inputs are read once: choices of one
    token after a common question cost as much as one. Raises `ModelError` for a second part that exceeds the context alone.
    """
    context, task = network.config.context_length, task or Silent()
    asked: dict[tuple[int, ...], list[tuple[int, Sequence[int]]]] = {}  # what is read: who asks, and for which tokens
    for number, (before, after) in enumerate(pairs):
        if not before or not after:
            raise ModelError(f"request {number} has no tokens to read, or none to score; give at least one of each")
        if len(after) > context:
            raise ModelError(
                f"a continuation of {len(after):,} tokens exceeds the model's context of {context:,}; "
                "evaluate a model with a longer one"
            )
        asked.setdefault((*before, *after[:-1])[-context:], []).append((number, after))
    found: dict[int, Likelihood] = {}
    order = sorted(asked, key=len, reverse=True)
    while order:
        longest = len(order[0])
        together = [row for row in order[: max(1, batch_tokens // longest)] if len(row) >= LIKE * longest]
        order = order[len(together) :]
        ids, _ = padded([list(row) for row in together], network.device)
        hidden = network.encode(ids)  # causal: filling on the right is seen by nobody
        wanted = [(row, len(read), *pair) for row, read in enumerate(together) for pair in asked[read]]
        states = torch.cat([hidden[row, end - len(after) : end] for row, end, _, after in wanted])
        targets = torch.tensor([id for *_, after in wanted for id in after], device=network.device)
        sizes = [len(after) for *_, after in wanted]
        logprobs, greedy = (torch.split(part, sizes) for part in score(network, states, targets))
        for (_, _, number, _), logprob, best in zip(wanted, logprobs, greedy, strict=True):
            found[number] = Likelihood(float(logprob.sum(dtype=torch.float64)), bool(best.all()))
        task.advance(len(wanted))
    return [found[number] for number in range(len(found))]


def score(
    network: Network, hidden: Float[Tensor, "tokens d_model"], targets: Int[Tensor, " tokens"]
) -> tuple[Float[Tensor, " tokens"], Bool[Tensor, " tokens"]]:
    """Log-probability of each target, and whether it is the likeliest token; all scores are never held at once."""
    logprobs, greedy = [], []
    size = max(1, SCORES // network.config.vocab_size)
    for states, wanted in zip(torch.split(hidden, size), torch.split(targets, size), strict=True):
        scores = network.scores(states).float()
        logprobs.append(scores.gather(1, wanted[:, None])[:, 0] - scores.logsumexp(dim=-1))
        greedy.append(scores.argmax(dim=-1) == wanted)
    return torch.cat(logprobs), torch.cat(greedy)


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, " batch"]]:
    """Rows filled up on the right, and their lengths."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    return ids, torch.tensor([len(row) for row in rows], device=device)
