"""A loss that is no number stops the run; what was good before it stays, and nothing bad is ever kept as good."""

import math

import pytest
import tiny
import torch
from safetensors.torch import load_file

from pellucid.core.errors import DivergenceError
from pellucid.core.run import RunFolder
from pellucid.training import checkpoint
from pellucid.training.objectives import CausalLM

ADVICE = "start anew with lower learning rates (--optimizer.learning-rate, --optimizer.matrix-learning-rate)"
EVERY = {"training": {"checkpoint_every": 2, "evaluate_every": 2}}


def message(out, **options):
    with pytest.raises(DivergenceError) as caught:
        tiny.pretrain(out, steps=6, **options)
    assert caught.value.exit_code == 1
    return str(caught.value)


def sound(run):
    """Every checkpoint holds numbers, and so does every line of the metrics."""
    for folder in checkpoint.all_whole(run):
        assert all(torch.isfinite(weight).all() for weight in load_file(folder / "model.safetensors").values())
    assert all(math.isfinite(value) for row in run.read_metrics() for value in row.values() if isinstance(value, float))
    return [checkpoint.position(folder).step for folder in checkpoint.all_whole(run)]


@pytest.fixture
def broken_from(monkeypatch):
    """Make the loss of every batch from the given one on no number."""
    loss = CausalLM.loss

    def begin(call):
        calls = iter(range(10**9))

        def wrong(self, network, batch):
            value = loss(self, network, batch)
            training = torch.is_grad_enabled()
            return value * math.nan if training and next(calls) >= call else value

        monkeypatch.setattr(CausalLM, "loss", wrong)

    yield begin
    monkeypatch.setattr(CausalLM, "loss", loss)


def test_the_last_good_checkpoint_is_kept_named_and_good_to_go_on_from(tmp_path, broken_from, monkeypatch):
    run = RunFolder(tmp_path / "run")
    broken_from(4)
    last = run.checkpoints / "step-00000004"
    expected = f"step 5: the loss is nan and the gradient's norm nan; the last good checkpoint is {last}; {ADVICE}"
    assert message(run.path, **EVERY) == expected
    assert sound(run) == [2, 4]
    assert [row["step"] for row in run.read_metrics() if "loss" in row] == [1, 2, 3, 4]
    assert run.report.is_file()
    monkeypatch.undo()
    tiny.pretrain(run.path, steps=6, resume=True, **EVERY)  # say the fault was in the memory of the machine
    assert run.model.is_dir()
    assert sound(run)[-1] == 6


def test_without_a_checkpoint_it_says_so(tmp_path, broken_from):
    run = RunFolder(tmp_path / "run")
    broken_from(0)
    expected = f"step 1: the loss is nan and the gradient's norm nan; there is no checkpoint yet; {ADVICE}"
    assert message(run.path, **EVERY) == expected
    assert sound(run) == []
    assert not run.model.exists()


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_learning_rate_that_blows_up_is_noticed(tmp_path, name):
    run = RunFolder(tmp_path / "run")
    rates = {"learning_rate": 1e30, "matrix_learning_rate": 1e30}
    assert message(run.path, optimizer={"name": name} | rates, **EVERY).endswith(ADVICE)
    sound(run)
    assert not run.model.exists()


def test_a_run_whose_last_step_ruins_it_ends_in_an_error_and_not_in_a_model(tmp_path):
    """The loss of the last step is still a number; only the evaluation after it is none."""
    run = RunFolder(tmp_path / "run")
    steps = {"training": {"steps": 1, "evaluate_every": 1, "checkpoint_every": 1}}
    with pytest.raises(DivergenceError) as caught:
        tiny.pretrain(run.path, steps=None, optimizer={"learning_rate": 1e25, "matrix_learning_rate": 1e25}, **steps)
    assert str(caught.value).startswith("step 1: ")
    assert sound(run) == []
    assert not run.model.exists()


def test_a_run_that_is_sound_but_unlucky_at_one_evaluation_does_not_take_it_for_the_best(tmp_path, monkeypatch):
    from pellucid.training import job

    run, validate = RunFolder(tmp_path / "run"), job.validate
    calls = iter(range(10))

    def unlucky(*arguments, **options):
        result = validate(*arguments, **options)
        return type(result)(loss=math.nan, bytes_per_token=1.0) if next(calls) == 1 else result

    monkeypatch.setattr(job, "validate", unlucky)
    expected = f"the last good checkpoint is {run.checkpoints / 'step-00000002'}; {ADVICE}"
    assert message(run.path, **EVERY).endswith(expected)
    assert sound(run) == [2]
