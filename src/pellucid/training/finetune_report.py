"""The page of a fine-tuning run: what was learnt from what, how well, and what it took; drawn from what its folder holds."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

from markupsafe import Markup

from pellucid.core.files import read_json, write_text
from pellucid.core.pages import page
from pellucid.core.run import RunFolder
from pellucid.training import checkpoint
from pellucid.training.finetune_recipe import FinetuneRecipe
from pellucid.training.report import curves, whereabouts

# findings after which figures are to be read with care
WORRYING = re.compile("too good|in train too|different labels|times as many|exceed the context")
NAMED = 20  # labels in the table of facts
WRITES = ("instruct", "seq2seq", "continue")


def write_finetune_report(run: RunFolder, grades: Markup | None = None) -> None:
    """Write one self-contained page; `grades` is the part of it that says how good the model is."""
    info, rows, recipe = read_json(run.info), run.read_metrics(), FinetuneRecipe.load(run.recipe)
    losses, evaluations = ([row for row in rows if name in row] for name in ("loss", "validation_loss"))
    unit = ", nats per token" if recipe.task.name in WRITES else ""
    values = page(
        "finetuning",
        name=title(info["model"], recipe.task.name),
        grades=grades,
        standing=standing(run, rows, recipe, tested=bool(info["rows"].get("test"))),
        best=min(evaluations, key=lambda row: float(row["validation_loss"]), default=None),
        curves=Markup(curves(losses, evaluations, unit=unit)),  # our own SVG
        findings=info["findings"],
        warnings=[finding for finding in info["findings"] if WORRYING.search(finding)],
        facts=facts(run, info, recipe, rows),
        fingerprint=info["fingerprint"],
        recipe=run.recipe.read_text(encoding="utf-8"),
    )
    write_text(run.report, values)


def title(model: str, task: str | None) -> str:
    """What was learnt from what, shortly: of a path only the name, and that of the run where it ends in "model".

    >>> title("/runs/tiny/model", "classify")
    'classify, from tiny'
    """
    path = PurePath(model)
    if path.is_absolute():
        model = path.parent.name if path.name == "model" else path.stem if path.suffix == ".gguf" else path.name
    return f"{task or 'classify'}, from {model}"


def standing(run: RunFolder, rows: list[dict[str, Any]], recipe: FinetuneRecipe, *, tested: bool) -> str:
    """Why there are no grades."""
    step = rows[-1]["step"] if rows else 0
    if not run.model.exists():
        return f"The run has not ended: it has done {step:,} of {recipe.training.steps:,} steps. --resume goes on with it."
    if recipe.task.name == "continue":
        return f"How well the model knows other text says: pellucid evaluate {run.path.name} --data FILE."
    if tested:
        return "The model has not been graded yet."
    return "No rows were held out to test on, so there are no grades; pass --test FILE."


def facts(run: RunFolder, info: dict[str, Any], recipe: FinetuneRecipe, rows: list[dict[str, Any]]) -> dict[str, str]:
    """What was trained on what, and what it took."""
    training, optimizer, labels = recipe.training, recipe.optimizer, info["labels"] or []
    last = rows[-1] if rows else {"step": 0, "seconds": 0.0}
    head = "" if optimizer.head_learning_rate is None else f", of the head {optimizer.head_learning_rate:g}"
    more = f" ... ({len(labels):,})" if len(labels) > NAMED else ""
    found = {
        "model": info["model"],
        "network": info["network"],
        "method": method(info, recipe),
        "labels": ", ".join(labels[:NAMED]) + more,
        "rows": ", ".join(f"{part} {count:,}" for part, count in info["rows"].items() if count),
        "steps": f"{last['step']:,} of {training.steps:,} ({info['epochs'] * last['step'] / training.steps:.2g} epochs)",
        "time": f"{last['seconds'] / 60:.1f} minutes",
        "best checkpoint": best_step(run),
        "learning rate": f"{optimizer.learning_rate:g} at its peak{head}",
        "examples per step": f"{training.batch_size:,}",
        "seed": str(training.seed),
    }
    return {name: value for name, value in found.items() if value} | whereabouts(info, training.threads)


def method(info: dict[str, Any], recipe: FinetuneRecipe) -> str:
    """How much of the model was trained."""
    trained, held = info["trained_parameters"], info["parameters"]
    rank = f" of rank {recipe.method.rank}" if recipe.method.name == "lora" else ""
    fresh = ", from fresh weights" if recipe.method.fresh else ""
    share = f"all {held:,}" if trained == held else f"{trained:,} of {held:,} ({100 * trained / held:.2g} %)"
    return f"{recipe.method.name or 'full'}{rank}{fresh}: {share} parameters trained"


def best_step(run: RunFolder) -> str:
    """Which checkpoint is the model."""
    folder = checkpoint.best(run)
    if folder is None:
        return ""
    found = checkpoint.position(folder)
    return f"step {found.step:,}, validation loss {found.validation_loss:.4f}"
