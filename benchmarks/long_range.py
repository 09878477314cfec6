"""How far back can a network reach? Accuracy against distance, of a transformer and an LSTM of equal size.

Two tasks, each with `distance` tokens of noise between what is to be remembered and the questions:

- recall: four pairs of a key and a value, noise, the keys in another order; the network is to name their values (16 values:
  chance is 6 %, and one of the four at random is 25 %).
- copy: six symbols, noise, a mark; the network is to write the six again (16 symbols: chance is 6 %).

A fresh network learns each task at each distance from new sequences, until its answers are right or the steps are used up.
Each kind of network has, for each task, the best of its learning rates at the shortest distance. Every training has one thread.

    python benchmarks/long_range.py [--distances 4 8 16 32 64 128 256] [--steps 2000] [--seeds 1] [--plot FILE.png]
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from pellucid.core.machine import cpu_cores
from pellucid.network.build import build, parameters
from pellucid.network.config import ModelConfig
from pellucid.network.families import FAMILIES
from pellucid.network.network import Network
from pellucid.text.batches import IGNORED, Batch
from pellucid.training.objectives import TokenPrediction
from pellucid.training.optimizers import Optimizers
from pellucid.training.recipe import Optimizer, Schedule
from pellucid.training.schedules import factor

KEYS = VALUES = NOISE = 16
MARK, VOCABULARY = KEYS + VALUES + NOISE, KEYS + VALUES + NOISE + 1
BATCH, SOLVED = 64, 0.995
RATES = (0.005, 0.02, 0.05)  # of Muon, for the matrices


def sequences(task: str, distance: int, count: int, seed: int) -> Batch:
    """New sequences; the targets are the answers, and IGNORED elsewhere."""
    draw = np.random.default_rng((seed, distance, count))
    noise = KEYS + VALUES + draw.integers(NOISE, size=(count, distance))
    values = KEYS + draw.integers(VALUES, size=(count, 4 if task == "recall" else 6))
    if task == "recall":
        keys = draw.permuted(np.tile(np.arange(KEYS), (count, 1)), axis=1)[:, :4]
        pairs = np.stack((keys, values), axis=2)
        order = draw.permuted(np.tile(np.arange(4), (count, 1)), axis=1)
        asked = np.take_along_axis(pairs, order[..., None], axis=1).reshape(count, 8)
        stream, answers = np.concatenate((pairs.reshape(count, 8), noise, asked), axis=1), slice(-7, None, 2)
    else:
        stream, answers = np.concatenate((values, noise, np.full((count, 1), MARK), values), axis=1), slice(-6, None)
    ids, after = stream[:, :-1], stream[:, 1:]
    targets = np.full(after.shape, IGNORED)
    targets[:, answers] = after[:, answers]
    return Batch(ids.astype(np.int64), targets.astype(np.int64))


def networks(longest: int) -> dict[str, ModelConfig]:
    """Two layers each, as equal in size as whole widths allow."""
    common: dict[str, Any] = {"vocab_size": VOCABULARY, "context_length": longest, "layers": 2, "tied": False}
    return {
        "transformer": FAMILIES["qwen3"].new(**common, d_model=64, heads=4, kv_heads=4, d_head=16, d_mlp=176),
        "lstm": FAMILIES["lstm"].new(**common, d_model=80),
    }


@torch.no_grad()
def accuracy(network: Network, batch: Batch) -> float:
    """The share of right answers."""
    chosen = torch.from_numpy(batch.targets) != IGNORED
    hidden = network.eval().encode(torch.from_numpy(batch.ids))[chosen]
    network.train()
    return float((network.scores(hidden).argmax(dim=-1) == torch.from_numpy(batch.targets)[chosen]).float().mean())


def learn(config: ModelConfig, task: str, distance: int, rate: float, steps: int, seed: int) -> tuple[float, int]:
    """Accuracy on sequences that were not learned from, and the steps it took."""
    torch.set_num_threads(1)
    network = build(config, seed=seed).train()
    optimizers = Optimizers(network, Optimizer(matrix_learning_rate=rate))
    objective, schedule = TokenPrediction(), Schedule(kind="cosine", warmup=0.05)
    for step in range(steps):
        batch = sequences(task, distance, BATCH, seed=1000 * seed + step + 1)
        (objective.loss(network, batch) / (batch.targets != IGNORED).sum()).backward()
        optimizers.step(factor(schedule, step, steps))
        if step % 50 == 49 and accuracy(network, sequences(task, distance, 256, seed=0)) > SOLVED:
            break
    return accuracy(network, sequences(task, distance, 1024, seed=0)), step + 1


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against distance, a panel a task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, task in zip(figure.subplots(1, 2, sharey=True), ("recall", "copy"), strict=True):
        for name, colour in (("transformer", "#2a6fb3"), ("lstm", "#b3402a")):
            rows = [row for row in found if row["task"] == task and row["network"] == name]
            distances = [row["distance"] for row in rows]
            axes.plot(distances, [mean(row["accuracies"]) for row in rows], color=colour, marker="o", label=name)
            low, high = ([edge(row["accuracies"]) for row in rows] for edge in (min, max))
            axes.fill_between(distances, low, high, color=colour, alpha=0.15, lw=0)
        axes.axhline(1 / VALUES, color="#999999", lw=1, ls=":")
        axes.set_xscale("log", base=2)
        axes.set_xticks(distances, [str(distance) for distance in distances])
        axes.set(title={"recall": "associative recall", "copy": "copying six symbols"}[task], xlabel="tokens in between")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set(ylabel="right answers", ylim=(0, 1.03))
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--distances", type=int, nargs="+", default=[4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--tasks", nargs="+", default=["recall", "copy"])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    configs = networks(max(asked.distances) + 16)
    with ProcessPoolExecutor(cpu_cores(), mp_context=get_context("spawn")) as pool:
        kinds = [(task, name) for task in asked.tasks for name in configs]
        trials = {
            (task, name, rate): pool.submit(learn, configs[name], task, min(asked.distances), rate, asked.steps, 0)
            for task, name in kinds
            for rate in RATES
        }
        best = {}
        for task, name in kinds:
            scores = {rate: trials[task, name, rate].result() for rate in RATES}
            best[task, name] = max(RATES, key=lambda rate: (min(scores[rate][0], 0.99), -scores[rate][1]))
            print(f"{task}, {name}: learning rate {best[task, name]} of {scores}", flush=True)
        runs = {
            (distance, task, name, seed): pool.submit(learn, configs[name], task, distance, best[task, name], asked.steps, seed)
            for distance in sorted(asked.distances, reverse=True)  # the longest first
            for task, name in kinds
            for seed in range(asked.seeds)
        }
        found = []
        for task, name in kinds:
            for distance in asked.distances:
                done = [runs[distance, task, name, seed].result() for seed in range(asked.seeds)]
                row = {"task": task, "network": name, "distance": distance, "rate": best[task, name]}
                found.append(row | {"accuracies": [each for each, _ in done], "steps": [steps for _, steps in done]})
                print(
                    f"{task:<8}{name:<13}{distance:>5}  {mean(found[-1]['accuracies']):6.1%}  steps {found[-1]['steps']}",
                    flush=True,
                )
    if asked.plot:
        draw(found, asked.plot)
    print(json.dumps({"parameters": {name: parameters(config) for name, config in configs.items()}, "results": found}))


if __name__ == "__main__":
    main()
