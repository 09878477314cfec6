"""Fine-tuning from the command line: killed at any instant it ends with the same bits; continued, adapted, merged."""

import json
import os
import random
import signal
import time

import pytest
import tiny
from pupils import pupil, write_rows

import pellucid
from pellucid.api import Run
from pellucid.core.files import verify

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 80
SETTINGS = ["--training.threads", 1, "--training.precision", "fp32", "--training.dropout", 0.1, "--batch-size", 4]
EVERY = ["--training.evaluate-every", 10, "--training.checkpoint-every", 2, "--training.keep", 2, "--patience", 30]
METHODS = {
    "full": ["--method", "full"],
    "lora": ["--method", "lora", "--method.adapter-dropout", 0.2, "--method.rank", 4],
}


def killed(process, run, chance):
    """Whether a trainer was killed: some time after its first new step."""
    metrics, begun = run / "metrics.jsonl", time.monotonic()
    size = metrics.stat().st_size if metrics.exists() else 0
    while not (metrics.exists() and metrics.stat().st_size > size + 200) and process.poll() is None:
        assert time.monotonic() < begun + 200
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.4))
    process.kill()
    process.communicate(timeout=60)
    return process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("method", METHODS)
def test_kills_at_random_instants_change_no_bit(tmp_path, method):
    model, rows = pupil(tmp_path / "model", "gpt2"), write_rows(tmp_path / "reviews.jsonl")
    words = ["finetune", model, "--data", rows, "--steps", STEPS, "--quiet", *METHODS[method], *SETTINGS, *EVERY]
    whole, run, chance = tmp_path / "whole", tmp_path / "run", random.Random(3)
    code, _, err = tiny.run_command(*words, "--out", whole, timeout=300)
    assert code == 0, err
    kills = 0
    for _ in range(3):
        process = tiny.command(*words, "--out", run, *(["--resume"] if (run / "recipe.toml").exists() else []))
        kills += killed(process, run, chance)
        for folder in sorted((run / "checkpoints").glob("step-*")):
            if (folder / "manifest.json").exists():
                verify(folder)  # whole or absent
    assert kills >= 2
    code, _, err = tiny.run_command(*words, "--out", run, "--resume", timeout=300)
    assert code == 0, err
    compared = [path.relative_to(whole) for path in whole.rglob("*.safetensors")]
    assert len(compared) >= 4
    for path in compared:
        assert (run / path).read_bytes() == (whole / path).read_bytes(), path
    assert values(run) == values(whole)
    assert json.loads((run / "grades.json").read_text()) == json.loads((whole / "grades.json").read_text())


def values(run):
    """Every line of the metrics, less the times."""
    rows = Run(run).metrics
    return [{name: value for name, value in row.items() if name not in ("seconds", "tokens_per_second")} for row in rows]


def test_ctrl_c_names_a_command_that_goes_on(tmp_path):
    model, rows = pupil(tmp_path / "model", "gpt2"), write_rows(tmp_path / "reviews.jsonl")
    run = tmp_path / "a run"
    process = tiny.command("finetune", model, "--data", rows, "--steps", 3000, "--quiet", *SETTINGS, "--out", run)
    while not (run / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    [line] = err.splitlines()
    command = line.partition("go on with: ")[2]
    assert command == f"pellucid finetune {model} --resume --out '{run}'"
    again = tiny.command("finetune", model, "--resume", "--out", run, "--quiet")
    size = (run / "metrics.jsonl").stat().st_size
    while (run / "metrics.jsonl").stat().st_size <= size and again.poll() is None:
        time.sleep(0.02)
    assert again.poll() is None, again.communicate()
    again.kill()
    again.communicate(timeout=60)


def test_the_life_of_a_classifier(tmp_path):
    """Pretrained here, gone on with, fine-tuned with an adapter, merged, loaded."""
    base = tiny.pretrain(tmp_path / "base", steps=20).path
    corpus = tiny.write_corpus(tmp_path / "more")
    words = ["--training.threads", 1, "--training.precision", "fp32", "--quiet"]
    code, _, err = tiny.run_command(
        "finetune", base, "--task", "continue", "--data", corpus, "--steps", 5, "--out", tmp_path / "on", *words
    )
    assert code == 0, err
    labelled = [{"text": text, "label": ("fine", "poor")[at % 2]} for at, text in enumerate(tiny.DOCUMENTS)]
    rows = write_rows(tmp_path / "reviews.jsonl", labelled)
    out = tmp_path / "reviews"
    given = ["finetune", tmp_path / "on", "--data", rows, "--method", "lora", "--epochs", 3, "--out", out, *words]
    code, said, err = tiny.run_command(*given, "--long", "cut", "--data.validation-fraction", 0.2, "--data.test-fraction", 0)
    assert code == 0, err
    assert f"pellucid predict {out}" in said
    code, _, err = tiny.run_command("adapter", "merge", out, "--out", tmp_path / "merged")
    assert code == 0, err
    assert pellucid.load(tmp_path / "merged").config.labels == ("fine", "poor")
