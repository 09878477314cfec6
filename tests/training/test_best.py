"""What a run hands out is the best that it ever was, also when that was between two checkpoints, or before a stop."""

import json
import os
import signal

import pytest
import tiny
from safetensors.torch import load_file

from pellucid.core.run import RunFolder
from pellucid.training import checkpoint, job
from pellucid.training.running import Interrupted

LOSSES = {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.0, 10: 2.2, 12: 9.0}
RARELY = {"training": {"evaluate_every": 2, "checkpoint_every": 100, "keep": 1}}


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations with losses as written above, whatever the network; the steps between are real."""
    validate = job.Job.evaluate

    def evaluate(self, state):
        result = validate(self, state)
        return type(result)(loss=LOSSES[state.step], bytes_per_token=1.0)

    monkeypatch.setattr(job.Job, "evaluate", evaluate)


def model_step(run):
    """The step whose weights the run hands out, found by comparing them with its checkpoints'."""
    given = load_file(run.model / "model.safetensors")
    return [
        checkpoint.position(folder).step
        for folder in checkpoint.all_whole(run)
        if all((given[name] == value).all() for name, value in load_file(folder / "model.safetensors").items())
    ]


def test_the_best_evaluation_is_kept_though_no_checkpoint_was_due(tmp_path, scripted):
    run = RunFolder(tiny.pretrain(tmp_path / "run", steps=12, **RARELY).path)
    assert model_step(run) == [4]
    assert [checkpoint.position(folder).step for folder in checkpoint.all_whole(run)] == [4, 12]
    assert "The best evaluation is at step 4" in run.report.read_text()


def test_a_stop_and_a_resume_do_not_change_what_is_best(tmp_path, scripted, monkeypatch):
    run, append = RunFolder(tmp_path / "run"), RunFolder.append_metrics

    def appended(self, row):
        append(self, row)
        if row["step"] == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunFolder, "append_metrics", appended)
    with pytest.raises(Interrupted):
        tiny.pretrain(run.path, steps=12, **RARELY)
    monkeypatch.setattr(RunFolder, "append_metrics", append)
    tiny.pretrain(run.path, steps=12, resume=True, **RARELY)
    assert model_step(run) == [4]


def test_the_result_names_the_best_and_the_last(tmp_path, scripted, cli):
    text = tiny.write_corpus(tmp_path / "text")
    code, out, _ = cli("pretrain", text, "--out", tmp_path / "run", "--steps", 12, "--json", *tiny.options(**RARELY))
    result = json.loads(out)
    assert code == 0
    assert (result["best"]["step"], result["best"]["validation_loss"]) == (4, 2.0)
    assert (result["last"]["step"], result["last"]["validation_loss"]) == (12, 9.0)
