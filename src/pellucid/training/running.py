"""A run under way, whatever it learns: resumed, watched, interrupted, finished."""

from __future__ import annotations

import math
import platform
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Protocol, TypeVar, cast

import torch

from pellucid.core.device import Compute, matmul_rate
from pellucid.core.errors import ConfigError, DivergenceError, PellucidError, ResourceError, RunError
from pellucid.core.files import MANIFEST, atomic_folder, format_bytes, hash_file, read_json, verify
from pellucid.core.machine import cpu_name, memory_limit
from pellucid.core.progress import Progress
from pellucid.core.run import RunFolder
from pellucid.network.network import Network
from pellucid.training import checkpoint
from pellucid.training.checkpoint import Kept
from pellucid.training.loop import Score, Step, Stop, TrainState, Watch, train
from pellucid.training.report import write_samples
from pellucid.training.settings import Settings

Chosen = TypeVar("Chosen", bound=Settings)
Sample = Callable[[Network], str | None]  # what a network writes by now, if it writes


class Interrupted(PellucidError):
    """The run was asked to stop; its state is in a checkpoint."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal


class Pace(Protocol):
    """How often a run is evaluated and kept, and when it may end early: of the section `training` of a recipe."""

    @property
    def target_loss(self) -> float | None: ...
    @property
    def patience(self) -> int | None: ...
    @property
    def evaluate_every(self) -> Any: ...
    @property
    def checkpoint_every(self) -> Any: ...
    @property
    def keep(self) -> int: ...
    @property
    def tensorboard(self) -> bool: ...


class Job(Protocol):
    """A run with nothing left open."""

    @property
    def steps(self) -> int: ...
    @property
    def step_tokens(self) -> int:
        """Tokens that a step reads, on average."""

    @property
    def held_out(self) -> bool:
        """Whether there is something to evaluate on."""

    @property
    def pace(self) -> Pace: ...
    @property
    def kept(self) -> Kept: ...
    def start(self) -> TrainState:
        """A network at its beginning and its optimizers, the same every time."""

    def step(self) -> Step:
        """How a step is computed."""

    def evaluate(self, state: TrainState) -> Score:
        """How good the network is on what it does not learn from."""

    def draw(self, run: RunFolder) -> None:
        """Write the run's pages for people."""


def check_resume(*, resume: bool, force: bool) -> None:
    """Refuse to go on with a run and to delete it."""
    if resume and force:
        raise ConfigError(
            "--resume and --force contradict each other: one goes on with the run, the other deletes it; leave one out"
        )


def resumed(run: RunFolder, asked: Chosen) -> Chosen:
    """The recipe of a run, if what is asked now does not contradict it."""
    if not run.is_run():
        raise RunError(f"{run.path} holds no run to resume; leave out --resume to start one")
    info = read_json(run.info)
    if (verb := info.get("verb", "pretrain")) != asked.verb:
        raise RunError(f"{run.path} was begun by pellucid {verb}, not by pellucid {asked.verb}; resume it with that")
    recipe = type(asked).load(run.recipe)
    if hash_file(run.recipe) != info["recipe"]:
        raise RunError(f"{run.recipe} was changed after this run began; put it back, or start anew with --force")
    for section, fields in asked.given().items():
        for name, value in fields.items():
            before = [getattr(getattr(recipe, section), name), info["asked"].get(section, {}).get(name)]
            if value not in before:
                raise RunError(
                    f"{section}.{name} was {before[0]!r} when this run began and is {value!r} now; "
                    "a resumed run goes on as it was, so leave the option out, or start anew with --force"
                )
    return recipe


def circumstances(compute: Compute, asked: Settings, hashes: dict[str, str]) -> dict[str, Any]:
    """What `run.json` says of any run: when, by what, on what machine, from what."""
    gpu = None if compute.device == "cpu" else torch.cuda.get_device_name(compute.device)
    return {
        "verb": asked.verb,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"pellucid": version("pellucid"), "torch": torch.__version__, "python": platform.python_version()},
        "machine": {
            "processor": cpu_name(),
            "memory": format_bytes(memory_limit()),
            "system": platform.platform(),
            "gpu": gpu,
            "matmul_flops_per_second": matmul_rate(compute.dtype, device=compute.device, size=1024, seconds=0.1),
        },
        "asked": asked.given(),
        "fingerprint": hashes,
    }


def check_unchanged(now: dict[str, str], then: dict[str, str]) -> None:
    """Refuse to resume on other text, other labels, another tokenizer or another model."""
    for name, value in then.items():
        if now.get(name) != value:
            raise RunError(
                f"the {name} is not the one this run began with (its SHA-256 was {value[:12]}, "
                f"now {now.get(name, 'none')[:12]}); put it back, or start anew with --force"
            )


