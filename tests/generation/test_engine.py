"""The engine: what a request becomes is a function of the request alone, to the last bit, whatever else is under way."""

from functools import cache

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pellucid.core.errors import ConfigError
from pellucid.core.precision import Holding
from pellucid.generation import decoding
from pellucid.generation.compiled import compile_steps
from pellucid.generation.decoding import TILE
from pellucid.generation.engine import Engine
from pellucid.generation.generate import requested
from pellucid.generation.lookup import Lookup
from pellucid.generation.settings import Sampling
from pellucid.generation.text import Text
from pellucid.network.families import FAMILIES
from pellucid.network.holding import hold
from pellucid.text.tokenizer import Tokenizer

CONTEXT = 300
WIDE = {"d_model": 160, "layers": 2, "heads": 5, "kv_heads": 5, "d_head": 32, "d_mlp": 352, "tied": False}
SHAPES = {
    "qwen3": WIDE | {"kv_heads": 1},
    "gpt2": WIDE,
    "t5": WIDE | {"decoder_layers": 2},
    "lstm": {"d_model": 160, "layers": 2, "tied": False},
    "bag-of-words": {"d_model": 160, "layers": 2, "tied": False},
}
KINDS = [("qwen3", torch.float32), ("qwen3", torch.bfloat16), ("gpt2", torch.bfloat16), ("t5", torch.bfloat16)]
KINDS += [("lstm", torch.float32), ("bag-of-words", torch.float32)]
KINDS += [("qwen3", "fp32"), ("gpt2", "bf16"), ("qwen3", "int8"), ("gpt2", "int4"), ("t5", "int8"), ("lstm", "bf16")]
COMPILED = [("qwen3", "fp32 compiled")]
COMPILED_SLOWLY = [("gpt2", "bf16 compiled"), ("qwen3", "int8 compiled"), ("gpt2", "int4 compiled")]
ALL_KINDS = [*KINDS, *COMPILED, *(pytest.param(kind, marks=pytest.mark.slow) for kind in COMPILED_SLOWLY)]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train_bpe(tiny.DOCUMENTS, 400)


@pytest.fixture(scope="module")
def networks(tokenizer):
    """Networks by kind, each made when it is first asked for."""

    @cache
    def make(family, dtype):
        network = tiny.randomised(
            FAMILIES[family].new(vocab_size=tokenizer.vocab_size, context_length=CONTEXT, **SHAPES[family])
        )
        with torch.no_grad():
            network.scorer.weight.mul_(0.3)  # so that drawing matters
        if isinstance(dtype, str):
            precision, *compiled = dtype.split()
            hold(network, Holding(precision=precision))
            if compiled:
                compile_steps(network, print)
        else:
            network.compute_in(dtype)
        return network

    return make


def engine(network, tokenizer, slots):
    return Engine(network, known=tokenizer.vocab_size, slots=slots, length=CONTEXT, sources=CONTEXT)


def text(network, tokenizer, prompt, most=8, **options):
    options = {"sampling": Sampling(seed=1)} | options
    request = requested(network, tokenizer, prompt, most, options.pop("sampling"), (), frozenset(), **options)
    return Text(request, tokenizer)


def finish(engine, *texts):
    for one in texts:
        engine.add(one)
    while engine.busy:
        engine.step()
    return [one.result() for one in texts]


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.7, 1.0, 1.6]),
    top_k=st.none() | st.integers(2, 60),
    top_p=st.sampled_from([1.0, 0.9]),
    typical_p=st.sampled_from([1.0, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 99),
) | st.just(Sampling(temperature=0.0))


@st.composite
def loads(draw):
    """Requests with the steps at which they come, some with a beginning in common, some that are given up again."""
    shared = draw(st.lists(st.integers(3, 399), min_size=3 * TILE, max_size=3 * TILE))
    found = []
    for _ in range(draw(st.integers(1, 7))):
        begins = draw(st.sampled_from([0, 0, TILE, TILE + 5, 2 * TILE, 3 * TILE]))
        rest = draw(st.lists(st.integers(3, 399), min_size=1, max_size=90))
        given_up = draw(st.none() | st.none() | st.integers(0, 12))
        found.append((draw(st.integers(0, 9)), shared[:begins] + rest, draw(samplings), draw(st.integers(1, 14)), given_up))
    return found


