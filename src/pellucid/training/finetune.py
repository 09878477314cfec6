"""Fine-tuning, from a model and labelled data to a run folder: fit, decide, learn, finish."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from pellucid.core.device import Compute, choose
from pellucid.core.errors import ConfigError
from pellucid.core.files import format_bytes, hash_file, read_json, write_json, write_text
from pellucid.core.machine import disk_free
from pellucid.core.progress import Progress
from pellucid.core.run import RunFolder
from pellucid.network.adapters import LoRA, attach
from pellucid.network.build import build
from pellucid.network.config import ModelConfig
from pellucid.network.network import Network
from pellucid.network.peft import fingerprint
from pellucid.network.transformer import Block
from pellucid.text.batches import Batch, few_widths
from pellucid.text.corpus import Corpus
from pellucid.text.tabular import Sources
from pellucid.training.checkpoint import AdapterOnly, Kept, WholeModel
from pellucid.training.finetune_recipe import LABELLED, FinetuneRecipe, Tuning
from pellucid.training.finetune_report import write_finetune_report
from pellucid.training.lesson import Lesson, Start
from pellucid.training.lessons import lesson
from pellucid.training.loop import Score, Step, TrainState
from pellucid.training.memory import Memory, check_memory, estimate
from pellucid.training.optimizers import Optimizers
from pellucid.training.preparation import absolute
from pellucid.training.report import write_samples
from pellucid.training.running import Sample, check_resume, check_unchanged, circumstances, finish, learn, resumed

STEPS = 400  # that a task of few examples takes, unless its epochs become too many
EPOCHS = (3, 20)  # fewest and most, where a user says nothing
EVALUATIONS = 10
HEAD_RATE = 5e-3  # of MiniLM's head; at the rate of the body 58 steps of tagging reach a span F1 of 61 %, at this one 95 %


@dataclass(frozen=True, kw_only=True)
class FinetuneJob:
    """A fine-tuning run with nothing left open."""

    recipe: FinetuneRecipe
    lesson: Lesson
    base: Callable[[], Network]  # the model it begins with, opened anew each time
    name: str  # and where it lies
    ids: Mapping[str, Any]  # of its special tokens
    compute: Compute

    @property
    def pace(self) -> Tuning:
        return self.recipe.training

    @property
    def steps(self) -> int:
        return cast(int, self.recipe.training.steps)  # decided before a job runs

    @property
    def step_tokens(self) -> int:
        return self.lesson.batches.batch_size * self.lesson.batches.context

    @property
    def held_out(self) -> bool:
        return self.lesson.validate is not None

    @property
    def kept(self) -> Kept:
        before = self.ids["eos_token_id"]
        before = before if isinstance(before, list) else [] if before is None else [before]
        ends = sorted({*before, *self.lesson.ends})
        pad = self.ids["pad_token_id"]
        ids = dict(self.ids) | {"eos_token_id": ends[0] if len(ends) == 1 else ends or None}
        ids["pad_token_id"] = self.lesson.tokenizer.end_of_text if pad is None else pad
        if self.recipe.method.name == "lora":
            return AdapterOnly(self.lesson.tokenizer, self.name, ids)
        return WholeModel(self.lesson.tokenizer, ids)

    def draw(self, run: RunFolder) -> None:
        if any("sample" in row for row in run.read_metrics()):
            write_samples(run)
        write_finetune_report(run)

    def start(self) -> TrainState:
        """The model as it was, with what the task needs; what is trained is fp32."""
        training = self.recipe.training
        network = self.base()
        if self.recipe.method.fresh:
            network = build(network.config, seed=training.seed)
        network = self.lesson.fit(network)
        self.choose_weights(network)
        if self.lesson.unit != 1.0:
            for weight in network.scorer.parameters():  # so that the largest gradient does not depend on the labels' unit
                weight.register_hook(lambda gradient: gradient * self.lesson.unit)  # type: ignore[no-untyped-call]
        network = network.to(self.compute.device).train()
        network.compute_in(self.compute.dtype, recompute=training.recompute)
        return TrainState(network=network, optimizers=Optimizers(network, self.recipe.optimizer, self.share(network.config)))

    def choose_weights(self, network: Network) -> None:
        """Which weights move, and in what type they are held: those that do in fp32, those that stay as they are computed."""
        method, training = self.recipe.method, self.recipe.training
        network.requires_grad_(True)
        if method.name == "lora":
            lora = LoRA(
                rank=method.rank,
                alpha=method.alpha,
                dropout=method.adapter_dropout,
                targets="all" if method.targets == ["all"] else tuple(method.targets),
            )
            attach(network, lora, seed=training.seed)
        elif method.name == "head":
            network.requires_grad_(False)
            for part in (network.head, getattr(network, "pooler", None)):
                if part is not None:
                    part.requires_grad_(True)
        elif method.freeze:
            freeze(network, method.freeze)
        for weight in network.parameters():
            if weight.requires_grad:  # a copy: what was opened is a view of a file
                weight.data = weight.data.to(torch.float32, copy=True)
            elif method.name == "lora":
                weight.data = weight.data.to(self.compute.dtype)
        usual = 0.0 if method.name == "head" or self.recipe.task.name == "prefer" else network.config.dropout
        drop(network, usual if training.dropout is None else training.dropout)

    def share(self, config: ModelConfig) -> Callable[[str], float]:
        """By what a weight's rate is multiplied: less the deeper it lies, and as it is asked for the head."""
        optimizer, decay = self.recipe.optimizer, self.recipe.method.layer_decay
        rate, head = cast(float, optimizer.learning_rate), optimizer.head_learning_rate
        top = max(config.layers, config.decoder_layers)

        def factor(name: str) -> float:
            if config.labels and re.match(r"(head|pooler)\.", name):
                scaled = self.lesson.unit if name in ("head.weight", "head.bias") else 1.0
                return (1.0 if head is None else head / rate) * scaled
            block = re.search(r"blocks\.(\d+)\.", name)
            depth = (
                int(block[1]) + 1 if block else 0 if "embedding" in name or "positions" in name or "types" in name else top + 1
            )
            return float(decay ** (top + 1 - depth))

        return factor

    def step(self) -> Step:
        training = self.recipe.training
        return Step(
            objective=self.lesson.objective,
            batches=self.lesson.batches,
            schedule=self.recipe.schedule,
            steps=self.steps,
            micro_batch=lambda batch: parts_of(batch, training.micro_tokens, self.lesson.group),
            seed=training.seed,
        )

    def evaluate(self, state: TrainState) -> Score:
        assert self.lesson.validate is not None
        return self.lesson.validate(state.network)