def learn(run: RunFolder, job: Job, progress: Progress, sample: Sample, command: str) -> None:
    """Run the loop from the latest checkpoint, or from the start, to its end; `command` is what goes on with it."""
    pace, state = job.pace, job.start()
    target = pace.target_loss
    if checkpoint.all_whole(run):
        position = checkpoint.load(checkpoint.latest(run), state, job.kept)
        state.step, state.seconds = position.step, position.seconds
        progress.say(f"going on after step {state.step:,} of {job.steps:,}")
        if target is not None and position.validation_loss is not None and position.validation_loss <= target:
            return
    run.rewind_metrics(state.step)
    losses = [row["validation_loss"] for row in run.read_metrics() if "validation_loss" in row]
    state.best = min(losses, default=math.inf)
    state.stale = len(losses) - 1 - losses.index(state.best) if losses else 0
    if pace.patience is not None and state.stale >= pace.patience:
        return

    def save(validation_loss: float | None) -> None:
        position = checkpoint.Position(step=state.step, seconds=state.seconds, validation_loss=validation_loss)
        checkpoint.save(run, state, job.kept, position)
        checkpoint.prune(run, pace.keep)

    stop = Stop()
    with ExitStack() as stack:
        stack.enter_context(drawn_at_the_end(run, job))
        watch = Watch(
            log_every=max(1, job.steps // 500),
            evaluate_every=cast(int, pace.evaluate_every),
            checkpoint_every=cast(int, pace.checkpoint_every),
            evaluate=(lambda: job.evaluate(state)) if job.held_out else None,
            record=stack.enter_context(recorder(run, tensorboard=pace.tensorboard)),
            sample=lambda: sampled(sample, state.network),
            checkpoint=save,
            target_loss=target,
            patience=pace.patience,
        )
        stack.enter_context(stop.listening())
        task = stack.enter_context(progress.task("training", job.steps * job.step_tokens, "tokens"))
        task.advance(state.step * job.step_tokens)
        try:
            train(state, job.step(), watch, stop, task)
        except DivergenceError as error:
            raise DivergenceError(f"{error}; {after_divergence(run, command)}") from None
    if stop.signal is not None and state.step < job.steps:
        how = f"pellucid {command} --resume --out {shlex.quote(str(run.path))}"
        raise Interrupted(f"stopped after step {state.step:,} of {job.steps:,}; go on with: {how}", stop.signal)


def sampled(sample: Sample, network: Network) -> str | None:
    """A sample, after which the network goes on learning."""
    text = sample(network)
    network.train()
    return text


@contextmanager
def recorder(run: RunFolder, *, tensorboard: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Where a line of metrics goes: to `metrics.jsonl`, with its sample to `samples.md`, and if wanted to TensorBoard."""
    with ExitStack() as stack:
        writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            writer = stack.enter_context(SummaryWriter(str(run.path / "tensorboard")))

        def record(row: dict[str, Any]) -> None:
            run.append_metrics(row)
            if "sample" in row:
                write_samples(run)
            for name, value in row.items():
                if writer and isinstance(value, float):
                    writer.add_scalar(name, value, row["step"])

        yield record


@contextmanager
def drawn_at_the_end(run: RunFolder, job: Job) -> Iterator[None]:
    """Write the pages when the block ends, also of a run that was interrupted; not where the disk is full."""

    def draw() -> None:
        if run.read_metrics():
            job.draw(run)

    with ExitStack() as ending:
        ending.callback(draw)
        try:
            yield
        except ResourceError:
            ending.pop_all()
            raise


def after_divergence(run: RunFolder, command: str) -> str:
    """What a user can do."""
    whole = checkpoint.all_whole(run)
    kept = f"the last good checkpoint is {whole[-1]}" if whole else "there is no checkpoint yet"
    if command != "pretrain":
        return f"{kept}; start anew with a lower --learning-rate"
    return f"{kept}; start anew with lower learning rates (--optimizer.learning-rate, --optimizer.matrix-learning-rate)"


def finish(run: RunFolder) -> None:
    """Make the best checkpoint the run's model."""
    source = checkpoint.best(run) or checkpoint.latest(run)
    verify(source)
    with atomic_folder(run.model) as folder:
        for path in source.glob("*"):
            if path.name not in (*checkpoint.PRIVATE, MANIFEST):
                shutil.copyfile(path, folder / path.name)
