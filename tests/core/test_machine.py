"""What a container allows counts, not what the machine has: read from a made-up cgroup tree of either version."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pellucid.core import machine

GB = 10**9


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A made-up machine of 16 cores and 64 GB: `write` makes a file of the cgroup tree, `change` one of /proc."""
    proc = {"/proc/self/cgroup": "0::/", "/proc/meminfo": "MemTotal: 99 kB\nMemAvailable:   64000000 kB\n"}
    read = Path.read_text

    def read_text(path: Path, *arguments: object, **options: object) -> str:
        return proc[str(path)] if str(path) in proc else read(path, *arguments, **options)

    def write(text: object, path: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"{text}\n")

    def change(text: str, path: str) -> None:
        proc[path] = text
        machine._cgroup_folders.cache_clear()

    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 64 * GB // 4096, "SC_PAGE_SIZE": 4096}[name])
    machine._cgroup_folders.cache_clear()
    yield write, change
    machine._cgroup_folders.cache_clear()


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 16), ("200000 100000", 2), ("150000 100000", 2), ("30000 100000", 1), ("6400000 100000", 16), ("", 16)],
)
def test_a_cpu_quota_is_the_number_of_cores(system, quota, cores):
    write, _ = system
    write(quota, "cpu.max")
    assert machine.cpu_cores() == cores


def test_an_affinity_mask_below_the_quota_counts(system, monkeypatch):
    write, _ = system
    write("800000 100000", "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 9})
    assert machine.cpu_cores() == 3


def test_a_quota_of_a_parent_counts(system):
    write, change = system
    change("0::/slice/service", "/proc/self/cgroup")
    write("max 100000", "slice/service/cpu.max")
    write("300000 100000", "slice/cpu.max")
    write("max 100000", "cpu.max")
    assert machine.cpu_cores() == 3


def test_version_1_of_cgroups_is_read_too(system):
    write, change = system
    change("5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/x", "/proc/self/cgroup")
    write("250000", "cpu,cpuacct/docker/abc/cpu.cfs_quota_us")
    write("100000", "cpu,cpuacct/docker/abc/cpu.cfs_period_us")
    write("-1", "cpu/cpu.cfs_quota_us")
    write("100000", "cpu/cpu.cfs_period_us")
    write(8 * GB, "memory/docker/abc/memory.limit_in_bytes")
    write(3 * GB, "memory/docker/abc/memory.usage_in_bytes")
    write("9223372036854771712", "memory/memory.limit_in_bytes")
    write(20 * GB, "memory/memory.usage_in_bytes")
    assert machine.cpu_cores() == 2
    assert machine.memory_limit() == 8 * GB
    assert machine.memory_available() == 5 * GB


@pytest.mark.parametrize(
    ("limit", "use", "most", "free"),
    [
        ("max", 60 * GB, 64 * GB // 4096 * 4096, 64 * GB * 1024 // 1000),
        (str(8 * GB), GB, 8 * GB, 7 * GB),
        (str(8 * GB), 9 * GB, 8 * GB, 0),
    ],
)
def test_a_memory_limit_is_the_memory(system, limit, use, most, free):
    write, change = system
    change(f"MemAvailable: {64 * GB // 1000} kB", "/proc/meminfo")
    write(limit, "memory.max")
    write(use, "memory.current")
    assert machine.memory_limit() == most
    assert machine.memory_available() == free


@pytest.mark.parametrize(
    ("folder", "limit", "use", "cached"),
    [
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory/", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_memory_that_only_caches_files_is_available(system, folder, limit, use, cached):
    """Reading a large corpus fills a container's memory with file pages, which the kernel gives back when they are needed."""
    write, _ = system
    write(8 * GB, folder + limit)
    write(7 * GB, folder + use)
    write(f"anon {GB}\nactive_file 1000\n{cached} {5 * GB}", f"{folder}memory.stat")
    assert machine.memory_available() == 6 * GB


def test_the_machine_itself_counts_when_it_has_less(system):
    write, change = system
    change("MemFree: 1 kB\nMemAvailable:  2000000 kB\n", "/proc/meminfo")
    write(8 * GB, "memory.max")
    write(GB, "memory.current")
    assert machine.memory_available() == 2_000_000 * 1024


@pytest.mark.parametrize("nonsense", ["", "abc", "0::/../../etc", "0::/gone/elsewhere", "::::"])
def test_a_cgroup_that_cannot_be_read_is_no_limit(system, nonsense):
    _, change = system
    change(nonsense, "/proc/self/cgroup")
    assert machine.cpu_cores() == 16


def test_peak_memory_is_what_this_process_holds():
    before = machine.peak_memory()
    block = bytearray(60_000_000)
    block[::4096] = b"x" * len(block[::4096])
    assert before > 20_000_000
    assert machine.peak_memory() >= before  # the largest so far, so it never falls


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="no /proc/self/status here, which tells a process's own peak"
)
def test_peak_memory_is_not_that_of_the_process_that_started_this_one():
    child = "import sys; from pellucid.core.machine import peak_memory; print(peak_memory())"
    block = bytearray(150_000_000)
    block[::4096] = b"x" * len(block[::4096])
    found = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True, timeout=60)
    assert int(found.stdout) < 100_000_000 < machine.peak_memory()


def test_free_disk_is_asked_where_a_folder_will_be(tmp_path):
    assert machine.disk_free(tmp_path / "not" / "there" / "yet") == pytest.approx(machine.disk_free(tmp_path), rel=0.01)


def test_the_cache_goes_where_the_user_says(monkeypatch):
    monkeypatch.setenv("PELLUCID_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert machine.cache_folder() == Path("/a")
    monkeypatch.delenv("PELLUCID_CACHE")
    assert machine.cache_folder() == Path("/b/pellucid")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert machine.cache_folder() == Path.home() / ".cache" / "pellucid"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc/self/task here, where threads are counted")
def test_helpers_end_and_come_again():
    """How the server's engine comes to have all of them to itself: with those of two threads, all would wait asleep."""
    done = subprocess.run([sys.executable, "-c", HELPERS], capture_output=True, text=True, check=True)
    before, ended, again = map(int, done.stdout.split())
    assert (ended, again) == (before - 3, before)


HELPERS = """
import os, time, torch
from pellucid.core.machine import end_helpers
end_helpers()
torch.set_num_threads(4)
for end in (lambda: None, end_helpers, lambda: None):
    if end is not end_helpers:
        torch.ones(10**6).exp()
    end()
    if end is end_helpers:
        time.sleep(0.2)  # an ended thread may be listed a little longer
    print(len(os.listdir("/proc/self/task")))
"""
