"""Which parts of a text an answer hangs on, by several methods side by side, each judged by what it claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal, get_args

import numpy as np

from pellucid.core.errors import ConfigError, ModelError
from pellucid.core.progress import Progress, Silent, Task
from pellucid.explanation.faithfulness import CERTAIN, Chance, Faithfulness
from pellucid.explanation.flow import Flow, attends
from pellucid.explanation.gradients import gradient_times_input, integrated_gradients
from pellucid.explanation.question import Question
from pellucid.explanation.removal import Floats, Removal, leave_one_out
from pellucid.explanation.shapley import shapley

Method = Literal["shapley", "occlusion", "integrated gradients", "gradient x input", "attention rollout", "attention"]
METHODS: tuple[Method, ...] = get_args(Method)
BY_GRADIENT = ("integrated gradients", "gradient x input")
BY_ATTENTION = ("attention rollout", "attention")


@dataclass(frozen=True)
class Attribution:
    """What one method says of each unit, [units]: positive for the target, negative for the foil."""

    method: Method
    values: Floats
    faithfulness: Faithfulness
    errors: Floats | None = None  # standard errors of the values, where they are estimates
    total: float | None = None  # what the values should sum to, where the method promises a sum
    note: str = ""

    @property
    def gap(self) -> float | None:
        """How far the sum is from what it should be."""
        return None if self.total is None else float(self.values.sum() - self.total)


@dataclass(frozen=True)
class Attributions:
    """All that were asked for, the most faithful to this input first, and how random orders fare."""

    found: tuple[Attribution, ...]
    chance: Chance
    left_out: dict[str, str] = field(default_factory=dict)  # methods that cannot be had, and why

    @property
    def leading(self) -> Attribution:
        return self.found[0]

    @property
    def verdict(self) -> str:
        """One sentence: how far the leading one can be trusted."""
        best, units = self.leading, self.chance.removal.units
        score, chance = best.faithfulness.score, self.chance.intervals["score"]
        tried, drawn = len(self.found), f"all {self.chance.orders:,}" if self.chance.exact else f"{self.chance.orders}"
        beside = f"{score:+.2f}, where 95 % of random orders ({drawn}) lie between {chance.low:+.2f} and {chance.high:+.2f}"
        if best.faithfulness.beats_chance:
            return f"The most faithful method for this input is {best.method}: {beside}."
        if self.chance.exact and tried / self.chance.orders >= CERTAIN:
            many = f"{units} unit{'s' * (units > 1)} can be put into too few orders ({self.chance.orders})"
            return f"{many} to tell a method from chance; the most faithful is {best.method}: {beside}."
        bar = f"one of {tried} methods must pass {self.chance.needed(tried):+.2f}"
        return f"No method can be told from chance for this input; the best is {best.method}: {beside}, and {bar}."


def attribute(
    question: Question,
    *,
    methods: Sequence[Method] | None = None,
    removal: Removal | None = None,
    samples: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Attributions:
    """Attributions by all methods that the network allows, or by those that are named.

    Raises `ConfigError` for a method that is not known, and for a named one that cannot be had.
    """
    if methods is not None and not methods:
        raise ConfigError(f"no method is named; choose from {', '.join(METHODS)}")
    if steps is not None and steps < 1:
        raise ConfigError(f"steps must be 1 or more, not {steps}")
    if seed < 0:
        raise ConfigError(f"the seed must be 0 or more, not {seed}")
    for method in methods or ():
        if method not in METHODS:
            raise ConfigError(f"there is no method {method!r}; choose from {', '.join(METHODS)}")
    left_out = missing(question)
    for option, value, of in (("samples", samples, "shapley"), ("steps", steps, "integrated gradients")):
        if value is not None and (of in left_out or (methods is not None and of not in methods)):
            raise ConfigError(f"{option} has no effect without {of}; leave it out")
    for method in methods or ():
        if method in left_out:
            raise ConfigError(f"{method} cannot be had: {left_out[method]}")
    removal = removal or Removal(question)
    if not isfinite(removal.whole):
        raise ModelError(f"{question.measure} is {removal.whole}, no number: the model's weights or its input are broken")
    chosen = [method for method in METHODS if method not in left_out and (methods is None or method in methods)]
    work = Work(question, removal, samples, steps, seed)
    with (progress or Silent()).task("attributing", None, "forward passes") as task:
        removal.task = task
        made = [work.made(method, task) for method in chosen]
        chance = Chance(removal, seed=seed)
        faithful = chance.judge([values for values, _ in made])
    judged = [
        Attribution(method, values, found, **more) for method, (values, more), found in zip(chosen, made, faithful, strict=True)
    ]
    judged.sort(key=lambda one: -one.faithfulness.score)
    return Attributions(tuple(judged), chance, left_out if methods is None else {})


def missing(question: Question) -> dict[str, str]:
    """The methods that this network does not allow, and why."""
    found: dict[str, str] = {}
    config, held = question.network.config, question.network.held
    if held is not None:
        found |= dict.fromkeys(
            BY_GRADIENT, f"the model is held in {held.precision}, and no gradient passes; load it without a precision"
        )
    if not attends(question):
        found |= dict.fromkeys(BY_ATTENTION, f"a {config.family} network has no attention")
    return found


class Work:
    """Each method, from the question to values of units."""

    def __init__(self, question: Question, removal: Removal, samples: int | None, steps: int | None, seed: int) -> None:
        self.question, self.removal, self.samples, self.steps, self.seed = question, removal, samples, steps, seed

    def made(self, method: Method, task: Task) -> tuple[Floats, dict[str, Any]]:
        """The values of units, and what else the method knows."""
        if method == "shapley":
            values, errors = shapley(self.removal, samples=self.samples, seed=self.seed)
            return values, {"errors": errors, "total": self.removal.whole - self.removal.nothing}
        if method == "occlusion":
            return leave_one_out(self.removal), {}
        if method == "integrated gradients":
            found = integrated_gradients(self.question, steps=self.steps, task=task)
            note = f"{found.points} points along the way"
            if not found.converged:
                note += f"; not converged, {found.missed:.2f} is unaccounted for"
            return self.merged(found.values), {"total": found.total, "note": note}
        if method == "gradient x input":
            return self.merged(gradient_times_input(self.question)), {}
        flow = Flow(self.question)
        return self.merged(flow.rollout if method == "attention rollout" else flow.attention), {}

    def merged(self, tokens: Floats) -> Floats:
        """Values of tokens, [tokens], summed over each unit, [units]; those of tokens that are no text are left out."""
        return np.array([tokens[list(unit.tokens)].sum() for unit in self.question.units])
