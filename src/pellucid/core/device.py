"""Where and how numbers are computed: device, precision and threads, chosen once and written down."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import torch

from pellucid.core.errors import ConfigError, PellucidError
from pellucid.core.files import read_json, write_json
from pellucid.core.machine import cache_folder, cpu_cores, cpu_name, keep_freed_memory

Precision = Literal["fp32", "bf16"]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Compute:
    """A choice of device, precision of matrix products, and CPU threads."""

    device: str
    precision: Precision
    threads: int

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]


def choose(*, device: str = "auto", precision: str = "auto", threads: int | Literal["auto"] = "auto") -> Compute:
    """Decide what is left to `auto` by a probe of this machine, set torch's thread count, and keep freed memory."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"device {device!r} was asked for, but torch {torch.__version__} sees no GPU; use --training.device cpu"
        )
    if device != "cpu" and not device.startswith("cuda"):
        raise ConfigError(f"device {device!r} is not known; choose auto, cpu or cuda")
    count = cpu_cores() if threads == "auto" else threads
    torch.set_num_threads(count)
    if device == "cpu":
        keep_freed_memory()
    chosen: Precision = "bf16" if precision == "bf16" or (precision == "auto" and bf16_pays(device)) else "fp32"
    return Compute(device=device, precision=chosen, threads=count)


def usual_precision(device: str) -> Precision:
    """What `auto` is on this machine: probed once and written down, so that a seed writes the same text tomorrow."""
    file = cache_folder() / "precision.json"
    machine = " | ".join([cpu_name() if device == "cpu" else torch.cuda.get_device_name(device), f"torch {torch.__version__}"])
    try:
        known = read_json(file)
    except (PellucidError, OSError):
        known = None
    known = known if isinstance(known, dict) else {}
    if known.get(machine) not in DTYPES:
        known[machine] = "bf16" if bf16_pays(device) else "fp32"
        with suppress(PellucidError, OSError):  # a folder that cannot be written to costs a probe each time
            write_json(file, known)
    found: Precision = known[machine]
    return found


def bf16_pays(device: str) -> bool:
    """Whether bf16 matrix products beat fp32 here by enough (1.3x) to pay for the conversions around them."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # in turns, so that what else the machine does disturbs both
    turns = [(matmul_rate(torch.bfloat16, seconds=0.01), matmul_rate(torch.float32, seconds=0.01)) for _ in range(4)]
    return max(bf16 for bf16, _ in turns) > 1.3 * max(fp32 for _, fp32 in turns)


def matmul_rate(dtype: torch.dtype, *, device: str = "cpu", size: int = 512, seconds: float = 0.04) -> float:
    """Floating-point operations per second of a square matrix product: the best of repeated runs for about `seconds`."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b  # the first call sets up the kernel, which can take longer than all that follows
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        a @ b
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() > end:
            return 2 * size**3 / best


def memory_rate(*, megabytes: int = 256, seconds: float = 0.3) -> float:
    """Bytes a second that are read from memory with all threads: the best of repeated runs for about `seconds`."""
    much = torch.ones(megabytes * 2**20 // 4)
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        much.sum()
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() > end:
            return much.nbytes / best
