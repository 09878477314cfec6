"""Activation patching: what passes in one prompt is put into another, place by place, and moves its answer so far.

Vig et al. (2020); Meng et al. (2022). The fast screen is attribution patching (Nanda, 2023): one backward pass instead of a
forward pass for each place, right where the answer is nearly linear; how right is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.core.errors import ConfigError
from pellucid.core.progress import Progress, Silent
from pellucid.explanation.question import Question, read
from pellucid.explanation.removal import Floats
from pellucid.explanation.rows import BATCH_TOKENS, Row, difference, token_site
from pellucid.network.network import Network
from pellucid.network.taps import Edit, Taps
from pellucid.network.transformer import Since, Transformer

MOST_TOKENS = 60_000  # that are read for real patches; with more, those that the screen finds largest, and some by chance
TOLD = 40  # tokens of an error
SURE = 0.5  # of the budget goes to the largest


@dataclass(frozen=True, slots=True)
class Place:
    """What is put in: a site's value, at one position or at all, of one head or of all; `block` is the first to run again."""

    site: str
    block: int
    position: int | None = None
    head: int | None = None

    @property
    def name(self) -> str:
        where = "" if self.head is None else f" head {self.head}"
        return f"{self.site}{where}" + ("" if self.position is None else f" at {self.position}")


@dataclass(frozen=True)
class Patched:
    """A place, how far the other prompt's value there moves the difference, and what the screen had said (None: nothing)."""

    place: Place
    effect: float
    screened: float | None


@dataclass(frozen=True)
class Patching:
    """What was found between two prompts. Effects are in the unit of the difference (nats)."""

    question: Question
    other: str
    tokens: tuple[tuple[str, str], ...]  # at each position, of both prompts
    before: float  # the difference of this prompt
    after: float  # of the other one
    screened: dict[Place, float]  # of all places; empty where no gradient can be had
    patched: tuple[Patched, ...]  # those that were really patched, the largest effect first

    @cached_property
    def effects(self) -> dict[Place, float]:
        return {one.place: one.effect for one in self.patched}

    @property
    def correlation(self) -> float | None:
        """The rank correlation (Spearman) of the screen with the real effects, over the places that were patched."""
        pairs = [(one.screened, one.effect) for one in self.patched if one.screened is not None]
        if len(pairs) < 3:
            return None
        from scipy.stats import spearmanr

        found = float(spearmanr(*zip(*pairs, strict=True)).statistic)
        return None if np.isnan(found) else found

    def to_json(self) -> dict[str, Any]:
        effects = [{"place": one.place.name, "effect": one.effect, "screened": one.screened} for one in self.patched]
        named = {"other": self.other, "before": self.before, "after": self.after}
        return {**named, "correlation_with_screen": self.correlation, "effects": effects}

    def share(self, effect: float) -> float:
        """How much of the way from this prompt's difference to the other's an effect is."""
        return effect / (self.after - self.before) if self.after != self.before else float("nan")


