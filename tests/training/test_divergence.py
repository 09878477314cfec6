"""A loss that is no number stops the run; what was good before it stays, and nothing bad is ever kept as good."""

import math

import pytest
import tiny
import torch
from safetensors.torch import load_file

from pellucid.core.errors import DivergenceError
from pellucid.core.run import RunFolder
from pellucid.training import checkpoint
from pellucid.training.objectives import TokenPrediction
from pellucid.training.optimizers import Optimizers

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
    loss = TokenPrediction.loss

    def begin(call):
        calls = iter(range(10**9))

        def wrong(self, network, batch, state=None):
            value = loss(self, network, batch, state)
            training = torch.is_grad_enabled()
            return value * math.nan if training and next(calls) >= call else value

        monkeypatch.setattr(TokenPrediction, "loss", wrong)

    yield begin
    monkeypatch.setattr(TokenPrediction, "loss", loss)


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
    rates = {"learning_rate": 100, "matrix_learning_rate": 100}
    assert message(run.path, optimizer={"name": name} | rates, **EVERY).endswith(ADVICE)
    sound(run)
    assert not run.model.exists()


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (6, "step 6: the validation loss is nan"),
        (4, "step 4: the validation loss is nan"),
        (3, "step 3: norm.weight holds values that are not finite, so no checkpoint was written"),
        (5, "step 6: the loss is nan and the gradient's norm nan"),
    ],
)
def test_weights_that_a_step_ruins_are_noticed_before_anything_is_kept(tmp_path, monkeypatch, step, reason):
    """The loss of that step is still a number; the first to meet the damage may be an evaluation, a checkpoint, or a step."""
    run, move, calls = RunFolder(tmp_path / "run"), Optimizers.step, iter(range(1, 10))

    def ruin(self, factor):
        norm = move(self, factor)
        if next(calls) == step:
            with torch.no_grad():
                next(weight for weight, name in self.names.items() if name == "norm.weight")[3] = math.nan
        return norm

    monkeypatch.setattr(Optimizers, "step", ruin)
    every = {"training": {"checkpoint_every": 3 if step == 3 else 2, "evaluate_every": 2}}
    text = message(run.path, **every)
    assert text.startswith(f"{reason}; the last good checkpoint is {checkpoint.latest(run)}; start anew")
    assert sound(run)[-1] < step
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
