"""SIGTERM and Ctrl-C: the step is finished, a checkpoint written, the way on is said, and nothing is lost."""

import json
import os
import select
import shlex
import signal
import time

import pytest
import tiny

STEPS = 400
EVERY = {"training": {"evaluate_every": 200, "checkpoint_every": 150}}


def words(text, run):
    return ["pretrain", text, "--out", run, "--steps", STEPS, *tiny.options(**EVERY)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    from pellucid.cli import main

    folder = tmp_path_factory.mktemp("whole")
    text = tiny.write_corpus(folder / "text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PELLUCID_CACHE", str(folder / "cache"))
        assert main([str(word) for word in words(text, folder / "run")]) == 0
    return folder / "run"


def wait_for(condition, process, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


def lines(run):
    path = run / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_asked_to_stop_can_go_on_to_the_same_bits(tmp_path, uninterrupted, cli, number, code):
    text, run = tiny.write_corpus(tmp_path / "text"), tmp_path / "a run"
    process = tiny.command(*words(text, run))
    wait_for(lambda: len(lines(run)) > 20, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    last = err.splitlines()[-1]
    stopped = len([line for line in lines(run) if '"loss"' in line])
    assert 20 < stopped < STEPS
    assert last.startswith(f"pellucid: stopped after step {stopped} of {STEPS}; go on with: pellucid pretrain --resume --out ")
    assert "Traceback" not in err
    assert (run / f"checkpoints/step-{stopped:08d}/manifest.json").is_file()
    assert (run / "report.html").is_file()

    told = shlex.split(last.split("go on with: ")[1])[1:]  # the very words that it said
    result, _, err = cli(*told)
    assert result == 0, err
    assert f"going on after step {stopped} of {STEPS}" in err
    for name in ("model/model.safetensors", f"checkpoints/step-{STEPS:08d}/optimizer.safetensors"):
        assert (run / name).read_bytes() == (uninterrupted / name).read_bytes()
    assert losses(run) == losses(uninterrupted)


def losses(run):
    rows = map(json.loads, lines(run))
    return [(row["step"], row.get("loss"), row.get("validation_loss"), row.get("sample")) for row in rows]


def test_a_stop_before_training_leaves_nothing(tmp_path):
    """While text is still being read from a pipe, nothing has begun that could be resumed."""
    run = tmp_path / "run"
    read, write = os.pipe()
    process = tiny.command(*words("-", run), stdin=read)
    os.write(write, b"The beginning of a long text. " * 9)
    wait_for(lambda: not select.select([read], [], [], 0)[0], process)  # it has begun to read
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    os.close(read)
    os.close(write)
    assert (process.returncode, err) == (130, "pellucid: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_two_trainers_never_share_a_run(tmp_path, cli):
    text, run = tiny.write_corpus(tmp_path / "text"), tmp_path / "run"
    process = tiny.command(*words(text, run))
    wait_for(lambda: len(lines(run)) > 5, process)
    process.send_signal(signal.SIGSTOP)  # it holds the run while we try
    try:
        for option in (["--resume"], ["--force"]):
            code, _, err = cli(*words(text, run), *option)
            assert (code, err.splitlines()[-1]) == (
                2,
                f"pellucid: another process is training in {run}; wait for it, or choose another --out",
            )
    finally:
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 143
