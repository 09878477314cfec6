"""One dial from a thousand parameters to 175 billion."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.core.errors import ConfigError
from pellucid.network.build import parameters
from pellucid.network.families import FAMILIES
from pellucid.network.presets import preset
from pellucid.network.sizes import EXAMPLES, PRESETS, parse_count, parse_size


def config(text, vocab_size=8192, tied=True):
    size = parse_size(text, vocab_size, tied=tied)
    return FAMILIES["qwen3"].new(
        vocab_size=vocab_size,
        context_length=256,
        d_model=size.d_model,
        layers=size.layers,
        heads=size.heads,
        kv_heads=size.heads,
        d_head=size.d_head,
        d_mlp=size.d_mlp,
        tied=tied,
    )


@settings(deadline=None)
@given(exponent=st.floats(6, 11.3), vocab_size=st.sampled_from([65, 4096, 8192]), tied=st.booleans())
def test_the_dial_gives_the_count_that_was_asked_for(exponent, vocab_size, tied):
    asked = 10**exponent
    if vocab_size * (1 if tied else 2) * 64 > asked / 2:
        return  # mostly embedding: few shapes are possible
    made = config(str(int(asked)), vocab_size, tied)
    assert parameters(made) == pytest.approx(asked, rel=0.1)
    assert made.d_head in (32, 64, 128)
    assert 10 <= made.d_model / made.layers <= 320


@pytest.mark.parametrize(("name", "count"), PRESETS.items())
def test_presets_are_as_large_as_they_say(name, count):
    assert parameters(config(name)) == pytest.approx(count, rel=0.06)


@pytest.mark.parametrize(("text", "count"), [("25M", 25e6), ("1.3b", 1.3e9), ("300k", 3e5), ("1000", 1000)])
def test_counts_are_read_as_people_write_them(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize(("text", "suggestion"), [("huge", ""), ("gpt2-xxl", " (did you mean gpt2-xl, gpt2-large, gpt2?)")])
def test_an_unknown_size_suggests_close_ones_and_lists_a_few(text, suggestion):
    with pytest.raises(ConfigError) as caught:
        config(text)
    assert str(caught.value) == (
        f"size {text!r} is not known{suggestion}; choose tiny, small, base, large, xl, a published model such as gpt2, "
        "bert-base, t5-small, qwen3-0.6b, or a number of parameters such as 25M"
    )


def test_the_names_that_an_error_lists_are_published_models():
    assert all(map(preset, EXAMPLES))


def test_a_size_below_its_embedding_is_refused_with_the_numbers():
    with pytest.raises(
        ConfigError, match=r"1,000 parameters is too small for a vocabulary of 8,192: its embedding alone has 262,144"
    ):
        config("1k")
