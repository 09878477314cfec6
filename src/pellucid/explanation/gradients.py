"""Attributions by the gradient of the difference with respect to the vectors of the text's tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.errors import ModelError
from pellucid.core.progress import Silent, Task
from pellucid.explanation.question import Question
from pellucid.explanation.removal import Floats, blank_vector
from pellucid.explanation.rows import Row, at_tokens, difference, token_site
from pellucid.network.network import Network

ALONE = Lock()
TOKENS = 1024  # of a batch with gradients, whose activations are all kept
LONG = 512  # tokens of a text whose activations are computed again instead
BOUND = 0.05  # of the difference: what may be left unaccounted for, added up over all parts of the way
FIRST, NODES = 4, 2  # parts that the way is first cut into, and points in each
MOST_POINTS, MOST_TOKENS = 200, 2_560  # where it ends in any case: points, and tokens in all of them


def check_gradients(network: Network) -> None:
    """Refuse a network whose weights are held in a form that no gradient passes."""
    if network.held is not None:
        raise ModelError(
            f"this model is held in {network.held.precision} and only reads, so no gradient passes through it; "
            "load it without a precision, or leave the methods out that need gradients"
        )


@dataclass(frozen=True)
class Part:
    """A stretch of the way, from `start` to `end` (0 to 1), the difference at both, and the integral between, [tokens]."""

    start: float
    end: float
    before: float
    after: float
    values: Floats

    @property
    def gap(self) -> float:
        """How far the integral is from the change that it should be."""
        return float(self.values.sum() - (self.after - self.before))


@dataclass(frozen=True)
class Integrated:
    """Integrated gradients of tokens, [tokens], what they should sum to, and how many points it took."""

    values: Floats
    total: float
    points: int
    missed: float  # the gaps of all parts of the way, added up without their signs

    @property
    def gap(self) -> float:
        """How far their sum is from the difference that they share out."""
        return float(self.values.sum() - self.total)

    @property
    def converged(self) -> bool:
        return self.missed <= max(BOUND * abs(self.total), 1e-4)


def gradient_times_input(question: Question) -> Floats:
    """The gradient times the vector of each token, [tokens] (Shrikumar et al., 2016)."""
    vectors = vectors_of(question)
    found: Floats = gradients_at(question, torch.zeros_like(vectors), vectors, np.ones(1))[0]
    return found


def integrated_gradients(question: Question, *, steps: int | None = None, task: Task | None = None) -> Integrated:
    """The gradient along the straight line from blank tokens to the text's, times the way (Sundararajan et al., 2017).

    By Gauss-Legendre quadrature with so many `steps`, or without them in parts: what the integral of a part should be is known,
    the change of the difference, so those that miss it most are halved until all together miss less than 5 %, or there are
    too many points. Large models need this: their gradients have spikes. Tokens that are no text stay as they are.
    """
    way = Way(question, task)
    if steps is not None:
        [whole] = way.parts([(0.0, 1.0)], steps)
        return Integrated(whole.values, whole.after - whole.before, steps, abs(whole.gap))
    cuts = np.linspace(0, 1, FIRST + 1).tolist()
    parts, points = way.parts(list(pairwise(cuts))), FIRST * NODES
    most = min(MOST_POINTS, max(8 * NODES, MOST_TOKENS // len(question.ids)))
    while True:
        total = parts[-1].after - parts[0].before
        found = Integrated(np.sum([part.values for part in parts], axis=0), total, points, sum(abs(part.gap) for part in parts))
        if found.converged or points >= most:
            return found
        worst = sorted(parts, key=lambda part: -abs(part.gap))
        halved = worst[: 1 + int(np.searchsorted(np.cumsum([abs(part.gap) for part in worst]), found.missed / 2))]
        halves = [half for part in halved for half in ((part.start, middle(part)), (middle(part), part.end))]
        kept = [part for part in parts if part not in halved]
        parts = sorted([*kept, *way.parts(halves)], key=lambda part: part.start)
        points += NODES * len(halves)


def middle(part: Part) -> float:
    return (part.start + part.end) / 2


class Way:
    """The straight line from blank tokens to the text's."""

    def __init__(self, question: Question, task: Task | None) -> None:
        self.question, self.task = question, task
        end = vectors_of(question)
        self.start = end.clone()
        self.start[[token for unit in question.units for token in unit.tokens]] = blank_vector(question).to(end)
        self.direction = end - self.start
        self.known: dict[float, float] = {}

    def at(self, share: float) -> float:
        """The difference there."""
        if share not in self.known:
            self.known[share] = float(values_at(self.question, (self.start + share * self.direction)[None])[0])
        return self.known[share]

    def parts(self, spans: list[tuple[float, float]], nodes: int = NODES) -> list[Part]:
        """The integrals over some stretches, all points in one go."""
        places, weights = np.polynomial.legendre.leggauss(nodes)
        along = np.concatenate([start + (end - start) * (places + 1) / 2 for start, end in spans])
        found = gradients_at(self.question, self.start, self.direction, along, self.task)
        shares = np.concatenate([weights / 2 * (end - start) for start, end in spans])
        sums = (found * shares[:, None]).reshape(len(spans), nodes, -1).sum(axis=1)
        return [
            Part(start, end, self.at(start), self.at(end), values) for (start, end), values in zip(spans, sums, strict=True)
        ]


