"""Will it fit? An estimate of a run's memory and disk, made before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pellucid.core.device import Compute
from pellucid.core.errors import ResourceError
from pellucid.core.files import format_bytes
from pellucid.core.machine import disk_free, memory_available
from pellucid.network.attention import ROWS, SHORT
from pellucid.network.build import block_parameters, parameters
from pellucid.network.config import ModelConfig
from pellucid.training.objectives import LOGITS

BASE = 360e6  # Python, torch, its kernels' scratch space and the data's windows


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that a training run holds at its peak, by part."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return BASE + self.weights + self.gradients + self.optimizer + self.activations


def estimate(
    config: ModelConfig,
    *,
    micro_batch: int,
    context: int,
    compute: Compute,
    optimizer: str,
    recompute: bool,
    scored: float = 1.0,
    lengths: tuple[int, int] | None = None,
) -> Memory:
    """Weights, gradients and optimizer state are fp32; activations are what autograd keeps for the backward pass.

    Of the targets only the share `scored` gets logits; `lengths` is how many inputs and targets an encoder-decoder has.
    """
    weights = parameters(config)
    matrices = block_parameters(config) if optimizer == "muon" else 0  # Muon keeps one number for each, AdamW two
    size = compute.dtype.itemsize
    inputs, targets = lengths or (context, context)
    halves = [kept_by(config, config.layers, inputs, compute, recompute=recompute)]
    if config.decoder_layers:
        halves.append(kept_by(config.decoder(), config.decoder_layers, targets, compute, recompute=recompute, read=inputs))
    rows = micro_batch * targets * scored
    head = 2.5 * 4 * min(config.vocab_size * rows, LOGITS)  # logits, their fp32 copy on a CPU, log-probabilities in fp32
    return Memory(
        weights=4.0 * weights + (size * weights if size < 4 else 0),  # a bf16 copy is kept for the backward pass
        gradients=4.0 * weights,
        optimizer=4.0 * (2 * weights - matrices),
        activations=micro_batch * sum(halves) + head,
    )


def kept_by(config: ModelConfig, layers: int, length: int, compute: Compute, *, recompute: bool, read: int = 0) -> float:
    """Bytes that autograd keeps of a sequence in a stack of blocks, whose cross-attention, if any, reads `read` positions."""
    half = config.causal and config.architecture == "decoder"  # of the pattern is never computed
    scores = 0.0
    if compute.device == "cpu" and max(length, read) <= SHORT:
        scores = ((length + min(length, ROWS)) / 2 if half else length) + read
    numbers = length * numbers_kept(config, scores) + 2 * read * config.kv_heads * config.d_head
    return compute.dtype.itemsize * (layers * length * config.d_model + numbers if recompute else layers * numbers)


def numbers_kept(config: ModelConfig, scores: float) -> float:
    """Numbers per token that autograd keeps of one block; `scores` is how many of a query's scores attention holds per head."""
    if config.architecture in ("recurrent", "bag-of-words"):
        return (7 if config.architecture == "recurrent" else 2) * config.d_model
    queries, keys = config.heads * config.d_head, config.kv_heads * config.d_head
    projected = 6 if config.positions == "rotary" else 2  # forms of each query and key: normed, rotated
    stream = (7 + 3 * config.cross) * config.d_model + projected * (queries + keys) + 2 * queries * config.cross
    return stream + (4 if config.gated else 2) * config.d_mlp + 2 * config.heads * scores


def choose_micro_batch(config: ModelConfig, *, batch_size: int, context: int, compute: Compute, **options: Any) -> int:
    """The largest even share of the batch that fits; on a CPU 2,048 tokens fill the cores, and more only leaves the caches.

    `options` are the others of `estimate`.
    """
    budget = 0.5 * available(compute)
    limit = 2048 if compute.device == "cpu" else 65_536
    micro = batch_size
    while micro > 1:
        need = estimate(config, micro_batch=micro, context=context, compute=compute, **options).activations
        if micro * context <= limit and need < budget:
            break
        micro = -(-micro // 2)
    return micro


def available(compute: Compute) -> int:
    """Bytes of memory free on the device."""
    return memory_available() if compute.device == "cpu" else int(torch.cuda.mem_get_info(compute.device)[0])


def check_memory(need: Memory, compute: Compute) -> None:
    """Refuse a run that cannot fit, with the numbers and the changes that help."""
    free = available(compute)
    if need.total > free:
        parts = f"weights {format_bytes(need.weights)}, gradients {format_bytes(need.gradients)}, "
        parts += f"optimizer {format_bytes(need.optimizer)}, activations {format_bytes(need.activations)}"
        fixed = need.total - need.activations
        ways = "a smaller --size" if fixed > free else "a smaller --training.micro-batch, or --training.recompute"
        raise ResourceError(
            f"this run needs about {format_bytes(need.total)} of memory ({parts}), "
            f"but {format_bytes(free)} are available; use {ways}"
        )


def check_disk(config: ModelConfig, optimizer: str, keep: int, folder: Path) -> None:
    """Refuse a run whose checkpoints cannot fit: the kept ones, the best, the one being written, and the model."""
    matrices = block_parameters(config) if optimizer == "muon" else 0
    checkpoint = 4.0 * (3 * parameters(config) - matrices)
    need, free = (keep + 2) * checkpoint + 4 * parameters(config), disk_free(folder)
    if need > free:
        raise ResourceError(
            f"the checkpoints need about {format_bytes(need)} of disk ({keep} kept, the best, one being written, "
            f"of {format_bytes(checkpoint)} each), but {format_bytes(free)} are free at {folder}; "
            "use a smaller --training.keep or --size"
        )
