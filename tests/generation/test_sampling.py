"""From logits to a token: the distributions are those of transformers, and what is drawn follows them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from pellucid.core.errors import ConfigError
from pellucid.generation import sampling
from pellucid.generation.sampling import Draw, adjusted, choose, distribution, uniform
from pellucid.generation.settings import Sampling

VOCAB = 40


def some_logits(seed=0, batch=3, scale=3.0):
    return torch.randn(batch, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


def theirs(logits, seen, options):
    """The same options through transformers' processors, in the order that its `generate` applies them."""
    steps = LogitsProcessorList()
    if options.repetition_penalty != 1.0:
        steps.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    steps.append(TemperatureLogitsWarper(float(options.temperature)))
    if options.top_k is not None:
        steps.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        steps.append(TopPLogitsWarper(options.top_p))
    if options.min_p > 0:
        steps.append(MinPLogitsWarper(options.min_p))
    if options.typical_p < 1:
        steps.append(TypicalLogitsWarper(options.typical_p))
    return steps(seen, logits).softmax(-1)


options = st.builds(
    Sampling,
    repetition_penalty=st.just(1.0) | st.floats(0.5, 3.0),
    temperature=st.floats(0.05, 5.0),
    top_k=st.none() | st.integers(1, 2 * VOCAB),
    top_p=st.just(1.0) | st.floats(0.01, 1.0),
    min_p=st.just(0.0) | st.floats(0.0, 1.0),
    typical_p=st.just(1.0) | st.floats(0.01, 0.99),
)


@settings(max_examples=300, derandomize=True)  # at a filter's very edge two orders of rounding may differ
@given(options=options, seed=st.integers(0, 999), seen=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8))
def test_the_distribution_is_that_of_transformers(options, seed, seen):
    logits, draw = some_logits(seed), Draw(sampling=options, read=seen)
    ours = distribution(torch.stack([adjusted(row, draw) for row in logits]), options)
    torch.testing.assert_close(ours, theirs(logits, torch.tensor([seen] * 3), options), rtol=1e-4, atol=1e-6)


@settings(max_examples=200)
@given(options=options, seed=st.integers(0, 999), scale=st.sampled_from([0.0, 1.0, 50.0, 1e4]))
def test_it_is_a_distribution_and_never_loses_the_likeliest(options, seed, scale):
    logits = some_logits(seed, scale=scale)
    probabilities = distribution(logits, options)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3))
    assert (probabilities >= 0).all()
    if options.typical_p == 1:  # the likeliest token may be less surprising than is typical
        assert (probabilities.gather(1, logits.argmax(-1)[:, None]) > 0).all()


def draws(logits, count, **options):
    """Token counts over many seeds."""
    drawn = torch.zeros(VOCAB)
    for seed in range(count):
        drawn[choose(logits, [Draw(sampling=Sampling(seed=seed, **options), written=[0] * (seed % 7))])] += 1
    return drawn


@pytest.mark.parametrize("filters", [{}, {"temperature": 0.5, "top_k": 12}, {"top_p": 0.8, "min_p": 0.02}])
def test_what_is_drawn_over_many_seeds_follows_the_distribution(filters):
    logits, count = some_logits(5, batch=1, scale=1.5), 4000
    expected = distribution(logits, Sampling(**filters))[0] * count
    observed = draws(logits, count, **filters)
    assert observed[expected == 0].sum() == 0
    large = expected >= 5
    rest = torch.stack([observed[~large].sum(), expected[~large].sum()])
    statistic = float(((observed[large] - expected[large]) ** 2 / expected[large]).sum())
    statistic += float((rest[0] - rest[1]) ** 2 / rest[1]) if rest[1] >= 5 else 0.0
    freedom = int(large.sum()) - 1 + int(rest[1] >= 5)
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)  # chi-square; the seeds are fixed, so it holds or not
    assert statistic > freedom - 4 * math.sqrt(2 * freedom)  # nor is it too good to be random


def test_random_numbers_are_uniform_and_do_not_repeat_between_seeds_or_places():
    table = torch.tensor([[uniform(seed, index) for index in range(50)] for seed in range(80)], dtype=torch.float64)
    assert table.unique().numel() == table.numel()
    assert ((table >= 0) & (table < 1)).all()
    counts = torch.histc(table, 20, 0, 1)
    assert float(((counts - 200) ** 2 / 200).sum()) < 19 + 4 * math.sqrt(38)
    for shifted in (table[1:, :] * 1, table[:, 1:]):
        base = table[:-1, :] if shifted.shape[0] < 80 else table[:, :-1]
        assert abs(float(torch.corrcoef(torch.stack([base.flatten(), shifted.flatten()]))[0, 1])) < 0.06


def philox(key, counter):
    """Philox4x64-10 written out from the paper (Salmon et al., 2011), first of four words."""
    words, keys, mask = [counter, 0, 0, 0], [key, 0], 2**64 - 1
    for _ in range(10):
        low, high = 0xD2E7470EE14C6C93 * words[0], 0xCA5A826395121157 * words[2]
        words = [(high >> 64) ^ words[1] ^ keys[0], high & mask, (low >> 64) ^ words[3] ^ keys[1], low & mask]
        keys = [(keys[0] + 0x9E3779B97F4A7C15) & mask, (keys[1] + 0xBB67AE8584CAA73B) & mask]
    return words[0]


