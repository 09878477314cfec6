"""Compiled steps: where they cannot be had, and how they are kept. What they compute is tested with the engine."""

import sys
import threading
import time

import pytest
import tiny
import torch

from pellucid.api import Model
from pellucid.core.errors import ConfigError
from pellucid.core.precision import Holding
from pellucid.core.progress import Silent
from pellucid.generation import compiled
from pellucid.generation.compiled import STEP, compile_if_it_pays, compile_steps, drawn, rows_at
from pellucid.network.families import FAMILIES
from pellucid.network.holding import hold

SHAPE = {
    "vocab_size": 300,
    "context_length": 64,
    "d_model": 32,
    "layers": 1,
    "heads": 2,
    "kv_heads": 2,
    "d_head": 16,
    "d_mlp": 64,
}


class Heard(Silent):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def held(family="llama", precision="fp32", seed=0, **changes):
    shape = SHAPE | ({"decoder_layers": 1} if family == "t5" else {}) | changes
    shape = {
        name: value
        for name, value in shape.items()
        if family != "lstm" or name in ("vocab_size", "context_length", "d_model", "layers")
    }
    return hold(tiny.randomised(FAMILIES[family].new(**shape), seed=seed), Holding(precision=precision))


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(compiled, "compiler", lambda: None)


@pytest.mark.parametrize("family", ["t5", "lstm"])
def test_networks_other_than_decoders_are_refused_or_left_as_they_are(family):
    network, heard = held(family), Heard()
    with pytest.raises(ConfigError, match=f"steps of a {family} model are not compiled"):
        compile_steps(network, heard.say)
    compile_if_it_pays(network, heard.say)
    assert not heard.lines
    assert network.held.step is None


def test_without_a_compiler_it_is_an_error_or_a_hint(no_compiler):
    network, heard = held(), Heard()
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler here to compile steps with; install g\+\+"):
        compile_steps(network, heard.say)
    compile_if_it_pays(network, heard.say)
    assert heard.lines == [
        "there is no C++ compiler here to compile steps with; install g++, or use --compile no (without, they are slower)"
    ]


def test_a_compiler_that_fails_is_an_error_or_a_hint(monkeypatch):
    network, heard = held(), Heard()
    monkeypatch.setattr(compiled, "write", lambda *_: 1 / 0)
    with pytest.raises(ConfigError, match=r"steps could not be compiled here \(division by zero\); use --compile no"):
        compile_steps(network, heard.say)
    compile_if_it_pays(network, heard.say)
    assert heard.lines[-1].endswith("(division by zero); use --compile no (without, they are slower)")
    assert network.held.step is None
    assert network.encode(torch.tensor([[1, 2]])).shape == (1, 2, 32)  # its products are packed again


def test_a_large_model_is_compiled_if_it_is_asked_for(monkeypatch, no_compiler):
    network, heard = held(), Heard()
    monkeypatch.setattr(compiled, "LARGEST", network.held.nbytes - 1)
    compile_if_it_pays(network, heard.say)
    assert not heard.lines
    with pytest.raises(ConfigError):
        compile_steps(network, heard.say)


def test_a_model_that_may_learn_is_not_compiled():
    model = Model(tiny.randomised(FAMILIES["llama"].new(**SHAPE)), None)
    with pytest.raises(ConfigError, match="load it with a precision"):
        model.compile()


def test_a_fingerprint_is_of_weights_precision_and_shape():
    networks = [held(), held(seed=1), held(precision="bf16"), held(d_mlp=96), held("gpt2"), held(precision="int4")]
    marks = []
    for network in networks:
        with compiled.opened(network):
            marks.append(compiled.fingerprint(network))
    assert len(set(marks)) == len(marks)
    with compiled.opened(again := held()):
        assert compiled.fingerprint(again) == marks[0]


@pytest.mark.slow
def test_steps_are_kept_and_made_again_where_they_are_damaged(cache, monkeypatch):
    heard = Heard()
    compile_steps(first := held(), heard.say)
    compile_steps(held(), heard.say)
    assert heard.lines == ["compiling the model's step; this takes a minute, once"]
    assert first.held.step.sizes == (2, 4, 8, 16, 32, 64)
    assert others_ran(first.held.step, first)
    [file] = cache.glob(f"compiled/*/{STEP}")
    file.write_bytes(file.read_bytes()[:1000])
    compile_steps(again := held(), heard.say)
    assert len(heard.lines) == 2
    assert again.held.step is not None
    monkeypatch.setattr(compiled, "KEPT", 2.5 * file.stat().st_size)  # so that two stay
    for seed in (1, 2):
        compile_steps(held(seed=seed), heard.say)
    kept = [*cache.glob(f"compiled/*/{STEP}")]
    assert len(kept) == 2
    assert file not in kept  # the oldest


def others_ran(step, network):
    """Whether other threads of Python run during steps: they take over only where one lets go of Python's lock by itself."""
    inputs, beats, usual = (*rows_at(network, 64, 64), *drawn(network)), [], sys.getswitchinterval()

    def write():
        for _ in range(200):
            step.run(*inputs)

    sys.setswitchinterval(60)
    try:
        thread = threading.Thread(target=write)
        thread.start()
        while thread.is_alive():
            beats.append(time.monotonic())
            time.sleep(0)
        thread.join()
    finally:
        sys.setswitchinterval(usual)
    return len(beats) > 20
