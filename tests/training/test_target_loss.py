"""A run with a target ends as soon as it is reached, and stays ended."""

import pytest
import tiny

from pellucid.core.run import RunFolder
from pellucid.training import checkpoint


def evaluations(run):
    return [row for row in run.metrics if "validation_loss" in row]


def test_it_stops_at_the_first_evaluation_at_or_below_the_target(tmp_path):
    changes = {"training": {"evaluate_every": 2}}
    free = evaluations(tiny.pretrain(tmp_path / "free", steps=12, **changes))
    target = free[2]["validation_loss"]
    assert min(row["validation_loss"] for row in free[:2]) > target  # else the test shows nothing

    changes["training"]["target_loss"] = target
    run = tiny.pretrain(tmp_path / "run", steps=12, **changes)
    assert [row["step"] for row in evaluations(run)] == [2, 4, 6]
    assert evaluations(run)[-1]["validation_loss"] == target
    assert checkpoint.position(checkpoint.latest(RunFolder(run.path))).step == 6
    assert (run.path / "model").is_dir()

    before = (run.path / "metrics.jsonl").read_bytes(), (run.path / "model/model.safetensors").read_bytes()
    tiny.pretrain(run.path, steps=12, resume=True, **changes)
    assert ((run.path / "metrics.jsonl").read_bytes(), (run.path / "model/model.safetensors").read_bytes()) == before


def test_a_target_that_is_never_reached_changes_nothing(tmp_path):
    run = tiny.pretrain(tmp_path / "run", training={"target_loss": 1e-9})
    assert evaluations(run)[-1]["step"] == 4
    assert evaluations(run)[-1]["validation_loss"] == pytest.approx(3.6, abs=0.5)