@given(seed=st.integers(0, 2**63 - 1), index=st.integers(0, 10**6))
def test_random_numbers_are_a_function_of_seed_and_place_that_no_version_of_numpy_changes(seed, index):
    assert uniform(seed, index) == (philox(seed, index + 1) >> 11) / 2**53  # numpy counts from one


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("likely", [0, 17, VOCAB - 1])
def test_the_ends_of_the_random_numbers_draw_no_impossible_token(monkeypatch, number, likely):
    monkeypatch.setattr(sampling, "uniform", lambda seed, index, choice: number)
    logits = torch.full((1, VOCAB), -math.inf)
    logits[0, likely] = 1.0
    assert choose(logits, [Draw(sampling=Sampling())]).tolist() == [likely]
    for seed in range(50):
        drawn = int(choose(some_logits(seed, batch=1), [Draw(sampling=Sampling(top_k=5))]))
        assert distribution(some_logits(seed, batch=1), Sampling(top_k=5))[0, drawn] > 0


@pytest.mark.parametrize("temperature", [0.0, 1e-3, 1e-10, 1e-40])
def test_as_temperature_falls_the_likeliest_token_remains(temperature):
    logits = some_logits(2)
    assert choose(logits, [Draw(sampling=Sampling(temperature=temperature))] * 3).tolist() == logits.argmax(-1).tolist()


def test_a_penalty_counts_at_temperature_zero_too():
    logits = torch.tensor([[3.0, 2.0, -1.0, -2.0]])
    options = Sampling(temperature=0.0, repetition_penalty=2.0)
    draw = Draw(sampling=options, read=[0, 0, 3])
    assert choose(logits, [draw]).tolist() == [1]
    assert adjusted(logits[0], draw).tolist() == [1.5, 2.0, -1.0, -4.0]
    assert logits.tolist() == [[3.0, 2.0, -1.0, -2.0]]  # not changed in place


@given(
    written=st.lists(st.integers(0, VOCAB - 1), max_size=12),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), max_size=4),
)
def test_penalties_and_biases_are_those_of_openais_interface(written, presence, frequency, bias):
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, c over what is written, not over the prompt."""
    asked = Sampling.of({"presence_penalty": presence, "frequency_penalty": frequency, "logit_bias": bias})
    [logits] = some_logits(3, batch=1)
    expected = [
        float(logits[j]) - written.count(j) * frequency - (j in written) * presence + bias.get(j, 0.0) for j in range(VOCAB)
    ]
    found = adjusted(logits, Draw(sampling=asked, read=[0, 1, 2, *written], written=written))
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_a_banned_token_is_never_drawn_and_a_wanted_one_always():
    logits = some_logits(4, batch=1)
    likeliest = int(logits.argmax())
    for seed in range(30):
        banned = Draw(sampling=Sampling.of({"seed": seed, "logit_bias": {likeliest: -100}}))
        wanted = Draw(sampling=Sampling.of({"seed": seed, "logit_bias": {7: 100}}))
        assert int(choose(logits, [banned])) != likeliest
        assert int(choose(logits, [wanted])) == 7


def test_texts_with_settings_of_their_own_draw_as_if_alone():
    logits = some_logits(6, batch=5)
    draws = [
        Draw(sampling=Sampling(seed=3)),
        Draw(sampling=Sampling(temperature=0.0)),
        Draw(sampling=Sampling(seed=3, top_p=0.5), written=[4]),
        Draw(sampling=Sampling(seed=9, repetition_penalty=2.0), read=[1, 2]),
        Draw(sampling=Sampling(seed=3), choice=1),
    ]
    alone = [int(choose(logits[row : row + 1], [draw])) for row, draw in enumerate(draws)]
    assert choose(logits, draws).tolist() == alone
    assert choose(logits[[4, 2, 0, 1, 3]], [draws[n] for n in (4, 2, 0, 1, 3)]).tolist() == [alone[n] for n in (4, 2, 0, 1, 3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"presence_penalty": math.inf}, "presence_penalty must be a finite number, not inf"),
        ({"frequency_penalty": math.nan}, "frequency_penalty must be a finite number, not nan"),
        ({"typical_p": 0.0}, "typical_p must be above 0 and at most 1, not 0.0"),
        (
            {"logit_bias": ((3, -math.inf),)},
            "the logit_bias of token 3 must be a finite number, not -inf; -100 is enough to ban it",
        ),
        ({"temperature": -0.1}, "temperature must be 0 or more, not -0.1"),
        ({"temperature": math.nan}, "temperature must be 0 or more, not nan"),
        ({"temperature": math.inf}, "temperature must be 0 or more, not inf"),
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
        ({"top_k": -3}, "top_k must be at least 1, not -3"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0.0"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1, not 1.1"),
        ({"top_p": math.nan}, "top_p must be above 0 and at most 1, not nan"),
        ({"min_p": -0.1}, "min_p must be from 0 to 1, not -0.1"),
        ({"min_p": 1.5}, "min_p must be from 0 to 1, not 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0, not 0.0"),
        ({"repetition_penalty": math.inf}, "repetition_penalty must be above 0, not inf"),
        ({"seed": -1}, "seed must be from 0 to 2^63 - 1, not -1"),
        ({"seed": 2**63}, "seed must be from 0 to 2^63 - 1, not 9223372036854775808"),
        (
            {"temperature": 0.0, "top_k": 5},
            "top_k, top_p, min_p and typical_p have no effect at temperature 0; leave them out or raise the temperature",
        ),
    ],
)
def test_a_setting_that_makes_no_sense_is_one_sentence_with_its_value(options, message):
    with pytest.raises(ConfigError) as caught:
        Sampling(**options)
    assert str(caught.value) == message
