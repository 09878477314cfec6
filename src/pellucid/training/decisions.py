"""Everything that a recipe leaves to `auto`, fixed before a run starts, so that nothing later depends on the machine's mood."""

from __future__ import annotations

import dataclasses
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pellucid.core.device import matmul_rate
from pellucid.core.errors import ConfigError, MissingExtraError
from pellucid.core.machine import compiler
from pellucid.core.progress import Progress
from pellucid.network.presets import preset
from pellucid.training.job import Job
from pellucid.training.memory import check_disk, check_memory, choose_micro_batch, estimate
from pellucid.training.preparation import SHAPE, absolute
from pellucid.training.recipe import LENGTHS

DEFAULT_MINUTES = 10.0
WORTH_COMPILING = 900.0  # seconds: torch.compile takes one or two minutes, so a shorter run cannot gain
GAPS = {"encoder": "[MASK]", "encoder-decoder": "<extra_id_0>"}  # what a prompt needs where it is filled, not continued
EVALUATIONS = 20  # over a run
EVALUATION_SHARE = 0.1  # of the run's time, at the most


def decide(job: Job, out: Path, progress: Progress) -> Job:
    """Check that the job fits into memory and disk, and fix micro-batch, length, compilation and cadence.

    Raises `ConfigError` for settings that contradict one another, `ResourceError` for what does not fit.
    """
    training = job.recipe.training
    if training.tensorboard and find_spec("tensorboard") is None:
        raise MissingExtraError("training.tensorboard", "track")
    if training.compile == "on" and job.compute.device == "cpu" and compiler() is None:
        raise ConfigError("training.compile is on, but no C++ compiler was found; install g++, or use --training.compile off")
    if job.config.architecture in ("recurrent", "bag-of-words"):
        check_without_attention(job)
    check_prompt(job)
    job.batches()  # refuses a corpus that is shorter than one context
    chosen: dict[str, Any] = {"device": job.compute.device, "precision": job.compute.precision, "threads": job.compute.threads}
    chosen["micro_batch"] = fitting_micro_batch(job)
    check_disk(job.config, job.recipe.optimizer.name, training.keep, out)
    job = fixed(job, chosen | {"compile": "off" if training.compile == "auto" else training.compile})
    if training.minutes is not None or not any(getattr(training, name) for name in LENGTHS):
        minutes = DEFAULT_MINUTES if training.minutes is None else training.minutes
        progress.say(f"measuring this machine's speed, to fix the number of steps for {minutes:g} minutes")
        job = compiled_if_worth_it(job, minutes * 60) if training.compile == "auto" else job
        steps = steps_in(minutes * 60, job)
    else:
        steps = training.steps or -(-(training.tokens or 0) // job.step_tokens)
        expected = steps * job.step_flops / (0.5 * matmul_rate(job.compute.dtype, device=job.compute.device))
        job = compiled_if_worth_it(job, expected) if training.compile == "auto" else job
    evaluate_every = cadence(job, steps) if training.evaluate_every == "auto" else training.evaluate_every
    checkpoint_every = evaluate_every if training.checkpoint_every == "auto" else training.checkpoint_every
    return fixed(job, {"steps": steps, "evaluate_every": evaluate_every, "checkpoint_every": checkpoint_every})


def check_prompt(job: Job) -> None:
    """Refuse a prompt for samples that could not be sampled from."""
    prompt, config = job.recipe.training.prompt, job.config
    gap = GAPS.get(config.architecture, "")
    if prompt and gap not in prompt:
        raise ConfigError(
            f"training.prompt {prompt!r} has no {gap}, so there is nothing that {config.family} could fill; put one in it"
        )
    tokens = len(job.prepared.tokenizer.encode(prompt, special=True, framed=bool(gap)))
    if tokens + (not gap) > config.context_length:
        also = "" if gap else " and must hold a continuation too"
        raise ConfigError(f"training.prompt has {tokens} tokens, but the context is {config.context_length}{also}; shorten it")


def check_without_attention(job: Job) -> None:
    """Refuse settings that only blocks of attention answer to."""
    recipe, kind = job.recipe, job.config.family
    for name, set_ in {
        # a bag of words predicts from the mean over the tokens before, and a mask says which
        "data.document_masks": recipe.data.document_masks and job.config.architecture == "recurrent",
        "training.recompute": recipe.training.recompute,
        "training.compile": recipe.training.compile == "on",
    }.items():
        if set_:
            raise ConfigError(f"{name} has no effect with {kind}, which has no attention; leave it out")


def fixed(job: Job, training: dict[str, Any]) -> Job:
    """The job with some fields of its recipe's section `training` set, and paths and dimensions written out."""
    model = job.recipe.model
    published = model.size is not None and preset(model.size) is not None
    names = ["tied"] if published else [name for name in SHAPE if name not in model.without_effect()]
    shape = {name: getattr(job.config, name) for name in names}
    data = {name: absolute(getattr(job.recipe.data, name)) for name in ("corpus", "validation")}
    fields = {
        "data": data,
        "model": shape | ({} if published else {"size": None}),
        "training": training,
    }
    return dataclasses.replace(job, recipe=job.recipe.override(fields))


def fitting_micro_batch(job: Job) -> int:
    """The micro-batch that was asked for or suits the machine, if the whole run fits into memory with it."""
    training = job.recipe.training
    micro = training.micro_batch
    options: dict[str, Any] = {"context": job.config.context_length, "compute": job.compute}
    options |= {"optimizer": job.recipe.optimizer.name, "recompute": training.recompute}
    if job.corruption is not None:
        options["lengths"] = job.corruption.lengths(job.config.context_length)
        options["scored"] = job.recipe.objective.rate if job.recipe.objective.name == "mlm" else 1.0
    if micro == "auto":
        micro = choose_micro_batch(job.config, batch_size=training.batch_size, **options)
    if micro > training.batch_size:
        raise ConfigError(f"training.micro_batch ({micro}) is larger than training.batch_size ({training.batch_size})")
    check_memory(estimate(job.config, micro_batch=micro, **options), job.compute)
    return micro


def cadence(job: Job, steps: int) -> int:
    """Steps between evaluations: 20 over the run, fewer if they would take more than a tenth of its time."""
    affordable = int(EVALUATION_SHARE * steps / evaluation_steps(job))
    return max(1, -(-steps // max(1, min(EVALUATIONS, affordable))))


def evaluation_steps(job: Job) -> float:
    """What one evaluation costs, in training steps: a forward pass is a third of one."""
    windows, batch = job.recipe.training.evaluate_windows, job.recipe.training.batch_size
    available = -(-job.prepared.validation.tokens // job.config.context_length)
    return (available if windows == "all" else min(windows, available)) / batch / 3


def seconds_per_step(job: Job, budget: float) -> float:
    """Seconds that a step takes here, from some that are run for up to `budget` seconds and thrown away."""
    state, step = job.start(), fixed(job, {"steps": 10**9}).step()
    step(state)  # the first step sets up kernels and optimizer state, and compiles
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < budget or count < 2:
        step(state)
        count += 1
    return (time.perf_counter() - begun) / count


def compiled_if_worth_it(job: Job, expected: float) -> Job:
    """The job with torch.compile if it makes steps at least 5 % faster and the run is long enough to earn it back."""
    if job.config.architecture in ("recurrent", "bag-of-words"):
        return job
    if expected < WORTH_COMPILING or (job.compute.device == "cpu" and compiler() is None):
        return job
    compiled = fixed(job, {"compile": "on"})
    return compiled if seconds_per_step(compiled, 3.0) < 0.95 * seconds_per_step(job, 3.0) else job


def steps_in(seconds: float, job: Job) -> int:
    """How many steps fit into `seconds`, evaluations included."""
    per_step = seconds_per_step(job, min(3.0, 0.02 * seconds))
    steps = seconds / per_step
    evaluations = min(EVALUATIONS, max(1, int(EVALUATION_SHARE * steps / evaluation_steps(job))))
    return max(1, int(steps - evaluations * evaluation_steps(job)))