@pytest.mark.parametrize("kind", ALL_KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
@settings(max_examples=12, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(load=loads(), slots=st.sampled_from([1, 3, 20]))
def test_under_any_load_a_request_gives_the_bits_that_it_gives_alone(networks, tokenizer, kind, load, slots):
    network, busy = networks(*kind), engine(networks(*kind), tokenizer, slots)
    coming = [(come, text(network, tokenizer, prompt, most, sampling=s), gone) for come, prompt, s, most, gone in load]
    step = 0
    while busy.busy or step < 30:
        for come, one, gone in coming:
            if come == step:
                busy.add(one)
            if gone is not None and come + gone == step:
                busy.cancel(one)
        busy.step()
        step += 1
    assert sorted(busy.free) == list(range(slots))  # no slot leaks
    for (_, prompt, sampling, most, gone), (_, one, _) in zip(load, coming, strict=True):
        if one.finish_reason:
            [alone] = finish(engine(network, tokenizer, 1), text(network, tokenizer, prompt, most, sampling=sampling))
            assert one.result() == alone  # log-probabilities too, bit for bit
        else:
            assert gone is not None


@pytest.mark.parametrize(
    "kind", [("qwen3", torch.float32), ("gpt2", torch.bfloat16), ("gpt2", "int4"), ("qwen3", "int8")], ids=str
)
@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_guesses_change_no_bit_and_save_steps(networks, tokenizer, kind, temperature, monkeypatch):
    """A text that repeats itself is written in fewer steps; one token at a time it would be the same."""
    network, prompts = networks(*kind), [[5, 6, 7, 8] * 6, [9, 10, 11] * 9, [40, 41] * 5]
    options = {"most": 40, "sampling": Sampling(temperature=temperature, seed=3)}

    def write(engine):
        texts = [text(network, tokenizer, prompt, top_logprobs=2, **options) for prompt in prompts]
        for one in texts:
            engine.add(one)
        steps = 0
        while engine.busy:
            engine.step()
            steps += 1
        return [one.result() for one in texts], steps

    guessed, fewer = write(engine(network, tokenizer, 1))
    monkeypatch.setattr(Lookup, "guess", lambda self, most: [])
    plain, steps = write(engine(network, tokenizer, 1))
    assert guessed == plain
    assert steps == sum(len(one.tokens) + (one.finish_reason == "stop") for one in plain)
    if temperature == 0:
        assert fewer < steps


@given(tokens=st.lists(st.integers(0, 3), max_size=40), most=st.integers(-1, 5))
def test_a_guess_is_what_followed_the_same_tokens_last(tokens, most):
    expected = []
    for gram in (3, 2):
        places = [at for at in range(gram, len(tokens)) if tokens[at - gram : at] == tokens[-gram:]]
        if len(tokens) >= gram and places and not expected:
            expected = tokens[places[-1] : places[-1] + max(0, most)]
            break
    assert Lookup(tokens).guess(most) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [2, 16])
def test_more_texts_than_a_pass_has_rows_are_written_as_if_alone(networks, tokenizer, dtype, rows, monkeypatch):
    monkeypatch.setattr(decoding, "sizes_of", lambda network: (rows,))
    network = networks("qwen3", dtype)
    prompts = [[7 + i] * (1 + 5 * i) for i in range(21)]
    together = finish(engine(network, tokenizer, 21), *(text(network, tokenizer, prompt) for prompt in prompts))
    for prompt, one in zip(prompts, together, strict=True):
        assert finish(engine(network, tokenizer, 2), text(network, tokenizer, prompt)) == [one]


def test_a_beginning_that_is_known_is_not_read_again(networks, tokenizer):
    network = networks("qwen3", torch.float32)
    known, prompt = engine(network, tokenizer, 3), [*range(10, 10 + 2 * TILE), 5, 6]
    first, again, other, exact = (
        text(network, tokenizer, ids) for ids in (prompt, prompt, [*prompt[: TILE + 9], 7], prompt[: 2 * TILE])
    )
    finish(known, first)
    reads, read = [], known.decoding.read
    known.decoding.read = lambda slot, tokens, start: reads.append((start, len(tokens))) or read(slot, tokens, start)
    assert finish(known, again) == [first.result()]
    assert reads == [(2 * TILE, 2)]
    finish(known, other)
    finish(known, exact)  # its last tile is read again, for what follows from it
    assert reads[1:] == [(TILE, 10), (TILE, TILE)]
    assert [one.cached for one in (first, again, other, exact)] == [0, 2 * TILE, TILE, TILE]


def test_a_beginning_is_taken_from_a_text_that_is_still_under_way(networks, tokenizer):
    network = networks("qwen3", torch.float32)
    both, prompt = engine(network, tokenizer, 2), [*range(10, 10 + TILE), 5]
    first, second = (text(network, tokenizer, ids, most=20) for ids in (prompt, [*prompt, 6]))
    both.add(first)
    both.step()
    both.step()
    assert finish(both, second) == finish(engine(network, tokenizer, 1), text(network, tokenizer, [*prompt, 6], most=20))
    assert second.cached == TILE
    assert [first.result()] == finish(engine(network, tokenizer, 1), text(network, tokenizer, prompt, most=20))


def test_long_prompts_do_not_hold_up_those_that_write(networks, tokenizer):
    network = networks("qwen3", torch.float32)
    busy, writer = engine(network, tokenizer, 4), text(network, tokenizer, [5], most=20)
    busy.add(writer)
    busy.step()
    for seed in range(3):
        busy.add(text(network, tokenizer, [seed + 9] * 250))
    for step in range(1, 5):
        assert len(writer.tokens) == step
        busy.step()


def test_choices_of_a_prompt_differ_and_the_first_is_the_only_one(networks, tokenizer):
    network = networks("qwen3", torch.bfloat16)
    texts = [text(network, tokenizer, [5, 6, 7], choice=choice, most=12) for choice in range(4)]
    found = finish(engine(network, tokenizer, 4), *texts)
    assert len({tuple(one.tokens) for one in found}) == 4
    assert finish(engine(network, tokenizer, 1), text(network, tokenizer, [5, 6, 7], most=12)) == found[:1]


@torch.no_grad()
def test_log_probabilities_are_those_of_one_forward_pass(networks, tokenizer):
    network, prompt = networks("qwen3", torch.float32), [*range(20, 20 + TILE + 30)]
    asked = text(network, tokenizer, prompt, top_logprobs=3, prompt_logprobs=True)
    [found] = finish(engine(network, tokenizer, 2), asked)
    logprobs = network(torch.tensor([prompt + found.tokens])).logits[0].log_softmax(dim=-1)
    of_all = logprobs[:-1].gather(1, torch.tensor([prompt + found.tokens])[0, 1:, None])[:, 0].tolist()
    assert found.prompt_logprobs + found.logprobs == pytest.approx(of_all, abs=1e-4)
    for place, top in enumerate(found.top_logprobs):
        best = logprobs[len(prompt) - 1 + place].topk(3)
        assert [*top] == best.indices.tolist()
        assert [*top.values()] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_a_token_that_the_tokenizer_does_not_know_is_never_written(tokenizer):
    """Published models have scores for more tokens than their tokenizers, for rounder numbers."""
    network = tiny.randomised(tiny.config(tokenizer.vocab_size + 60, context_length=64))
    prompts = [text(network, tokenizer, [5], most=20, sampling=Sampling(seed=seed, temperature=3.0)) for seed in range(12)]
    written = [token for one in finish(engine(network, tokenizer, 12), *prompts) for token in one.tokens]
    assert len(written) > 100
    assert max(written) < tokenizer.vocab_size


def test_a_text_is_forgotten_wherever_it_stands(networks, tokenizer):
    network = networks("qwen3", torch.float32)
    one = engine(network, tokenizer, 1)
    writing, waiting, reading = (text(network, tokenizer, ids) for ids in ([5], [6], [7] * 200))
    one.add(writing)
    one.add(waiting)
    one.step()
    one.cancel(waiting)
    one.cancel(writing)
    one.cancel(writing)  # twice is once
    assert not one.busy
    one.add(reading)
    one.step()
    one.cancel(reading)
    assert not one.busy
    assert [*one.free] == [0]
    assert not reading.tokens


def test_a_prompt_alone_can_be_asked_about_up_to_the_whole_context(networks, tokenizer):
    network = networks("gpt2", torch.bfloat16)
    prompt = (tokenizer.encode("Down, down, down. ") * 99)[:CONTEXT]
    found = text(network, tokenizer, prompt, most=0, prompt_logprobs=True, top_logprobs=2)
    [result] = finish(engine(network, tokenizer, 1), found)
    assert (result.tokens, result.finish_reason, len(result.prompt_logprobs)) == ([], "length", CONTEXT - 1)
    for top, token, logprob in zip(found.prompt_top_logprobs, prompt[1:], result.prompt_logprobs, strict=True):
        assert max(top.values()) >= logprob  # to the last bit: who asks whether a token is the likeliest compares them
        assert top.get(token, logprob) == logprob
    with pytest.raises(ConfigError, match=r"^max_tokens must be at least 1, not 0$"):
        text(network, tokenizer, prompt, most=0)


def test_the_token_that_ended_a_text_is_known(networks, tokenizer):
    bias = ((tokenizer.end_of_text, 1e4),)
    ended = text(networks("gpt2", torch.bfloat16), tokenizer, [5, 6], sampling=Sampling(logit_bias=bias), top_logprobs=2)
    [result] = finish(engine(networks("gpt2", torch.bfloat16), tokenizer, 1), ended)
    assert (result.tokens, result.finish_reason) == ([], "stop")
    token, logprob, top = ended.ending
    assert token == tokenizer.end_of_text
    assert logprob < 0
    assert len(top) == 2


def test_a_compiled_step_is_the_step_within_rounding(networks, tokenizer):
    prompts = [[5, 6, 7, 8] * 6, [*range(20, 20 + TILE + 30)], [40]]
    for prompt in prompts:
        found, expected = (
            finish(
                engine(network, tokenizer, 4),
                text(network, tokenizer, prompt, 20, sampling=Sampling(temperature=0), top_logprobs=5),
            )[0]
            for network in (networks("qwen3", "fp32 compiled"), networks("qwen3", "fp32"))
        )
        assert found.tokens == expected.tokens
        assert found.logprobs != expected.logprobs  # it is another step
        torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=0, atol=1e-5)
        for ours, theirs in zip(found.top_logprobs, expected.top_logprobs, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)
