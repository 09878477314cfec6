"""What decodes: kept keys, kept states, kept nothing; networks that only we have write the same in every way."""

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid import api
from pellucid.core.errors import ConfigError, ModelError
from pellucid.generation.decoding import Recurring, Rereading, advance_all, begin_decoding, read_all
from pellucid.generation.generate import generate, stream
from pellucid.generation.settings import Sampling
from pellucid.network.families import FAMILIES
from pellucid.text.tokenizer import Tokenizer

GREEDY = Sampling(temperature=0.0)
OURS = ["lstm", "bag-of-words"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train_chars(tiny.DOCUMENTS)


@pytest.fixture(scope="module")
def networks(tokenizer):
    shape = {"vocab_size": tokenizer.vocab_size, "context_length": 32, "d_model": 20, "layers": 2, "tied": False}
    return {name: tiny.randomised(FAMILIES[name].new(**shape)) for name in OURS}


rows = st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=20), min_size=1, max_size=5)
samplings = st.sampled_from(
    [GREEDY, Sampling(seed=3), Sampling(seed=8, temperature=2.0, top_k=9), Sampling(temperature=0, repetition_penalty=1.5)]
)


@pytest.mark.parametrize("family", OURS)
@settings(max_examples=25, derandomize=True)
@given(prompts=rows, sampling=samplings, limit=st.none() | st.integers(1, 12))
def test_company_and_what_is_kept_change_no_token(networks, tokenizer, family, prompts, sampling, limit):
    options = {"max_tokens": limit, "sampling": sampling}
    together = generate(networks[family], tokenizer, prompts, **options)
    uncached = generate(networks[family], tokenizer, prompts, cache=False, **options)
    for prompt, mine, other in zip(prompts, together, uncached, strict=True):
        [alone] = generate(networks[family], tokenizer, [prompt], **options)
        assert mine.tokens == other.tokens == alone.tokens
        assert mine.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
        assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert mine.finish_reason == other.finish_reason == alone.finish_reason


@pytest.mark.parametrize("family", OURS)
@torch.no_grad()
def test_log_probabilities_are_the_networks_own(networks, tokenizer, family):
    ids = tokenizer.encode("Alice was ")
    [mine] = generate(networks[family], tokenizer, [ids], sampling=Sampling(seed=5), max_tokens=15)
    logprobs = networks[family](torch.tensor([ids + mine.tokens])).logits[0].log_softmax(-1)
    expected = [float(logprobs[len(ids) - 1 + i, token]) for i, token in enumerate(mine.tokens)]
    assert mine.logprobs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", OURS)
def test_a_seed_decides_the_text(networks, tokenizer, family):
    texts = [generate(networks[family], tokenizer, ["Alice"], sampling=Sampling(seed=seed))[0].text for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("family", OURS)
def test_a_stream_is_the_text_in_pieces(networks, tokenizer, family):
    for options in ({"sampling": GREEDY, "max_tokens": 12}, {"sampling": Sampling(seed=2), "stop": "e"}):
        [whole] = generate(networks[family], tokenizer, ["Alice"], **options)
        assert "".join(stream(networks[family], tokenizer, "Alice", **options)) == whole.text


@pytest.mark.parametrize("family", OURS)
def test_the_context_is_a_limit_for_them_too(networks, tokenizer, family):
    with pytest.raises(ConfigError, match=r"^the prompt has 32 tokens, but the model's context is 32 and must hold the"):
        generate(networks[family], tokenizer, ["a" * 32])
    with pytest.raises(ConfigError, match=r"use --max-tokens 27 or less$"):
        generate(networks[family], tokenizer, ["Alice"], max_tokens=28)
    [mine] = generate(networks[family], tokenizer, ["Alice"], sampling=GREEDY)
    assert len(mine.tokens) == 27 or mine.finish_reason == "stop"


def test_a_state_is_read_once_and_words_again(networks):
    """An LSTM that keeps its state reads one token per step, without it the whole text, as a bag of words does."""
    kinds = {name: type(begin_decoding(network, slots=2, length=9)) for name, network in networks.items()}
    assert kinds == {"lstm": Recurring, "bag-of-words": Rereading}
    assert type(begin_decoding(networks["lstm"], slots=1, length=9, cache=False)) is Rereading


@torch.no_grad()
def test_chosen_rows_go_on_from_their_own_states(networks):
    decoding = begin_decoding(networks["lstm"], slots=3, length=9)
    for slot, prompt in enumerate([[4, 5, 6], [7]]):
        read_all(decoding, slot, decoding.begin(slot, prompt))
    decoding.choose([1, 0, 1])
    found = advance_all(decoding, [0, 1, 2], [1, 3, 1], [8, 9, 10])
    for row, ids in enumerate([[7, 8], [4, 5, 6, 9], [7, 10]]):
        expected = networks["lstm"].encode(torch.tensor([ids]))[0, -1]
        torch.testing.assert_close(found[row], expected)


@torch.no_grad()
def test_chosen_rows_of_an_encoder_decoder_go_on_with_their_own_texts():
    shape = {"d_model": 20, "layers": 1, "decoder_layers": 2, "heads": 2, "kv_heads": 2, "d_head": 8, "d_mlp": 30}
    network = tiny.randomised(FAMILIES["t5"].new(vocab_size=40, context_length=16, tied=False, **shape))
    prompts = [[4, 5, 6], [7]]
    for cache in (True, False):
        decoding = begin_decoding(network, slots=4, length=8, sources=3, cache=cache)
        for slot, prompt in enumerate(prompts):
            first = decoding.begin(slot, prompt)
            assert first == [0]
            read_all(decoding, slot, first)
        decoding.choose([1, 0, 1, 1])
        advance_all(decoding, [0, 1, 2, 3], [1] * 4, [8, 9, 10, 8])
        decoding.choose([2, 1])
        found = advance_all(decoding, [0, 1], [2, 2], [11, 12])
        for row, (source, ids) in enumerate([(1, [0, 10, 11]), (0, [0, 9, 12])]):
            expected = network.encode(torch.tensor([prompts[source]]), decoder_ids=torch.tensor([ids]))[0, -1]
            torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_does_not_write(tokenizer):
    shape = {"d_model": 20, "layers": 1, "heads": 2, "kv_heads": 2, "d_head": 10, "d_mlp": 30}
    network = tiny.randomised(FAMILIES["bert"].new(vocab_size=tokenizer.vocab_size, context_length=16, **shape))
    expected = "a bert model of this kind does not continue texts; use fill or embed"
    for call in (
        lambda: api.Model(network, tokenizer).generate("Alice", max_tokens=3),
        lambda: list(api.Model(network, tokenizer).stream("Alice", max_tokens=3)),
        lambda: api.Model(network, tokenizer).generate("Alice", max_tokens=3, beams=2),
    ):
        with pytest.raises(ModelError) as caught:
            call()
        assert str(caught.value) == expected


def test_a_model_has_beams_and_the_usual_options(networks, tokenizer):
    model = api.Model(networks["lstm"], tokenizer)
    found = model.generate(["Alice", "She"], max_tokens=5, beams=3)
    assert [each.tokens for each in found] == [
        model.generate(prompt, max_tokens=5, beams=3).tokens for prompt in ("Alice", "She")
    ]
    assert model.score("Alice was").shape == (9,)
