"""Pretraining, from a corpus to a run folder: prepare, decide, learn, finish."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pellucid.core.device import choose
from pellucid.core.files import hash_file, read_json, write_json, write_text
from pellucid.core.progress import Progress
from pellucid.core.run import RunFolder
from pellucid.network.build import parameters
from pellucid.network.network import Network
from pellucid.text.corpus import Corpus
from pellucid.text.tokenizer import Tokenizer
from pellucid.training.decisions import decide
from pellucid.training.job import Job
from pellucid.training.preparation import dimensions, fingerprint, make_tokenizer, open_corpus, prepare, settled
from pellucid.training.recipe import Recipe
from pellucid.training.running import check_resume, check_unchanged, circumstances, finish, learn, resumed

Sampler = Callable[[Network, Tokenizer, str], str]  # continues a prompt; training does not know how generation works


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
    check_resume(resume=resume, force=force)
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
        learn(run, job, progress, lambda network: sampler(network, tokenizer, training.prompt), recipe.verb)
        finish(run)
    return run


def describe(job: Job, asked: Recipe, corpus: Corpus, hashes: dict[str, str]) -> dict[str, Any]:
    """`run.json`: what a reader needs to judge or repeat the run."""
    prepared, planned = job.prepared, job.steps * job.step_tokens
    return circumstances(job.compute, asked, hashes) | {
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
