"""What this machine lets a process use: cores, memory, disk, compiler. Limits of containers count; torch is not needed."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")

M_TRIM_THRESHOLD, M_MMAP_MAX, LARGEST_INT = -1, -4, 2**31 - 1  # of malloc.h


def cpu_cores() -> int:
    """Cores this process may use: the affinity mask and the cgroup quota, whichever is less; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(round(quota) for quota in _cgroup_cpus())]))


def cpu_name() -> str:
    """The processor as it calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def memory_limit() -> int:
    """Bytes of memory this process could ever have: the machine's, or the cgroup's limit if that is less."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *(limit for limit, _ in _cgroup_memory())])


def memory_available() -> int:
    """Bytes of memory that can be taken now without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        machine = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        machine = memory_limit()
    return max(0, min([machine, *(limit - use for limit, use in _cgroup_memory())]))


def peak_memory() -> int:
    """Bytes of memory this process had resident at its largest.

    Linux's own figure for it, where there is one: `getrusage` counts what the process that started this one held as well.
    """
    import resource

    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def disk_free(path: Path) -> int:
    """Bytes free where `path` is, or will be made."""
    existing = next(p for p in [path.absolute(), *path.absolute().parents] if p.exists())
    return shutil.disk_usage(existing).free


def compiler() -> str | None:
    """The C++ compiler that torch.compile needs on a CPU, or None."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def cache_folder() -> Path:
    """Where tokenised corpora are kept: $PELLUCID_CACHE, or the user's cache folder."""
    if folder := os.environ.get("PELLUCID_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pellucid"


@cache
def _cgroup_folders() -> list[Path]:
    """The folders of this process's cgroup (version 2, or the version 1 controllers) and of its parents."""
    folders = [CGROUP, CGROUP / "cpu", CGROUP / "memory"]
    try:
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            root = CGROUP / controllers if controllers else CGROUP
            inner = root / path.lstrip("/")
            folders += [p for p in [inner, *inner.parents] if p.is_relative_to(CGROUP)]
    except (OSError, ValueError):
        pass
    return list(dict.fromkeys(folders))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _cgroup_cpus() -> list[float]:
    """Cores granted by every cgroup above this process that has a quota."""
    quotas = []
    for folder in _cgroup_folders():
        quota, _, period = _read(folder / "cpu.max").partition(" ")  # version 2: "max 100000" or "150000 100000"
        if not quota:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():
            quotas.append(int(quota) / int(period))
    return quotas


def _cgroup_memory() -> list[tuple[int, int]]:
    """Limit and use, in bytes, of every cgroup above this process that has a memory limit. Cached files are not in use."""
    versions = (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    found = []
    for folder in _cgroup_folders():
        for limit, use, cached in versions:
            bounds = _read(folder / limit), _read(folder / use)
            if all(text.isdigit() for text in bounds):
                lines = (line.split() for line in _read(folder / "memory.stat").splitlines())
                files = next((int(value) for name, value in lines if name == cached), 0)
                found.append((int(bounds[0]), int(bounds[1]) - files))
    return found


def keep_freed_memory() -> None:
    """Have the C library keep what is freed for the next step, where it is glibc.

    Else it gives each large block back to the system, which at the next step hands out zeroed pages one by one: a third of a
    step's time on two cores, for their faults wait for one another. The process then holds its peak until it ends.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    set_option(M_MMAP_MAX, 0)
    set_option(M_TRIM_THRESHOLD, LARGEST_INT)


def end_helpers() -> None:
    """End the threads that help this one to compute (OpenMP's, where it is GNU's), before another one computes instead.

    With more helpers than cores OpenMP has all of them wait for work asleep, and half of a step's time goes into waking them.
    This thread gets new ones when it computes again.
    """
    try:
        pause = ctypes.CDLL(None).omp_pause_resource_all
    except (AttributeError, OSError, TypeError):  # another OpenMP, or none yet
        return
    pause(1)  # omp_pause_soft