def patch(
    question: Question,
    other: str | Sequence[int],
    *,
    seed: int = 0,
    most_tokens: int = MOST_TOKENS,
    progress: Progress | None = None,
) -> Patching:
    """Put what passes in the `other` prompt into the question's: the stream at each position, each head, each MLP.

    Raises `ConfigError` for prompts of unequal numbers of tokens, showing both.
    """
    network = question.network
    text, ids, _ = read(network, question.tokenizer, other)
    if len(ids) != len(question.ids):
        raise ConfigError(unequal(question, ids))
    if network.config.head == "mlm" and ids[question.at or 0] != question.tokenizer.mask:
        raise ConfigError(f"the mask of {text!r} stands elsewhere than that of {question.text!r}; put both at one place")
    if ids == list(question.ids):
        raise ConfigError(f"both prompts are {text!r}, so nothing passes in one that does not in the other; change a word")
    pairs = list(zip(question.rows(question.ids), question.rows(ids, at=question.at), strict=True))
    runs = [Run(network, mine, theirs, len(ids)) for mine, theirs in pairs]
    places = list(places_of(network, len(ids)))
    screened = screen(runs, places) if network.held is None else {}
    chosen = choose(places, screened, sum(row.length for row, _ in pairs), most_tokens, seed)
    before = sum(run.before for run in runs)
    effects = np.zeros(len(chosen))
    with (progress or Silent()).task("patching", len(chosen), "places") as task:
        for at, some in batches(chosen, max(1, BATCH_TOKENS // max(row.length for row, _ in pairs))):
            effects[at] = sum(run.patched(some) for run in runs)
            task.advance(len(some))
    found = [Patched(place, float(effect - before), screened.get(place)) for place, effect in zip(chosen, effects, strict=True)]
    found.sort(key=lambda one: -abs(one.effect))
    tokens = zip(*([question.tokenizer.decode([id], special=True) for id in side] for side in (question.ids, ids)), strict=True)
    return Patching(
        question=question,
        other=text,
        tokens=tuple(tokens),
        before=before,
        after=sum(run.after for run in runs),
        screened=screened,
        patched=tuple(found),
    )


def unequal(question: Question, ids: Sequence[int]) -> str:
    """What is said of prompts that cannot be laid over one another."""
    decode = question.tokenizer.decode
    sides = (question.ids, ids)
    both = [" ".join(repr(decode([id], special=True)) for id in side[:TOLD]) + " ..." * (len(side) > TOLD) for side in sides]
    return (
        f"the prompts have {len(question.ids)} and {len(ids)} tokens, and patching puts each token's values in the place of "
        f"another's; change the wording until both have as many. They are: {both[0]} - and: {both[1]}"
    )


def places_of(network: Network, length: int) -> Iterator[Place]:
    """All places of the text, from the bottom up: the stream at each position, then each head and each MLP."""
    names = {site.name: site for site in network.sites()}
    apart = network.config.architecture == "encoder-decoder"
    prefixes = ("encoder.", "decoder.") if apart else ("",)
    for prefix in prefixes:
        streams = [name for name in names if name.startswith(prefix) and name.endswith((".after", "embedding"))]
        for site in streams if prefix != "decoder." else []:
            yield from (Place(site, block_of(site) + 1, position=position) for position in range(length))
        for site in names:
            if site.startswith(prefix) and site.endswith(".mixed"):
                yield from (Place(site, block_of(site), head=head) for head in range(network.config.heads))
        for site in names:
            if site.startswith(prefix) and site.endswith(".mlp.out"):
                yield Place(site, block_of(site))


def block_of(site: str) -> int:
    """The block that a site lies in; -1 before the first."""
    parts = site.split(".")
    return int(parts[parts.index("blocks") + 1]) if "blocks" in parts else -1


def choose(places: list[Place], screened: dict[Place, float], length: int, most_tokens: int, seed: int) -> list[Place]:
    """Which places are patched: all, if that is not too much to read; else the largest of the screen, and others by chance."""
    room = max(2, most_tokens // length)
    if len(places) <= room:
        return places
    random = np.random.default_rng(seed)
    order = sorted(places, key=lambda place: -abs(screened.get(place, 0.0)))
    largest = order[: int(SURE * room)] if screened else []
    others = order[len(largest) :]
    drawn = random.choice(len(others), size=room - len(largest), replace=False)
    keep = {*largest, *(others[number] for number in drawn)}
    return [place for place in places if place in keep]


def batches(places: Sequence[Place], size: int) -> Iterator[tuple[list[int], list[Place]]]:
    """Places that are read together, with their numbers: those that begin at one block, so that none before it is run again."""
    order = sorted(range(len(places)), key=lambda number: places[number].block)
    for _, group in groupby(order, key=lambda number: places[number].block):
        numbers = list(group)
        for start in range(0, len(numbers), size):
            part = numbers[start : start + size]
            yield part, [places[number] for number in part]


class Run:
    """One row that the question asks about, as both prompts have it: what passes in each."""

    def __init__(self, network: Network, mine: Row, theirs: Row, length: int) -> None:
        self.network, self.row, self.other, self.length = network, mine, theirs, length
        self.own = Taps(["embedding", "*.after"] if isinstance(network, Transformer) else ())
        self.source = Taps(watched(network))
        with torch.no_grad():
            self.before = float(difference(network, [mine], self.own)[0])
            self.after = float(difference(network, [theirs], self.source)[0])

    @torch.no_grad()
    def patched(self, places: Sequence[Place]) -> Floats:
        """The difference with each of these places patched, [places]; they begin at one block."""
        rows, edits = [self.row] * len(places), {}
        by_site: dict[str, list[tuple[int, Place]]] = {}
        for number, place in enumerate(places):
            by_site.setdefault(place.site, []).append((number, place))
        for site, found in by_site.items():
            edits[site] = self.edit(site, found)
        since, block = None, places[0].block
        if isinstance(self.network, Transformer):
            before = "embedding" if block == 0 else f"blocks.{block - 1}.after"
            stream = self.own[before].expand(len(places), -1, -1)
            since = Since(block, edits.pop(before)(stream) if before in edits else stream)
        return difference(self.network, rows, Taps(edit=edits), since).double().cpu().numpy()

    def until(self, site: str) -> int | None:
        """Where the prompt ends there: behind it stands the answer, which is not patched. A decoder apart has no prompt."""
        return None if site.startswith("decoder.") else self.length

    def edit(self, site: str, found: Sequence[tuple[int, Place]]) -> Edit:
        """A function that puts the other prompt's value into each row's own place."""
        source, until = self.source[site][0], self.until(site)
        rows = torch.tensor([number for number, _ in found])
        positions = [place.position for _, place in found]
        heads = [place.head for _, place in found]

        def change(x: Tensor) -> Tensor:
            x = x.clone()
            if positions[0] is not None:
                x[rows, positions] = source[positions]
            elif heads[0] is not None:  # batch heads seq d_head
                x[rows, heads, :until] = source[heads, :until]
            else:
                x[rows, :until] = source[:until]
            return x

        return change


def watched(network: Network) -> list[str]:
    """The sites of all places."""
    return sorted({place.site for place in places_of(network, 1)})


def screen(runs: Sequence[Run], places: Sequence[Place]) -> dict[Place, float]:
    """Attribution patching: what each place would do if the difference were linear, from one backward pass for each row."""
    found = dict.fromkeys(places, 0.0)
    for run in runs:
        sites = watched(run.network)
        taps = Taps(sites, edit={token_site(run.network): lambda x: x.detach().requires_grad_()})
        with torch.enable_grad():
            value = difference(run.network, [run.row], taps).sum()
            slopes = torch.autograd.grad(value, [taps[site] for site in sites], allow_unused=True)
        gradients = dict(zip(sites, slopes, strict=True))
        for place in places:
            if (gradient := gradients[place.site]) is not None:
                slope, step = gradient[0], run.source[place.site][0] - taps[place.site][0].detach()
                if place.position is not None:
                    slope, step = slope[place.position], step[place.position]
                elif place.head is not None:
                    slope, step = slope[place.head, : run.until(place.site)], step[place.head, : run.until(place.site)]
                else:
                    slope, step = slope[: run.until(place.site)], step[: run.until(place.site)]
                found[place] += float((slope.float() * step.float()).sum())
    return found