def vectors_of(question: Question) -> Float[Tensor, "tokens d_model"]:
    """The vectors of the text's tokens."""
    check_gradients(question.network)
    network = question.network
    ids = torch.tensor([question.ids], device=network.device)
    return network.look_up(ids, network.tapped(None), token_site(network)).detach()[0].float()


def gradients_at(
    question: Question,
    start: Float[Tensor, "tokens d_model"],
    direction: Float[Tensor, "tokens d_model"],
    along: Floats,
    task: Task | None = None,
) -> Floats:
    """The gradient at start + share * direction, for each share of `along`, times the direction, [points tokens]."""
    found, task = [], task or Silent()
    size = max(1, TOKENS // direction.shape[0])
    shares = torch.from_numpy(along).to(direction)
    with frozen(question.network, recompute=direction.shape[0] > LONG):
        for some in torch.split(shares, size):
            leaf = (start + some[:, None, None] * direction).detach().requires_grad_()
            [gradient] = torch.autograd.grad(at_points(question, leaf).sum(), leaf)
            found.append((gradient * direction).sum(dim=-1).double().cpu().numpy())
            task.advance(2 * len(some))  # forward and back
    return np.concatenate(found)


@torch.no_grad()
def values_at(question: Question, points: Float[Tensor, "points tokens d_model"]) -> Floats:
    """The difference where the text's tokens have these vectors."""
    return torch.cat([at_points(question, one[None]) for one in points]).double().cpu().numpy()


def at_points(question: Question, points: Float[Tensor, "points tokens d_model"]) -> Float[Tensor, " points"]:
    """The same of a batch, differentiable."""
    total = torch.zeros(len(points), device=points.device)
    for row in question.rows(question.ids):
        total = total + at_row(question.network, row, points)
    return total


def at_row(network: Network, row: Row, points: Float[Tensor, "points tokens d_model"]) -> Float[Tensor, " points"]:
    """What one row says; the tokens of the answer behind the text keep their vectors."""

    def edit(x: Tensor) -> Tensor:
        return torch.cat([points.to(x), x[:, points.shape[1] :]], dim=1)

    return difference(network, [row] * len(points), at_tokens(network, edit))


@contextmanager
def frozen(network: Network, *, recompute: bool) -> Iterator[None]:
    """Have no gradients of weights, and perhaps the activations of blocks computed again in the backward pass.

    The first saves time, the second lets the memory for a long text stay bounded. One thread at a time: others may explain
    the same network.
    """
    with ALONE:
        yield from switched(network, recompute)


def switched(network: Network, recompute: bool) -> Iterator[None]:
    """Switch, and back again."""
    parts = [(part, part.recompute) for part in network.modules() if isinstance(part, Network)]
    learning = [weight for weight in network.parameters() if weight.requires_grad]
    for weight in learning:
        weight.requires_grad_(False)
    for part, was in parts:
        part.recompute = was or recompute
    try:
        yield
    finally:
        for weight in learning:
            weight.requires_grad_()
        for part, was in parts:
            part.recompute = was
