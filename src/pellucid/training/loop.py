"""The one training loop."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import torch

from pellucid.core.errors import DivergenceError
from pellucid.core.progress import Task
from pellucid.network.network import Network
from pellucid.network.recurrent import LayerState, Recurrent
from pellucid.text.batches import Batch
from pellucid.training.objectives import Objective
from pellucid.training.optimizers import Optimizers
from pellucid.training.recipe import Schedule
from pellucid.training.schedules import factor


class Source(Protocol):
    """Batches by number: number n is a pure function of n."""

    batch_size: int

    @property
    def context(self) -> int:
        """Tokens that a row has; where rows differ, on average."""

    def __getitem__(self, number: int) -> Batch: ...

    def continues(self, number: int) -> bool:
        """Whether the rows of a batch go on where the batch before it ended."""


class Score(Protocol):
    """What an evaluation found."""

    @property
    def loss(self) -> float:
        """Nats per target."""

    def metrics(self) -> dict[str, float]:
        """The figures of an evaluation, `validation_loss` among them."""


@dataclass(kw_only=True)
class TrainState:
    """All that changes while a network learns."""

    network: Network
    optimizers: Optimizers
    step: int = 0  # optimizer steps done
    seconds: float = 0.0  # of training so far
    best: float = math.inf  # lowest validation loss so far
    stale: int = 0  # evaluations since
    memory: list[LayerState] | None = None  # what a recurrent network remembers of the batch before


@dataclass(frozen=True, kw_only=True)
class Step:
    """How a step is computed; the same for all steps of a run."""

    objective: Objective
    batches: Source
    schedule: Schedule
    steps: int
    micro_batch: int | Callable[[Batch], Iterator[slice]]  # rows at a time, or the parts of a batch
    seed: int = 0

    def __call__(self, state: TrainState) -> tuple[float, float]:
        """Learn batch number `state.step`; return its mean loss in nats per target and its gradient's norm.

        The micro-batches' summed losses are each divided by the whole batch's number of targets, so their gradients add up to
        the big batch's whatever the division, padded sequences included.
        """
        batch = self.batches[state.step]
        targets = self.objective.count(batch)
        total = 0.0
        torch.manual_seed((self.seed * 1_000_003 + state.step) % 2**63)  # of dropout, so that a resume needs no random state
        memory = self.remembered(state, len(batch.ids))
        size = self.micro_batch
        for rows in pieces(len(batch.ids), size) if isinstance(size, int) else size(batch):
            part = memory and [layer.rows(rows) for layer in memory]
            loss = self.objective.loss(state.network, batch.rows(rows), part) / targets
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
            for layer, changed in zip(memory or [], part or [], strict=True):
                layer.put(rows, changed)
        state.memory = memory
        norm = state.optimizers.step(self.rate(state.step))
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise DivergenceError(f"step {state.step + 1}: the loss is {total} and the gradient's norm {norm}")
        state.step += 1
        return total, norm

    def remembered(self, state: TrainState, rows: int) -> list[LayerState] | None:
        """What a recurrent network knows as it begins a step: nothing, unless the batch goes on where the last one ended."""
        if not isinstance(state.network, Recurrent):
            return None
        if state.memory is None or not self.batches.continues(state.step):
            return state.network.state(rows)
        return state.memory

    def rate(self, step: int) -> float:
        """The factor by which this step multiplies the peak learning rates."""
        return factor(self.schedule, step, self.steps)


def pieces(rows: int, size: int) -> Iterator[slice]:
    """The rows of a batch in micro-batches of at most `size`."""
    for start in range(0, rows, size):
        yield slice(start, start + size)


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What happens beside learning, and how often (in steps)."""

    log_every: int
    evaluate_every: int
    checkpoint_every: int
    evaluate: Callable[[], Score] | None  # None: there is nothing to evaluate on
    record: Callable[[dict[str, Any]], None]  # takes a line of metrics
    sample: Callable[[], str | None]
    checkpoint: Callable[[float | None], None]  # takes the validation loss of this step, if there is one
    target_loss: float | None
    patience: int | None = None  # evaluations without a lower loss after which learning ends


@dataclass
class Stop:
    """Whether someone asked the run to end: SIGTERM or Ctrl-C, seen after the step that is under way."""

    signal: int | None = None
    previous: dict[int, Any] = field(default_factory=dict)

    def _seen(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - what signal handlers are given
        self.signal = number
        signal.signal(signal.SIGINT, self.previous[signal.SIGINT])  # a second Ctrl-C ends it at once

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        try:
            for number in (int(signal.SIGINT), int(signal.SIGTERM)):
                self.previous[number] = signal.signal(number, self._seen)
        except ValueError:  # not the main thread: the program that runs us handles signals
            self.previous.clear()
        try:
            yield self
        finally:
            for number, handler in self.previous.items():
                signal.signal(number, handler)


def train(state: TrainState, step: Step, watch: Watch, stop: Stop, task: Task) -> None:
    """Learn until the last step, the target loss, the end of patience, or a signal; each ends with a checkpoint."""
    started = time.perf_counter() - state.seconds
    batch_tokens = step.batches.batch_size * step.batches.context
    busy, counted, reached = 0.0, 0, False
    while state.step < step.steps and not reached:
        rate, before = step.rate(state.step), time.perf_counter()
        loss, norm = step(state)
        busy, counted = busy + time.perf_counter() - before, counted + 1
        state.seconds = time.perf_counter() - started
        done = state.step == step.steps
        if state.step % watch.log_every == 0 or done:
            row = {"step": state.step, "loss": loss, "gradient_norm": norm, "rate": rate}
            watch.record(row | {"seconds": round(state.seconds, 3), "tokens_per_second": round(counted * batch_tokens / busy)})
            busy, counted = 0.0, 0
        validation = None
        if watch.evaluate is not None and (state.step % watch.evaluate_every == 0 or done):
            validation = watch.evaluate()
            if not math.isfinite(validation.loss):
                raise DivergenceError(f"step {state.step}: the validation loss is {validation.loss}")
            state.stale = 0 if validation.loss < state.best else state.stale + 1
            reached = watch.target_loss is not None and validation.loss <= watch.target_loss
            reached = reached or (watch.patience is not None and state.stale >= watch.patience)
            state.seconds = time.perf_counter() - started
            row = {"step": state.step, "seconds": round(state.seconds, 3)} | validation.metrics()
            watch.record(row | ({"sample": sample} if (sample := watch.sample()) is not None else {}))
            task.say(f"step {state.step:,}: {validation}")
        task.advance(batch_tokens, note=f"loss {loss:.3f}")
        better = validation is not None and validation.loss < state.best
        state.best = min(state.best, validation.loss) if validation else state.best
        asked_to_stop = stop.signal is not None
        if state.step % watch.checkpoint_every == 0 or done or reached or better or asked_to_stop:
            watch.checkpoint(validation.loss if validation else None)
        if asked_to_stop:
            return