def finetune(
    recipe: FinetuneRecipe,
    start: Start,
    out: Path,
    *,
    name: str,
    ids: Mapping[str, Any],
    sources: Sources | Corpus | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress,
    sample: Callable[[Lesson, str], Sample],
) -> tuple[RunFolder, FinetuneJob]:
    """Teach a model a task, or go on with a run that was stopped or killed.

    `name` is where the model lies, `ids` are those of its special tokens, and `sources` is training data in the place of the
    recipe's. Raises a `PellucidError` for everything that can be wrong; nothing is written to `out` before data, model, memory
    and disk have been found good.
    """
    check_resume(resume=resume, force=force)
    run = RunFolder(out)
    if resume:
        recipe, asked = resumed(run, recipe), recipe
    else:
        run.check_free(force=force)
        recipe, asked = recipe.settled(), recipe
    check_apart(out, [*recipe.data.train, *recipe.data.validation, *recipe.data.test])
    training = recipe.training
    compute = choose(device=training.device, precision=training.precision, threads=training.threads)
    job = FinetuneJob(
        recipe=recipe,
        lesson=lesson(recipe, start, sources, progress),
        base=start.network,
        name=name,
        ids=ids,
        compute=compute,
    )
    hashes = {
        **job.lesson.fingerprint,
        "tokenizer": start.tokenizer.fingerprint,
        "model to begin with": fingerprint(start.network()),
    }
    if resume:
        check_unchanged(hashes, read_json(run.info)["fingerprint"])
    else:
        for finding in job.lesson.findings:
            progress.say(finding)
        job = decide(job, run.path)
        with run.creating(force=force) as new:
            job.lesson.tokenizer.save(new.path)
            write_text(new.recipe, job.recipe.to_toml())
            info = describe(job, asked, hashes) | {"recipe": hash_file(new.recipe)}
            write_json(new.info, info)
    with run.locked():
        learn(run, job, progress, sample(job.lesson, training.prompt), f"{recipe.verb} {shlex.quote(name)}")
        finish(run)
    return run, job


