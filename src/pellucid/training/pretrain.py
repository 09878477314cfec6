"""Pretraining, from a corpus to a run folder: prepare, decide, learn, finish."""

from __future__ import annotations

import math
import platform
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch

from pellucid.core.device import choose, matmul_rate
from pellucid.core.errors import ConfigError, DivergenceError, PellucidError, ResourceError, RunError
from pellucid.core.files import MANIFEST, atomic_folder, format_bytes, hash_file, read_json, verify, write_json, write_text
from pellucid.core.machine import cpu_name, memory_limit
from pellucid.core.progress import Progress
from pellucid.core.run import RunFolder
from pellucid.network.build import parameters
from pellucid.network.network import Network
from pellucid.text.corpus import Corpus
from pellucid.text.tokenizer import Tokenizer
from pellucid.training import checkpoint
from pellucid.training.decisions import decide
from pellucid.training.job import Job
from pellucid.training.loop import Stop, Watch, train
from pellucid.training.preparation import (
    check_unchanged,
    dimensions,
    fingerprint,
    make_tokenizer,
    open_corpus,
    prepare,
    settled,
)
from pellucid.training.recipe import Recipe
from pellucid.training.report import write_report, write_samples

Sampler = Callable[[Network, Tokenizer, str], str]  # continues a prompt; training does not know how generation works


