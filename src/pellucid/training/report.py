"""`report.html` and `samples.md`: a run for people, drawn anew from what the run folder holds."""

from __future__ import annotations

import io
import math
from typing import Any

from markupsafe import Markup

from pellucid.core.files import read_json, write_text
from pellucid.core.pages import page
from pellucid.core.run import RunFolder
from pellucid.training.recipe import Recipe


def write_samples(run: RunFolder) -> None:
    """Write what the model wrote at each evaluation."""
    rows = [row for row in run.read_metrics() if row.get("sample")]
    parts = [
        f"## Step {row['step']:,}, validation loss {row['validation_loss']:.4f}\n\n{row['sample'].strip()}\n" for row in rows
    ]
    write_text(run.samples, "# Samples\n\n" + "\n".join(parts))


def write_report(run: RunFolder) -> None:
    """Write one self-contained page: curves, samples, data fingerprint, compute used."""
    info, rows, recipe = read_json(run.info), run.read_metrics(), Recipe.load(run.recipe)
    losses = [row for row in rows if "loss" in row]
    evaluations = [row for row in rows if "validation_loss" in row]
    write_text(
        run.report,
        page(
            "pretraining",
            name=run.path.absolute().name,
            curves=Markup(curves(losses, evaluations)),  # our own SVG
            last=evaluations[-1] if evaluations else None,
            best=min(evaluations, key=lambda row: float(row["validation_loss"]), default=None),
            uniform=math.log(info["tokens"]["vocabulary"]),
            samples=[row for i in spread(len(evaluations), 4) if (row := evaluations[i]).get("sample")],
            facts=facts(info, recipe, losses),
            fingerprint=info["fingerprint"],
            corpus={name.replace("_", " "): value for name, value in info["corpus"].items()},
            recipe=recipe.to_toml(),
        ),
    )


def spread(count: int, most: int) -> list[int]:
    """Up to `most` indices from the first to the last of `count`, evenly spaced, the last first."""
    picks = {round(i * (count - 1) / max(1, most - 1)) for i in range(most)} if count else set()
    return sorted(picks, reverse=True)


def facts(info: dict[str, Any], recipe: Recipe, losses: list[dict[str, Any]]) -> dict[str, str]:
    """What was trained on what, and what it took. Energy is not measured, so it is not stated."""
    training, tokens, machine = recipe.training, info["tokens"], info["machine"]
    steps = losses[-1]["step"] if losses else 0
    done = steps * training.batch_size * recipe.model.context_length
    seconds = losses[-1]["seconds"] if losses else 0.0
    speed = median([row["tokens_per_second"] for row in losses])
    rate = speed * info["training_flops_per_token"]
    share = rate / machine["matmul_flops_per_second"]
    return {
        "parameters": f"{info['parameters']:,}",
        "network": f"{info['network']}, context {recipe.model.context_length:,}, vocabulary {tokens['vocabulary']:,}",
        "objective": str(recipe.objective.name),
        "steps": f"{steps:,} of {training.steps:,}",
        "tokens seen": f"{done:,} ({done / max(1, tokens['training']):.2f} epochs of {tokens['training']:,})",
        "held-out tokens": f"{tokens['validation']:,}",
        "bytes per token": f"{tokens['bytes_per_token']:.2f}",
        "time": f"{seconds / 60:.1f} minutes",
        "speed": f"{speed:,.0f} tokens/s while learning",
        "compute": f"{done * info['training_flops_per_token']:.3g} FLOPs",
        "model FLOPs utilisation": f"{share:.0%} of the {machine['matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s "
        f"that a {training.precision} matrix product reaches here",
    } | whereabouts(info, training.threads)


def whereabouts(info: dict[str, Any], threads: Any) -> dict[str, str]:
    """Where, with what and when a run took place."""
    machine, many = info["machine"], "thread" if threads == 1 else "threads"
    return {
        "machine": f"{machine['gpu'] or machine['processor']}, {machine['memory']}, {threads} {many}",
        "versions": ", ".join(f"{name} {version}" for name, version in info["versions"].items()),
        "begun": f"{info['created'][:16].replace('T', ' ')} UTC",
    }


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0


def curves(losses: list[dict[str, Any]], evaluations: list[dict[str, Any]], *, unit: str = ", nats per token") -> str:
    """Loss, what else was measured on held-out data, and learning rate over the steps, as SVG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # only where every token is predicted does the loss say how well text is compressed
    there = (evaluations or [{}])[0]
    measured = next((name for name in ("bits_per_byte", "accuracy", "perplexity") if name in there), "")
    style: Any = {"svg.fonttype": "none", "font.family": "sans-serif", "axes.spines.top": False, "axes.spines.right": False}
    with rc_context(style | {"svg.hashsalt": "pellucid"}):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        loss, *others, rate = figure.subplots(1, 3 if measured else 2, width_ratios=(2, 1, 1) if measured else (2, 1))
        at = [row["step"] for row in evaluations]
        held_out: Any = {"color": "#b3402a", "lw": 2, "marker": "o", "ms": 3}
        loss.plot([row["step"] for row in losses], [row["loss"] for row in losses], color="#9bb8d3", lw=1, label="training")
        if evaluations:
            loss.plot(at, [row["validation_loss"] for row in evaluations], label="validation", **held_out)
        loss.set(title=f"loss{unit}", xlabel="step")
        loss.legend(frameon=False)
        for axes in others:
            axes.plot(at, [row[measured] for row in evaluations], **held_out)
            axes.set(title=f"{measured.replace('_', ' ')}, validation", xlabel="step")
        rate.plot([row["step"] for row in losses], [row["rate"] for row in losses], color="#555555", lw=1.5)
        rate.set(title="learning rate, of its peak", xlabel="step", ylim=(0, 1.05))
        for axes in (loss, *others, rate):
            axes.grid(alpha=0.25)
            axes.xaxis.get_major_locator().set_params(integer=True)  # there are no half steps
        image = io.StringIO()
        figure.savefig(image, format="svg", transparent=True, metadata={"Date": None})
    return image.getvalue()[image.getvalue().index("<svg") :]
