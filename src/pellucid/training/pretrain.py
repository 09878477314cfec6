"""Pretraining, from a corpus to a run folder: prepare, decide, check, learn, finish."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch

import pellucid
from pellucid.core.device import Compute, choose, matmul_rate
from pellucid.core.errors import ConfigError, DivergenceError, PellucidError, RunError
from pellucid.core.files import MANIFEST, atomic_folder, format_bytes, read_json, write_json, write_text
from pellucid.core.machine import compiler, cpu_name, memory_limit
from pellucid.core.progress import Progress
from pellucid.core.run import RunFolder
from pellucid.network.config import ModelConfig
from pellucid.network.flops import training_flops
from pellucid.network.transformer import Transformer, build
from pellucid.text.batches import Batches
from pellucid.text.corpus import Corpus
from pellucid.text.tokenizer import Tokenizer
from pellucid.training import checkpoint
from pellucid.training.loop import Step, Stop, TrainState, Watch, train
from pellucid.training.memory import check_disk, check_memory, choose_micro_batch, estimate
from pellucid.training.objectives import CausalLM
from pellucid.training.optimizers import Optimizers
from pellucid.training.preparation import Prepared, check_unchanged, dimensions, make_tokenizer, open_corpus, prepare
from pellucid.training.recipe import Recipe
from pellucid.training.report import write_report, write_samples
from pellucid.training.validation import Validation, validate

Sampler = Callable[[Transformer, Tokenizer, str], str]  # continues a prompt; training does not know how generation works

DEFAULT_MINUTES = 10.0
COMPILE_SECONDS = 900  # torch.compile takes a minute or two; below this expected time it is not tried


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
    run = RunFolder(out)
    if resume:
        recipe = resumed(run, recipe)
    else:
        run.check_free(force=force)
    corpus = corpus or open_corpus(recipe.data, recipe.data.corpus)
    tokenizer = Tokenizer.load(run.tokenizer) if resume else make_tokenizer(corpus, recipe.tokenizer, progress)
    prepared = prepare(corpus, recipe.data, tokenizer, progress)
    config = dimensions(recipe.model, tokenizer.vocab_size)
    if resume:
        check_unchanged(prepared.fingerprint, read_json(run.info)["fingerprint"])
    training = recipe.training
    compute = choose(device=training.device, precision=training.precision, threads=training.threads)
    if not resume:
        asked, recipe = recipe, decide(recipe, prepared, config, compute, run, progress)
        with run.creating(force=force) as new:
            write_text(new.tokenizer, tokenizer.to_json())
            write_json(new.info, describe(asked, recipe, prepared, config, compute))
            write_text(new.recipe, recipe.to_toml())
    with run.locked():
        learn(run, recipe, prepared, config, compute, progress, sampler)
    return run


def resumed(run: RunFolder, asked: Recipe) -> Recipe:
    """The recipe of a run, if what is asked now does not contradict it."""
    if not run.is_run():
        raise RunError(f"{run.path} holds no run to resume; leave out --resume to start one")
    recipe, info = Recipe.load(run.recipe), read_json(run.info)
    for section, fields in asked.given().items():
        for name, value in fields.items():
            before = [getattr(getattr(recipe, section), name), info["asked"].get(section, {}).get(name)]
            if value not in before:
                raise RunError(
                    f"{section}.{name} was {before[0]!r} when this run began and is {value!r} now; "
                    "a resumed run goes on as it was, so leave the option out, or start anew with --force"
                )
    return recipe


def decide(
    recipe: Recipe, prepared: Prepared, config: ModelConfig, compute: Compute, run: RunFolder, progress: Progress
) -> Recipe:
    """Fix everything that the recipe leaves open, and check that it fits: afterwards nothing depends on the machine's mood."""
    training, context = recipe.training, config.context_length
    name, recompute = recipe.optimizer.name, training.recompute
    micro = training.micro_batch
    if micro == "auto":
        micro = choose_micro_batch(
            config, batch_size=training.batch_size, context=context, compute=compute, optimizer=name, recompute=recompute
        )
    if micro > training.batch_size:
        raise ConfigError(f"training.micro_batch ({micro}) is larger than training.batch_size ({training.batch_size})")
    need = estimate(config, micro_batch=micro, context=context, compute=compute, optimizer=name, recompute=recompute)
    check_memory(need, compute)
    check_disk(config, name, training.keep, run.path)
    fixed: dict[str, Any] = {
        "micro_batch": micro,
        "device": compute.device,
        "precision": compute.precision,
        "threads": compute.threads,
        "steps": training.steps,
    }
    batches = make_batches(recipe, prepared, config)
    if training.tokens is not None:
        fixed["steps"] = -(-training.tokens // (training.batch_size * context))
    if fixed["steps"] is None:
        minutes = DEFAULT_MINUTES if training.minutes is None else training.minutes
        progress.say(f"measuring this machine's speed, to fix the number of steps for {minutes:g} minutes")
        fixed["steps"] = steps_in(minutes * 60, recipe, batches, config, compute, micro)
    steps = fixed["steps"]
    fixed["compile"] = training.compile if training.compile != "auto" else "off"
    fixed["evaluate_every"] = max(1, -(-steps // 20)) if training.evaluate_every == "auto" else training.evaluate_every
    fixed["checkpoint_every"] = fixed["evaluate_every"] if training.checkpoint_every == "auto" else training.checkpoint_every
    shape = {name: getattr(config, name) for name in ("d_model", "layers", "heads", "kv_heads", "d_mlp")}
    return recipe.override({"model": shape, "training": fixed})


def make_batches(recipe: Recipe, prepared: Prepared, config: ModelConfig) -> Batches:
    return Batches(
        prepared.training,
        context=config.context_length,
        batch_size=recipe.training.batch_size,
        seed=recipe.training.seed,
        documents=recipe.data.document_masks,
    )


def start(recipe: Recipe, config: ModelConfig, compute: Compute) -> TrainState:
    """A fresh network and its optimizers."""
    network = build(config, seed=recipe.training.seed, device=compute.device).train()
    network.recompute = recipe.training.recompute
    if recipe.training.compile == "on":
        if compute.device == "cpu" and compiler() is None:
            raise ConfigError(
                "training.compile is on, but no C++ compiler was found; install g++, or use --training.compile off"
            )
        for block in network.blocks:
            block.compile(dynamic=False)
    return TrainState(network=network, optimizers=Optimizers(network, recipe.optimizer))


def steps_in(seconds: float, recipe: Recipe, batches: Batches, config: ModelConfig, compute: Compute, micro: int) -> int:
    """How many steps fit into `seconds`, evaluations and checkpoints included, by running some and throwing them away."""
    state = start(recipe, config, compute)
    step = Step(
        objective=CausalLM(), batches=batches, schedule=recipe.schedule, steps=10**9, micro_batch=micro, compute=compute
    )
    step(state)  # the first step sets up kernels and optimizer state
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < min(3.0, 0.02 * seconds) or count < 2:
        step(state)
        count += 1
    per_step = (time.perf_counter() - begun) / count
    windows = recipe.training.evaluate_windows
    evaluation = per_step / 3 * (512 if windows == "all" else windows) / recipe.training.batch_size
    return max(1, int((seconds - 20 * evaluation) / per_step))


def learn(
    run: RunFolder,
    recipe: Recipe,
    prepared: Prepared,
    config: ModelConfig,
    compute: Compute,
    progress: Progress,
    sampler: Sampler,
) -> None:
    """Run the loop from the latest checkpoint, or from the start, to its end, and finish the run folder."""
    training, tokenizer = recipe.training, prepared.tokenizer
    steps = cast(int, training.steps)
    state = start(recipe, config, compute)
    if checkpoint.all_whole(run):
        where = checkpoint.load(checkpoint.latest(run), state.network, state.optimizers)
        state.step, state.seconds = where.step, where.seconds
        progress.say(f"going on after step {state.step:,} of {steps:,}")
    run.rewind_metrics(state.step)
    step = Step(
        objective=CausalLM(),
        batches=make_batches(recipe, prepared, config),
        schedule=recipe.schedule,
        steps=steps,
        micro_batch=cast(int, training.micro_batch),
        compute=compute,
    )

    def evaluate() -> Validation:
        windows = None if training.evaluate_windows == "all" else training.evaluate_windows
        return validate(
            state.network,
            step.objective,
            prepared.validation,
            context=config.context_length,
            batch_size=step.micro_batch,
            windows=windows,
            compute=compute,
        )

    def save(validation_loss: float | None) -> None:
        position = checkpoint.Position(step=state.step, seconds=state.seconds, validation_loss=validation_loss)
        checkpoint.save(run, state.network, state.optimizers, tokenizer, position)
        checkpoint.prune(run, training.keep)

    watch = Watch(
        log_every=max(1, steps // 500),
        evaluate_every=cast(int, training.evaluate_every),
        checkpoint_every=cast(int, training.checkpoint_every),
        evaluate=evaluate,
        record=run.append_metrics,
        sample=lambda: sampler(state.network, tokenizer, training.prompt),
        checkpoint=save,
        target_loss=training.target_loss,
    )
    stop = Stop()
    tokens = training.batch_size * config.context_length
    try:
        with stop.listening(), progress.task("training", steps * tokens, "tokens") as task:
            task.advance(state.step * tokens)
            train(state, step, watch, stop, task)
    except DivergenceError as error:
        raise DivergenceError(f"{error}; {after_divergence(run)}") from None
    finally:
        if run.read_metrics():
            write_samples(run)
            write_report(run)
    if stop.signal is not None and state.step < steps:
        raise Interrupted(
            f"stopped after step {state.step:,} of {steps:,}; go on with: pellucid pretrain --resume --out {run.path}",
            stop.signal,
        )
    finish(run)


def after_divergence(run: RunFolder) -> str:
    """What a user can do."""
    whole = checkpoint.all_whole(run)
    kept = f"the last good checkpoint is {whole[-1]}" if whole else "there is no checkpoint yet"
    return f"{kept}; start anew with a lower --optimizer.learning-rate and --optimizer.matrix-learning-rate, or a longer --schedule.warmup"


def finish(run: RunFolder) -> None:
    """Make the best checkpoint the run's model."""
    source = checkpoint.best(run) or checkpoint.latest(run)
    with atomic_folder(run.model) as folder:
        for path in source.glob("*"):
            if path.name not in (checkpoint.OPTIMIZER, checkpoint.POSITION, MANIFEST):
                shutil.copyfile(path, folder / path.name)


def describe(asked: Recipe, recipe: Recipe, prepared: Prepared, config: ModelConfig, compute: Compute) -> dict[str, Any]:
    """`run.json`: what a reader needs to judge or repeat the run."""
    steps = cast(int, recipe.training.steps)
    tokens = steps * recipe.training.batch_size * config.context_length
    flops = training_flops(config, config.context_length)
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"pellucid": pellucid.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": {
            "processor": cpu_name(),
            "memory": format_bytes(memory_limit()),
            "system": platform.platform(),
            "device": compute.device if compute.device == "cpu" else torch.cuda.get_device_name(compute.device),
            "matmul_flops_per_second": matmul_rate(compute.dtype, device=compute.device, size=1024, seconds=0.1),
        },
        "asked": asked.given(),
        "fingerprint": prepared.fingerprint,
        "corpus": prepared.corpus,
        "tokens": {
            "training": prepared.training.tokens,
            "validation": prepared.validation.tokens,
            "bytes_per_token": prepared.training.bytes / prepared.training.tokens,
            "vocabulary": prepared.tokenizer.vocab_size,
            "planned": tokens,
            "epochs": tokens / prepared.training.tokens,
        },
        "parameters": config.parameters,
        "training_flops_per_token": flops,
        "training_flops": flops * tokens,
    }