class Interrupted(PellucidError):
    """The run was asked to stop; its state is in a checkpoint."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal


def pretrain(
    recipe: Recipe,
    out: Path,
    *,
    corpus: Corpus | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress,
    sampler: Sampler,
) -> RunFolder:
    """Train a network from scratch, or go on with a run that was stopped or killed.

    `corpus` is opened from `recipe.data.corpus` if it is not given. Raises a `PellucidError` for everything that can be wrong;
    nothing is written to `out` before text, dimensions, memory and disk have been found good.
    """
    if resume and force:
        raise ConfigError(
            "--resume and --force contradict each other: one goes on with the run, the other deletes it; leave one out"
        )
    run = RunFolder(out)
    if resume:
        recipe = resumed(run, recipe)
    else:
        run.check_free(force=force)
        recipe, asked = settled(recipe), recipe
    data = recipe.data
    corpus = corpus or open_corpus(data, data.corpus)
    held_out = open_corpus(data, data.validation) if data.validation else None
    tokenizer = (
        Tokenizer.load(run.path)
        if resume
        else make_tokenizer(corpus, held_out, recipe.tokenizer, progress, str(recipe.objective.name))
    )
    hashes = fingerprint(corpus, held_out, tokenizer)
    if resume:
        check_unchanged(hashes, read_json(run.info)["fingerprint"])
    prepared = prepare(corpus, held_out, data.validation_fraction, tokenizer, progress)
    training = recipe.training
    job = Job(
        recipe=recipe,
        prepared=prepared,
        config=dimensions(recipe.model, tokenizer.vocab_size),
        compute=choose(device=training.device, precision=training.precision, threads=training.threads),
    )
    if not resume:
        job = decide(job, run.path, progress)
        with run.creating(force=force) as new:
            tokenizer.save(new.path, context_length=job.config.context_length)
            write_text(new.recipe, job.recipe.to_toml())
            write_json(new.info, describe(job, asked, corpus, hashes) | {"recipe": hash_file(new.recipe)})
    with run.locked():
        learn(run, job, progress, sampler)
        finish(run)
    return run


def resumed(run: RunFolder, asked: Recipe) -> Recipe:
    """The recipe of a run, if what is asked now does not contradict it."""
    if not run.is_run():
        raise RunError(f"{run.path} holds no run to resume; leave out --resume to start one")
    recipe, info = Recipe.load(run.recipe), read_json(run.info)
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


def learn(run: RunFolder, job: Job, progress: Progress, sampler: Sampler) -> None:
    """Run the loop from the latest checkpoint, or from the start, to its end."""
    training, tokenizer, state = job.recipe.training, job.prepared.tokenizer, job.start()
    target = training.target_loss
    if checkpoint.all_whole(run):
        position = checkpoint.load(checkpoint.latest(run), state)
        state.step, state.seconds = position.step, position.seconds
        progress.say(f"going on after step {state.step:,} of {job.steps:,}")
        if target is not None and position.validation_loss is not None and position.validation_loss <= target:
            return
    run.rewind_metrics(state.step)
    state.best = min((row["validation_loss"] for row in run.read_metrics() if "validation_loss" in row), default=math.inf)

    def save(validation_loss: float | None) -> None:
        position = checkpoint.Position(step=state.step, seconds=state.seconds, validation_loss=validation_loss)
        checkpoint.save(run, state, tokenizer, position)
        checkpoint.prune(run, training.keep)

    stop = Stop()
    with ExitStack() as stack:
        stack.enter_context(drawn_at_the_end(run))
        watch = Watch(
            log_every=max(1, job.steps // 500),
            evaluate_every=cast(int, training.evaluate_every),
            checkpoint_every=cast(int, training.checkpoint_every),
            evaluate=lambda: job.evaluate(state),
            record=stack.enter_context(recorder(run, tensorboard=training.tensorboard)),
            sample=lambda: sampled(sampler, state.network, tokenizer, training.prompt),
            checkpoint=save,
            target_loss=target,
        )
        stack.enter_context(stop.listening())
        task = stack.enter_context(progress.task("training", job.steps * job.step_tokens, "tokens"))
        task.advance(state.step * job.step_tokens)
        try:
            train(state, job.step(), watch, stop, task)
        except DivergenceError as error:
            raise DivergenceError(f"{error}; {after_divergence(run)}") from None
    if stop.signal is not None and state.step < job.steps:
        how = f"pellucid pretrain --resume --out {shlex.quote(str(run.path))}"
        raise Interrupted(f"stopped after step {state.step:,} of {job.steps:,}; go on with: {how}", stop.signal)


def sampled(sampler: Sampler, network: Network, tokenizer: Tokenizer, prompt: str) -> str:
    """A sample, after which the network goes on learning."""
    text = sampler(network, tokenizer, prompt)
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
def drawn_at_the_end(run: RunFolder) -> Iterator[None]:
    """Write samples and report when the block ends, also of a run that was interrupted; not where the disk is full."""
    with ExitStack() as ending:
        ending.callback(draw, run)
        try:
            yield
        except ResourceError:
            ending.pop_all()
            raise


def draw(run: RunFolder) -> None:
    """Write samples and report."""
    if run.read_metrics():
        write_samples(run)
        write_report(run)


def after_divergence(run: RunFolder) -> str:
    """What a user can do."""
    whole = checkpoint.all_whole(run)
    kept = f"the last good checkpoint is {whole[-1]}" if whole else "there is no checkpoint yet"
    return f"{kept}; start anew with lower learning rates (--optimizer.learning-rate, --optimizer.matrix-learning-rate)"


def finish(run: RunFolder) -> None:
    """Make the best checkpoint the run's model."""
    source = checkpoint.best(run) or checkpoint.latest(run)
    verify(source)
    with atomic_folder(run.model) as folder:
        for path in source.glob("*"):
            if path.name not in (checkpoint.OPTIMIZER, checkpoint.MEMORY, checkpoint.POSITION, MANIFEST):
                shutil.copyfile(path, folder / path.name)


def describe(job: Job, asked: Recipe, corpus: Corpus, hashes: dict[str, str]) -> dict[str, Any]:
    """`run.json`: what a reader needs to judge or repeat the run."""
    compute, prepared, planned = job.compute, job.prepared, job.steps * job.step_tokens
    gpu = None if compute.device == "cpu" else torch.cuda.get_device_name(compute.device)
    return {
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
        "corpus": corpus.describe(),
        "tokens": {
            "training": prepared.training.tokens,
            "validation": prepared.validation.tokens,
            "bytes_per_token": prepared.training.bytes / prepared.training.tokens,
            "vocabulary": prepared.tokenizer.vocab_size,
            "planned": planned,
            "epochs": planned / prepared.training.tokens,
        },
        "network": job.config.describe(),
        "parameters": parameters(job.config),
        "training_flops_per_token": job.token_flops,
        "training_flops": job.step_flops * job.steps,
    }
