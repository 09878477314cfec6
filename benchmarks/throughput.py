"""Training speed: the baby-GPT shape (6 x 384, 6 heads, context 256, batch 64) by a plain trainer, and by ours.

In one run: tokens/s of both, and the share of the matrix-product rate that each reaches: no trainer can be faster than the
fp32 reference by more than the machine's bf16 rate is above its fp32 rate, divided by the reference's share.

    python benchmarks/throughput.py [--vocab-size 65] [--steps 2] [--repetitions 3] [--micro-batch 16] [--compile on]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import median

import numpy as np
import torch
from reference import PlainGPT, PlainTrainer

from pellucid.core.device import choose, matmul_rate
from pellucid.network.build import build, parameters
from pellucid.network.config import ModelConfig
from pellucid.network.families import FAMILIES
from pellucid.text.batches import Batch
from pellucid.training.loop import pieces
from pellucid.training.objectives import TokenPrediction
from pellucid.training.optimizers import Optimizers
from pellucid.training.recipe import Optimizer

CONTEXT, BATCH = 256, 64


def timed(step: Callable[[], object], steps: int) -> float:
    """Tokens per second, after one step that brings the process's memory back into the caches."""
    step()
    begun = time.perf_counter()
    for _ in range(steps):
        step()
    return steps * BATCH * CONTEXT / (time.perf_counter() - begun)


def work(turns: Connection, steps: int, make: Callable[..., Callable[[], object]], *settings: object) -> None:
    """The life of a contender's process: make its step, and time it whenever it is its turn, until it is terminated."""
    choose()
    step = make(*settings)
    turns.send(True)
    while True:
        turns.recv()
        turns.send(timed(step, steps))


class Contender:
    """A trainer in a process of its own, as a user would run it: what others leave in memory does not touch it."""

    def __init__(self, steps: int, make: Callable[..., Callable[[], object]], *settings: object) -> None:
        context = get_context("spawn")
        self.turns, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, steps, make, *settings), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self.turns.recv()  # it is ready: probes of the machine do not disturb one another

    def turn(self) -> float:
        """Tokens per second of some steps."""
        self.turns.send(True)
        return float(self.turns.recv())


def plain_step(ids: np.ndarray, vocab: int, fused: bool) -> Callable[[], object]:
    trainer = PlainTrainer(PlainGPT(vocab, layers=6, width=384, heads=6, context=CONTEXT, fused=fused))
    rows = torch.from_numpy(ids)
    return lambda: trainer.step(rows[:, :-1], rows[:, 1:])


def our_step(ids: np.ndarray, config: ModelConfig, micro: int, optimizer: str, compiled: bool) -> Callable[[], object]:
    compute, objective = choose(), TokenPrediction()
    network = build(config, seed=0).train()
    network.compute_in(compute.dtype)
    if compiled:
        network.compile_blocks()
    optimizers = Optimizers(network, Optimizer(name=optimizer))
    batch = Batch(ids[:, :-1].copy(), ids[:, 1:].copy())

    def step() -> None:
        for rows in pieces(len(batch.ids), micro):
            loss = objective.loss(network, batch.rows(rows)) / ids[:, 1:].size
            loss.backward()
            loss.item()
        optimizers.step(1.0)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab-size", type=int, default=65)
    parser.add_argument("--steps", type=int, default=2, help="steps per repetition")
    parser.add_argument("--repetitions", type=int, default=3, help="the contenders take turns; medians are reported")
    parser.add_argument("--micro-batch", type=int, default=16, help="sequences per forward pass of ours")
    parser.add_argument("--compile", choices=["on", "off"], default="on", help="measure our step compiled too")
    options = parser.parse_args()
    config = FAMILIES["qwen3"].new(
        vocab_size=options.vocab_size,
        context_length=CONTEXT,
        d_model=384,
        layers=6,
        heads=6,
        kv_heads=6,
        d_head=64,
        d_mlp=1024,  # 3 x 384 x 1024 weights, as the plain MLP's 2 x 384 x 1536
    )
    ids = np.random.default_rng(0).integers(0, options.vocab_size, (BATCH, CONTEXT + 1))
    choose()
    contenders = {
        "reference": Contender(options.steps, plain_step, ids, options.vocab_size, False),
        "reference_with_sdpa": Contender(options.steps, plain_step, ids, options.vocab_size, True),
    }
    for optimizer in ("muon", "adamw"):
        ours = partial(Contender, options.steps, our_step, ids, config, options.micro_batch, optimizer)
        contenders[optimizer] = ours(False)
        if options.compile == "on":
            contenders[f"{optimizer}_compiled"] = ours(True)
    for contender in contenders.values():
        contender.turn()  # sets up kernels and optimizer state
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    rates: dict[torch.dtype, list[float]] = {torch.bfloat16: [], torch.float32: []}
    for _ in range(options.repetitions):
        for dtype, measured in rates.items():
            measured.append(matmul_rate(dtype, size=2048, seconds=1.0))
        for name, contender in contenders.items():
            speeds[name].append(contender.turn())
            print(f"{name:<20} {speeds[name][-1]:,.0f} tokens/s", file=sys.stderr)
    for contender in contenders.values():
        contender.process.terminate()
        contender.process.join()
    tokens = {name: median(values) for name, values in speeds.items()}
    # the usual count, 6 N + 12 L T d with attention in full, as the share of others is counted (Chowdhery et al., 2022)
    flops = 6 * parameters(config) + 12 * config.layers * CONTEXT * config.d_model
    bf16, fp32 = (median(measured) for measured in rates.values())
    our_tokens = {name: value for name, value in tokens.items() if not name.startswith("reference")}
    result = {
        "ratio": {name: value / tokens["reference"] for name, value in our_tokens.items()},
        "ratio_to_reference_with_sdpa": {name: value / tokens["reference_with_sdpa"] for name, value in our_tokens.items()},
        "share_of_bf16_rate": {name: value * flops / bf16 for name, value in our_tokens.items()},
        "share_of_fp32_rate_reached_by_reference": tokens["reference"] * flops / fp32,
        "bf16_flops_per_second": bf16,
        "fp32_flops_per_second": fp32,
        "tokens_per_second": tokens,
        "parameters": parameters(config),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
