"""`pellucid bench`: what it measures is what it says."""

import json

import pytest
import tiny

import pellucid
from pellucid.core.errors import ConfigError
from pellucid.generation import compiled, rates


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny.pretrain(tmp_path_factory.mktemp("runs") / "run", steps=2).path


def test_the_table_and_the_json(cli, run, monkeypatch):
    monkeypatch.setattr(rates, "memory_rate", lambda: 2e9)
    words = ("bench", run, "--texts", 1, "--texts", 3, "--prompt", 6, "--tokens", 5, "--precision", "int8", "--compile", "no")
    code, out, err = cli(*words)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("int8: 0.0 MB of matrices, memory read at 2.0 GB/s")
    assert lines[1].split() == ["texts", "tokens/s", "of", "the", "limit", "first", "token", "prompt", "tokens/s"]
    assert [line.split()[0] for line in lines[2:]] == ["1", "3"]
    found = json.loads(cli(*words, "--json")[1])
    held = pellucid.load(run, precision="int8").network.held
    assert (found["precision"], found["matrices_bytes"], found["prompt"], found["tokens"]) == ("int8", held.nbytes, 6, 5)
    for rate in found["rates"]:
        passes = rate["tokens_per_second"] / rate["texts"]
        assert rate["share_of_memory_limit"] == pytest.approx(passes * held.nbytes / 2e9)
        assert rate["prompt_tokens_per_second"] == pytest.approx(6 * rate["texts"] / rate["first_token_seconds"])


def test_compiling_is_asked_for_left_out_or_told(cli, run, monkeypatch):
    monkeypatch.setattr(compiled, "compiler", lambda: None)
    words, problem = (
        ("bench", run, "--texts", 1, "--prompt", 4, "--tokens", 4),
        "there is no C++ compiler here to compile steps with",
    )
    code, out, err = cli(*words, "--compile", "yes")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"pellucid: {problem}; install g++")
    code, out, err = cli(*words)
    assert (code, err.startswith(problem), err.count("\n")) == (0, True, 1)
    code, out, err = cli(*words, "--compile", "no")
    assert (code, err) == (0, "")


def test_every_token_that_is_asked_for_is_written(run, monkeypatch):
    """An end of text ends none of them, so that the rate is one of the tokens that were asked for."""
    model, taken = pellucid.load(run), []
    before = rates.Text.take
    monkeypatch.setattr(rates.Text, "take", lambda self, token, *more: taken.append(token) or before(self, token, *more))
    found = model.rates(texts=[2], prompt=3, tokens=7)
    assert len(taken) == 2 + 2 * 7 * rates.TURNS  # a warm-up of one text before
    assert found.matrices_bytes == sum(w.nbytes for w in model.network.parameters()) - model.network.embedding.weight.nbytes * (
        not model.config.tied
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": 14, "tokens": 8}, "a prompt of 14 and 8 tokens more exceed the model's context of 16; ask for fewer"),
        ({"texts": [1, 0]}, "texts must be at least 1, not 0"),
        ({"prompt": -3}, "prompt must be at least 1, not -3"),
        ({"tokens": 1}, "tokens must be at least 2, not 1"),
    ],
)
def test_what_does_not_fit_is_refused(run, options, message):
    with pytest.raises(ConfigError) as caught:
        pellucid.load(run).rates(**{"texts": [1], "prompt": 4, "tokens": 4} | options)
    assert str(caught.value) == message


def test_what_is_not_there_is_said(cli, run, tmp_path):
    code, out, err = cli("bench", tmp_path / "none")
    assert (code, out) == (2, "")
    assert err.startswith(f"pellucid: {tmp_path / 'none'} does not exist; give ")
