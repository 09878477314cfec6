"""A run that stops anywhere and goes on ends where it would have ended: bit for bit."""

import json
import os
import shutil
import signal

import pytest
import tiny

from pellucid.core.errors import RunError
from pellucid.core.run import RunFolder
from pellucid.training.running import Interrupted

STEPS = 8
EVERY = {"checkpoint_every": 2, "evaluate_every": 4}

VARIANTS = {
    "muon": {},
    "adamw": {"optimizer": {"name": "adamw"}},
    "bf16": {"training": {"precision": "bf16"}},
    "recomputed, masked, cosine": {
        "training": {"recompute": True, "micro_batch": 3},
        "data": {"document_masks": True},
        "schedule": {"kind": "cosine"},
    },
    "untied": {"model": {"tied": False}},
}


class Crash(Exception):
    """Stands for a power failure: nothing is tidied up."""


def pretrain(out, variant="muon", **options):
    changes = VARIANTS[variant]
    return tiny.pretrain(out, steps=STEPS, **options, **changes | {"training": EVERY | changes.get("training", {})})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run that nothing happened to, for each variant."""
    made = {}

    def get(variant):
        if variant not in made:
            made[variant] = pretrain(tmp_path_factory.mktemp("whole") / "run", variant).path
        return made[variant]

    return get


def when_step(number, action, monkeypatch):
    """Do something right after step `number` has written its line of metrics, before its evaluation and checkpoint."""
    append = RunFolder.append_metrics

    def appended(self, row):
        append(self, row)
        if row["step"] == number and "loss" in row:
            monkeypatch.setattr(RunFolder, "append_metrics", append)
            action()

    monkeypatch.setattr(RunFolder, "append_metrics", appended)


def without_times(path):
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in ("seconds", "tokens_per_second")} for row in rows]


def files(path, other):
    """The files of a run, less the checkpoints that the other does not have: a signal makes one more, which takes a place."""
    kept = {p.name for p in (other / "checkpoints").iterdir()}
    names = {p.relative_to(path) for p in path.rglob("*") if p.is_file()}
    return {name.as_posix() for name in names if name.parts[0] != "checkpoints" or name.parts[1] in kept}


def assert_same(path, other):
    """All that two runs leave behind is equal, except times."""
    names = files(path, other)
    assert names == files(other, path)
    assert f"checkpoints/step-{STEPS:08d}/optimizer.safetensors" in names
    timed = ("run.json", "metrics.jsonl", "report.html", "position.json", "manifest.json")
    for name in sorted(names):
        if not name.endswith(timed):
            assert (path / name).read_bytes() == (other / name).read_bytes(), name
    assert without_times(path) == without_times(other)


@pytest.mark.parametrize(("variant", "stop"), [("muon", 1), ("muon", 4), ("muon", 7), *((name, 3) for name in VARIANTS)])
def test_a_signal_finishes_the_step_and_the_resumed_run_is_the_uninterrupted_one(
    tmp_path, monkeypatch, uninterrupted, variant, stop
):
    run, number = tmp_path / "run", signal.SIGTERM if stop % 2 else signal.SIGINT
    when_step(stop, lambda: os.kill(os.getpid(), number), monkeypatch)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        pretrain(run, variant)
    expected = f"stopped after step {stop} of {STEPS}; go on with: pellucid pretrain --resume --out {run}"
    assert (str(caught.value), caught.value.exit_code) == (expected, 128 + number)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers  # given back
    assert [row["step"] for row in without_times(run) if "loss" in row] == list(range(1, stop + 1))
    assert (run / f"checkpoints/step-{stop:08d}/manifest.json").is_file()
    assert (run / "report.html").is_file()
    assert not (run / "model").exists()

    pretrain(run, variant, resume=True)
    assert_same(run, uninterrupted(variant))


def test_a_second_ctrl_c_ends_at_once_and_loses_no_more_than_a_kill(tmp_path, monkeypatch, uninterrupted):
    def twice():
        signal.raise_signal(signal.SIGINT)  # to this thread: two to the process may become one
        signal.raise_signal(signal.SIGINT)

    run = tmp_path / "run"
    when_step(5, twice, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        pretrain(run)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    pretrain(run, resume=True)
    assert_same(run, uninterrupted("muon"))


@pytest.mark.parametrize(("variant", "stop"), [("muon", 1), ("muon", 3), ("muon", 6), ("muon", 8), ("adamw", 5)])
def test_a_crash_after_any_step_loses_nothing_but_time(tmp_path, monkeypatch, uninterrupted, variant, stop):
    def crash():
        raise Crash

    run = tmp_path / "run"
    when_step(stop, crash, monkeypatch)
    with pytest.raises(Crash):
        pretrain(run, variant)
    pretrain(run, variant, resume=True)
    assert_same(run, uninterrupted(variant))


def test_resuming_a_finished_run_changes_nothing(tmp_path, uninterrupted):
    run = pretrain(tmp_path / "run").path
    learnt = [run / "metrics.jsonl", *sorted(run.rglob("*.safetensors"))]
    before = [path.read_bytes() for path in learnt]
    pretrain(run, resume=True)
    assert [path.read_bytes() for path in learnt] == before
    assert_same(run, uninterrupted("muon"))


def test_a_resume_without_any_checkpoint_begins_at_the_beginning(tmp_path, uninterrupted):
    run = pretrain(tmp_path / "run").path
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "model")
    pretrain(run, resume=True)
    assert_same(run, uninterrupted("muon"))


def test_the_same_run_twice_is_the_same_run(tmp_path, uninterrupted):
    assert_same(pretrain(tmp_path / "run").path, uninterrupted("muon"))


def test_another_seed_is_another_run(tmp_path, uninterrupted):
    run = tiny.pretrain(tmp_path / "run", steps=STEPS, training=EVERY | {"seed": 1}).path
    assert without_times(run)[0]["loss"] != without_times(uninterrupted("muon"))[0]["loss"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tiny.pretrain(tmp_path_factory.mktemp("runs") / "run").path


def refusal(run, **options):
    with pytest.raises(RunError) as caught:
        tiny.pretrain(run, resume=True, **options)
    return str(caught.value)


def test_a_changed_option_is_refused(finished):
    expected = (
        "training.batch_size was 4 when this run began and is 8 now; "
        "a resumed run goes on as it was, so leave the option out, or start anew with --force"
    )
    assert refusal(finished, training={"batch_size": 8}) == expected


def test_another_length_is_refused(finished):
    assert refusal(finished, steps=9).startswith("training.steps was 4 when this run began and is 9 now; ")


@pytest.mark.parametrize("more", ["another sentence", "a character that was never seen: ß"])
def test_a_changed_corpus_is_refused(finished, more):
    then = json.loads((finished / "run.json").read_text())["fingerprint"]["corpus"]
    message = refusal(finished, corpus=[*tiny.DOCUMENTS, more])
    assert message.startswith(f"the corpus is not the one this run began with (its SHA-256 was {then[:12]}, now ")
    assert message.endswith("); put it back, or start anew with --force")


def test_a_changed_tokenizer_is_refused(tmp_path):
    run = tiny.pretrain(tmp_path / "run").path
    path = run / "tokenizer.json"
    changed = json.loads(path.read_text())
    words = changed["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    path.write_text(json.dumps(changed))
    assert refusal(run).startswith("the tokenizer is not the one this run began with (its SHA-256 was ")


def test_a_folder_without_a_run_is_refused_and_not_made(tmp_path):
    expected = f"{tmp_path / 'none'} holds no run to resume; leave out --resume to start one"
    assert refusal(tmp_path / "none") == expected
    assert not (tmp_path / "none").exists()


def test_saying_the_same_again_is_no_contradiction(finished):
    before = (finished / "recipe.toml").read_bytes()
    tiny.pretrain(finished, resume=True)
    assert (finished / "recipe.toml").read_bytes() == before


def test_a_tokenizer_that_came_with_its_own_files_is_the_same_after_a_resume(tmp_path, monkeypatch):
    """The end of text may be named in tokenizer_config.json only, and the chat template lives there too."""
    from pellucid.text.tokenizer import Tokenizer

    brought = Tokenizer.train_chars(tiny.DOCUMENTS)
    brought.save(tmp_path / "brought")
    text = (tmp_path / "brought/tokenizer.json").read_text()
    (tmp_path / "brought/tokenizer.json").write_text(text.replace("<|endoftext|>", "<|fin|>"))
    config = json.loads((tmp_path / "brought/tokenizer_config.json").read_text()) | {
        "eos_token": "<|fin|>",
        "pad_token": "<|fin|>",
        "chat_template": "{{ messages }}",
    }
    (tmp_path / "brought/tokenizer_config.json").write_text(json.dumps(config))
    changes = {"tokenizer": {"kind": str(tmp_path / "brought")}}
    whole = tiny.pretrain(tmp_path / "whole", **changes).path

    when_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM), monkeypatch)
    with pytest.raises(Interrupted):
        tiny.pretrain(tmp_path / "run", **changes)
    tiny.pretrain(tmp_path / "run", resume=True, **changes)
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        assert (tmp_path / "run/model" / name).read_bytes() == (whole / "model" / name).read_bytes(), name
    assert json.loads((whole / "model/tokenizer_config.json").read_text())["chat_template"] == "{{ messages }}"
