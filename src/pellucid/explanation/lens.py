"""The logit lens: what the model would answer if it stopped after each layer (nostalgebraist, 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.explanation.contrast import Contrast, contrast_of, stack_of
from pellucid.explanation.question import Question
from pellucid.explanation.rows import scores
from pellucid.network.taps import Taps

SHOWN = 24  # positions of a table, the last ones
TOP = 3  # answers of a place
PORTION = 256  # places whose scores over a vocabulary are held at once


@dataclass(frozen=True)
class Guess:
    """What the head makes of the stream at one place: the likeliest answers and their probabilities."""

    answers: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Lens:
    """What is read off after the embedding and each layer [heights], at some positions of the text."""

    contrast: Contrast
    heights: tuple[str, ...]  # the sites, from the embedding to the last block
    differences: tuple[float, ...]  # of target and foil, at each height
    ranks: tuple[int, ...]  # of the target among all answers, 1 the likeliest
    positions: tuple[int, ...]  # those of the table
    read: tuple[str, ...]  # the token at each
    guesses: tuple[tuple[Guess, ...], ...]  # [heights positions]

    def to_json(self) -> dict[str, Any]:
        named = {name: getattr(self, name) for name in ("heights", "differences", "ranks", "positions", "read")}
        return {"measure": self.contrast.measure, **named, "guesses": [[asdict(one) for one in row] for row in self.guesses]}


@torch.no_grad()
def logit_lens(question: Question, *, shown: int = SHOWN) -> Lens:
    """The lens over the last `shown` positions, and over all heights the difference that is explained.

    Raises `ModelError` for a network without blocks that share a stream.
    """
    stack, site = stack_of(question)
    network, contrast, tokenizer = question.network, contrast_of(question), question.tokenizer
    names = [f"{site}embedding", *(f"{site}blocks.{layer}.after" for layer in range(stack.config.layers))]
    taps = Taps(names)
    scores(network, [contrast.row], taps)
    ids = contrast.row.decoder_ids or contrast.row.ids
    whole = network.config.head == "classify"
    place = contrast.place if contrast.place is not None else len(ids) - 1
    positions = range(max(0, place + 1 - shown), place + 1)
    at = torch.tensor([place, *positions])
    differences, ranks, guesses = [], [], []
    for name in names:
        hidden = taps.take(name)[0]
        hidden = hidden if stack.norm is None else stack.norm(hidden)
        if whole:
            logits = network.answer(hidden[None]).logits
            assert logits is not None, "a head for labels"
            rows = logits.float()
        else:
            exact = hidden[at] if network.held is not None else hidden[at].float()
            rows = torch.cat([network.scores(part).float() for part in exact.split(PORTION)])
        asked = rows[0]
        differences.append(sum(float(asked[one.id]) * one.weight for one in contrast.row.asked))
        ranks.append(1 + int((asked > asked[contrast.target.ids[0]]).sum()))
        guesses.append(tuple(guess(row, question) for row in (rows if whole else rows[1:])))
    if whole:
        return Lens(contrast, tuple(names), tuple(differences), tuple(ranks), (), (), tuple(guesses))
    read = tuple(tokenizer.decode([ids[position]], special=True) for position in positions)
    return Lens(contrast, tuple(names), tuple(differences), tuple(ranks), tuple(positions), read, tuple(guesses))


def guess(logits: Float[Tensor, " scores"], question: Question) -> Guess:
    """The likeliest answers."""
    config, tokenizer = question.network.config, question.tokenizer
    if config.problem == "regression" and config.head == "classify":
        return Guess((f"{float(logits[0]):.3g}",), (0.0,))
    known = logits if config.scores_labels else logits[: tokenizer.vocab_size]
    chances = known.sigmoid() if config.problem == "multi" else known.softmax(dim=-1)
    best = chances.topk(min(TOP, len(chances)))
    names: Sequence[str] = config.labels
    answers = [names[id] if config.scores_labels else tokenizer.decode([id], special=True) for id in best.indices.tolist()]
    return Guess(tuple(answers), tuple(best.values.tolist()))
