"""How cost grows: tokens/s and peak memory of a training step by size and by context.

Every point is a process of its own, so that its peak memory is its own. Sizes are run at context 256, contexts at 5M,
with 4,096 tokens a step or one sequence, whichever is more.

    python benchmarks/scaling.py [--sizes 1M 5M 25M 125M] [--contexts 128 256 512 1024 2048 4096]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

VOCABULARY = 8192


def measure(size: str, context: int, steps: int) -> dict[str, float]:
    """One point, in this process."""
    import numpy as np

    from pellucid.core.device import choose
    from pellucid.core.machine import peak_memory
    from pellucid.network.build import build, parameters
    from pellucid.text.batches import Batch
    from pellucid.training.memory import estimate
    from pellucid.training.objectives import TokenPrediction
    from pellucid.training.optimizers import Optimizers
    from pellucid.training.preparation import dimensions
    from pellucid.training.recipe import Model, Optimizer

    compute, objective = choose(), TokenPrediction()
    config = dimensions(Model(size=size, context_length=context), VOCABULARY)
    network = build(config, seed=0).train()
    network.compute_in(compute.dtype)
    optimizers = Optimizers(network, Optimizer())
    rows = max(1, 4096 // context)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (rows, context + 1))
    batch = Batch(ids[:, :-1].copy(), ids[:, 1:].copy())

    def step() -> None:
        loss = objective.loss(network, batch) / (rows * context)
        loss.backward()
        optimizers.step(1.0)

    step()
    begun = time.perf_counter()
    for _ in range(steps):
        step()
    seconds = time.perf_counter() - begun
    foreseen = estimate(config, micro_batch=rows, context=context, compute=compute, optimizer="muon", recompute=False)
    return {
        "parameters": parameters(config),
        "context": context,
        "tokens_per_second": steps * rows * context / seconds,
        "peak_bytes": peak_memory(),
        "estimated_bytes": foreseen.total,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=["1M", "5M", "25M", "125M"])
    parser.add_argument("--contexts", nargs="*", type=int, default=[128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--point", nargs=2, metavar=("SIZE", "CONTEXT"), help="measure one point in this process")
    options = parser.parse_args()
    if options.point:
        print(json.dumps(measure(options.point[0], int(options.point[1]), options.steps)))
        return
    points = [(size, 256) for size in options.sizes] + [("5M", context) for context in options.contexts]
    rows = []
    for size, context in points:
        command = [sys.executable, __file__, "--point", size, str(context), "--steps", str(options.steps)]
        rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]))
        row = rows[-1]
        speed, peak, foreseen = row["tokens_per_second"], row["peak_bytes"] / 1e6, row["estimated_bytes"] / 1e6
        print(f"{size:>5} {context:>5}  {speed:>8,.0f} tokens/s  {peak:>7,.0f} MB (estimated {foreseen:,.0f})", file=sys.stderr)
    print(json.dumps({"points": rows}))


if __name__ == "__main__":
    main()