def check_apart(out: Path, data: Sequence[str]) -> None:
    """Refuse a run folder inside a folder of data, which would be read as data when the run goes on."""
    for path in map(Path, data):
        if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
            raise ConfigError(f"{out} lies inside {path}, all of which is read as data; choose another --out")


def decide(job: FinetuneJob, out: Path) -> FinetuneJob:
    """Fix all that the recipe leaves open, and check that the run fits into memory and disk."""
    recipe, lesson = job.recipe, job.lesson
    training, config = recipe.training, lesson.fit(job.base()).config
    for field in ("patience", "target_loss", "evaluate_every"):
        if lesson.validate is None and getattr(training, field) not in (None, "auto"):
            raise ConfigError(f"training.{field} has no effect without validation data; leave it out, or hold some out")
    if training.recompute and config.architecture in ("recurrent", "bag-of-words"):
        raise ConfigError(f"training.recompute has no effect on a {config.family} model; leave it out")
    check_prompt(job, config)
    if recipe.method.name == "lora" and config.vocab_size != job.base().config.vocab_size:
        raise ConfigError(
            "the model has no tokens for the turns of a conversation, and an adapter cannot add them; use --method full, "
            "or a model that was trained on conversations"
        )
    per_epoch = lesson.batches_per_epoch
    usual = 1.0 if recipe.task.name == "continue" else float(min(max(EPOCHS[0], round(STEPS / per_epoch)), EPOCHS[1]))
    steps = training.steps or max(1, round((usual if training.epochs is None else training.epochs) * per_epoch))
    every = max(1, -(-steps // EVALUATIONS)) if training.evaluate_every == "auto" else training.evaluate_every
    chosen: dict[str, Any] = {
        "data": {part: absolute(getattr(recipe.data, part)) for part in ("train", "validation", "test")},
        "optimizer": rates(recipe, config, begun=job.base().config.labels == config.labels),
        "training": {
            "steps": steps,
            "evaluate_every": every,
            "checkpoint_every": every if training.checkpoint_every == "auto" else training.checkpoint_every,
            "device": job.compute.device,
            "precision": job.compute.precision,
            "threads": job.compute.threads,
        },
    }
    job = replace(job, recipe=recipe.override(chosen))
    check_size(job, out)
    return job


def rates(recipe: FinetuneRecipe, config: ModelConfig, *, begun: bool) -> dict[str, float]:
    """The peak rates, as given or as suits. A head that has not `begun` is nothing yet, and learns faster than the rest."""
    rate = recipe.optimizer.learning_rate or usual_rate(recipe, config)
    if not config.labels:
        return {"learning_rate": rate}
    usual = rate if begun or recipe.method.name == "head" else max(rate, HEAD_RATE)
    return {"learning_rate": rate, "head_learning_rate": recipe.optimizer.head_learning_rate or usual}


def usual_rate(recipe: FinetuneRecipe, config: ModelConfig) -> float:
    """A peak rate that suits: lower for wider networks, higher for adapters and heads."""
    if recipe.method.name == "head":
        return HEAD_RATE
    if recipe.method.fresh:
        return 1e-3
    if config.architecture == "bag-of-words":
        return 2e-3  # an embedding, of which a step moves the few rows it has met
    narrow = min(4.0, 768 / config.d_model)
    if recipe.task.name == "prefer":
        return 5e-6 * narrow if recipe.method.name == "full" else 5e-5
    return 5e-5 * narrow if recipe.method.name == "full" else 2e-4 * min(2.0, narrow)


def check_prompt(job: FinetuneJob, config: ModelConfig) -> None:
    """Raise `ConfigError` for a prompt of samples that nothing can be written after."""
    if not (prompt := job.recipe.training.prompt):
        return
    if not config.generates:
        raise ConfigError(f"training.prompt has no effect on a {config.family} model, which writes no text; leave it out")
    if (length := len(job.lesson.asked(prompt, config))) >= config.context_length:
        raise ConfigError(
            f"training.prompt has {length:,} tokens, but the model's context is {config.context_length:,} and must hold the "
            "answer too; shorten it"
        )


def check_size(job: FinetuneJob, out: Path) -> None:
    """Refuse a run that does not fit into memory or disk."""
    state = job.start()
    trained = sum(weight.numel() for weight in state.optimizers.names)
    held = sum(weight.numel() * weight.element_size() for weight in state.network.parameters())
    config, training = state.network.config, job.recipe.training
    context = min(config.context_length, training.context_length or config.context_length, training.micro_tokens)
    rows = max(1, training.micro_tokens // context)
    options: dict[str, Any] = {"optimizer": "adamw", "recompute": training.recompute, "compute": job.compute}
    need = estimate(config, micro_batch=rows, context=context, **options)
    check_memory(
        Memory(weights=held, gradients=4.0 * trained, optimizer=8.0 * trained, activations=need.activations), job.compute
    )
    disk, free = (training.keep + 3) * (held + 8.0 * trained), disk_free(out)
    if disk > free:
        raise ConfigError(
            f"the checkpoints need about {format_bytes(disk)} of disk, but {format_bytes(free)} are free at {out}; "
            "make room there, choose another folder, or use --method lora"
        )


def freeze(network: Network, blocks: int) -> None:
    """Leave the embeddings and the lowest blocks as they are."""
    deepest = max(network.config.layers, network.config.decoder_layers)
    if blocks > deepest:
        raise ConfigError(f"method.freeze is {blocks}, but the model has {deepest} blocks; freeze fewer")
    for name, weight in network.named_parameters():
        block = re.search(r"blocks\.(\d+)\.", name)
        below = int(block[1]) < blocks if block else not re.match(r"(.*\.)?(head|pooler|norm)\.", name)
        if below:
            weight.requires_grad_(False)


def drop(network: nn.Module, share: float) -> None:
    """Set the share of activations that is dropped while learning."""
    for part in network.modules():
        if isinstance(part, Block):
            part.dropout = share
        if isinstance(part, Network):
            part.config = replace(part.config, dropout=share)


def parts_of(batch: Batch, tokens: int, group: int = 1) -> Iterator[slice]:
    """The rows of a batch, so many at a time as have at most `tokens` tokens, filling included; groups stay together."""
    rows = len(batch.ids)
    lengths = [batch.ids.shape[1]] * rows if batch.present is None else batch.present.sum(axis=1).tolist()
    more = 0 if batch.decoder_ids is None else batch.decoder_ids.shape[1]
    start = 0
    while start < rows:
        stop, width = start, 0
        while stop < rows:
            wider = few_widths(max(width, *lengths[stop : stop + group]), most=batch.ids.shape[1])
            if stop > start and (wider + more) * (stop + group - start) > tokens:
                break
            stop, width = stop + group, wider
        yield slice(start, min(stop, rows))
        start = stop


def describe(job: FinetuneJob, asked: FinetuneRecipe, hashes: dict[str, str]) -> dict[str, Any]:
    """`run.json`: what a reader needs to judge or repeat the run."""
    state = job.start()
    trained = sum(weight.numel() for weight in state.optimizers.names)
    parts = {part: len(rows) for part, rows in job.lesson.rows.items()}
    return circumstances(job.compute, asked, hashes) | {
        "model": job.name,
        "task": job.recipe.task.name,
        "labels": list(job.lesson.labels) if job.recipe.task.name in LABELLED else None,
        "rows": parts,
        "findings": list(job.lesson.findings),
        "network": state.network.config.describe(),
        "parameters": sum(weight.numel() for weight in state.network.parameters()),
        "trained_parameters": trained,
        "epochs": job.steps / job.lesson.batches_per_epoch,
    }
