"""The promise: kill it at any instant, as often as you like, and it ends with the same bits."""

import os
import random
import tempfile
import time
from pathlib import Path

import pytest
import tiny

import pellucid
from pellucid.core.files import verify

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

STEPS, KILLS = 1200, 30
EVERY = {"training": {"evaluate_every": 50, "checkpoint_every": 5, "keep": 3}}


def being_written(run):
    """The checkpoints that are being written at this instant."""
    try:
        return [
            path for path in (run / "checkpoints").iterdir() if path.name.endswith(".partial") and "deleted" not in path.name
        ]
    except FileNotFoundError:
        return []


def kill(process, run, how, chance):
    """Kill a trainer: some time after its start, some time after its first new step, or inside the write of a checkpoint.

    Returns whether half a checkpoint was left behind.
    """
    begun, metrics = time.monotonic(), run / "metrics.jsonl"
    if how == "start":
        time.sleep(chance.uniform(0, 6))
    else:
        size = metrics.stat().st_size if metrics.exists() else 0
        while not (metrics.exists() and metrics.stat().st_size > size + 200) and process.poll() is None:
            assert time.monotonic() < begun + 200
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.3))
    if how == "write":
        while not being_written(run) and process.poll() is None:
            pass
    process.kill()
    process.communicate(timeout=60)
    return bool(being_written(run))


@pytest.fixture
def place(tmp_path):
    """In memory where that is possible: killing a process needs no real disk, and 500 checkpoints would wait for one."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def test_thirty_kills_at_random_instants_change_no_bit(place):
    text = tiny.write_corpus(place / "text")
    words = ["pretrain", text, "--steps", STEPS, "--quiet", *tiny.options(**EVERY)]
    whole, run, chance = place / "whole", place / "run", random.Random(7)
    code, _, err = tiny.run_command(*words, "--out", whole, timeout=400)
    assert code == 0, err

    halves, killed, seen = 0, 0, set()
    for number in range(KILLS):
        resume = ["--resume"] if (run / "recipe.toml").exists() else []
        process = tiny.command(*words, "--out", run, *resume)
        halves += kill(process, run, ("write", "step", "write", "start")[number % 4], chance)
        killed += process.returncode == -9
        assert process.returncode in (-9, 0)
        if (run / "checkpoints").exists():
            finished = sorted((run / "checkpoints").glob("step-*"))
            for folder in finished:
                verify(folder)  # whole or absent
            if finished:
                seen.add(finished[-1].name)
                assert pellucid.load(run).generate("Alice", max_tokens=1)  # and of use at any time
    assert killed >= 25
    assert halves >= 5  # those kills did hit a checkpoint being written
    assert len(seen) >= 10  # and the run went on in between

    code, _, err = tiny.run_command(*words, "--out", run, "--resume", timeout=400)
    assert code == 0, err
    last = f"checkpoints/step-{STEPS:08d}"
    for name in ("model/model.safetensors", f"{last}/model.safetensors", f"{last}/optimizer.safetensors", "samples.md"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert values(run) == values(whole)
    assert not being_written(run)


def values(run):
    """Every line of the metrics, less the times."""
    rows = pellucid.api.Run(run).metrics
    return [{name: value for name, value in row.items() if name not in ("seconds", "tokens_per_second")} for row in rows]
