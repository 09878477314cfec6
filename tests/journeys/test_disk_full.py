"""A disk that fills up: a clear error, the older checkpoint intact, and after making room the same end."""

import os
import subprocess
from pathlib import Path

import pytest
import tiny

from pellucid.core.errors import ResourceError
from pellucid.core.files import verify
from pellucid.core.run import RunFolder

pytestmark = pytest.mark.slow

EVERY = {"training": {"checkpoint_every": 2, "evaluate_every": 4}}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of three megabytes in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, left: int) -> Path:
    """Leave only so many bytes free."""
    ballast = place / "ballast"
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    ballast.write_bytes(b"x" * (free - left))
    return ballast


@pytest.mark.parametrize("left", [0, 4096, 60_000])
@pytest.mark.parametrize("step", [1, 4, 5])
def test_a_run_whose_disk_fills_up_stops_clearly_and_goes_on_when_there_is_room(small_disk, tmp_path, monkeypatch, step, left):
    whole = tiny.pretrain(tmp_path / "whole", steps=8, **EVERY).path
    run, append = RunFolder(small_disk / "run"), RunFolder.append_metrics

    def appended(self, row):
        append(self, row)
        if row["step"] == step and "loss" in row:
            fill(small_disk, left)

    monkeypatch.setattr(RunFolder, "append_metrics", appended)
    with pytest.raises(ResourceError) as caught:
        tiny.pretrain(run.path, steps=8, **EVERY)
    monkeypatch.undo()
    assert str(caught.value).startswith(f"{run.path}/")
    assert ": the disk is full (" in str(caught.value)
    assert str(caught.value).endswith("; make room there, or choose another folder")
    kept = sorted(run.checkpoints.glob("step-*")) if run.checkpoints.exists() else []
    assert [folder.name for folder in kept] == [f"step-{n:08d}" for n in range(2, step, 2)]
    for folder in kept:
        verify(folder)

    (small_disk / "ballast").unlink()
    tiny.pretrain(run.path, steps=8, resume=True, **EVERY)
    for name in ("model/model.safetensors", "checkpoints/step-00000008/optimizer.safetensors", "samples.md"):
        assert (run.path / name).read_bytes() == (whole / name).read_bytes()


def test_a_store_that_does_not_fit_is_one_clear_sentence(small_disk, tmp_path, monkeypatch):
    monkeypatch.setenv("PELLUCID_CACHE", str(small_disk / "cache"))
    fill(small_disk, 8192)
    text = [f"{number} {line}" for number in range(100) for line in tiny.DOCUMENTS]
    with pytest.raises(ResourceError, match=r": the disk is full \(") as caught:
        tiny.pretrain(tmp_path / "run", corpus=text)
    assert str(small_disk / "cache") in str(caught.value)
    assert not (tmp_path / "run").exists()
    (small_disk / "ballast").unlink()
    tiny.pretrain(tmp_path / "run", corpus=text)
