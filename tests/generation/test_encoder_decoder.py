"""T5 writes what transformers' T5 writes, greedily and in beams, alone and in a batch, with and without the cache."""

import pytest
import tiny
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from transformers import T5Config, T5ForConditionalGeneration
from transformers.utils import logging

from pellucid import api
from pellucid.core.errors import ConfigError, ModelError
from pellucid.generation import decoding
from pellucid.generation.generate import generate, stream
from pellucid.generation.settings import Sampling
from pellucid.generation.slots import Slots
from pellucid.network.families import FAMILIES
from pellucid.network.weights import load_network
from pellucid.text.tokenizer import Tokenizer

logging.set_verbosity_error()
logging.disable_progress_bar()

GREEDY = Sampling(temperature=0.0)
SENTINELS = tuple(f"<extra_id_{n}>" for n in range(5))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train_chars(tiny.DOCUMENTS, extra=SENTINELS)


@st.composite
def shapes(draw):
    return {
        "d_model": draw(st.integers(6, 24)),
        "d_kv": draw(st.integers(2, 8)),
        "d_ff": draw(st.integers(4, 32)),
        "num_layers": draw(st.integers(1, 2)),
        "num_decoder_layers": draw(st.integers(1, 2)),
        "num_heads": draw(st.integers(1, 3)),
        "relative_attention_num_buckets": draw(st.sampled_from([8, 32])),
        "feed_forward_proj": draw(st.sampled_from(["relu", "gated-gelu"])),
        "tie_word_embeddings": draw(st.booleans()),
    }


def models(shape, seed, folder, vocab_size, end):
    """A T5 of transformers with peaked scores, and the same one here."""
    config = T5Config(
        vocab_size=vocab_size, eos_token_id=end, pad_token_id=0, decoder_start_token_id=0, n_positions=32, **shape
    )
    theirs = T5ForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            peaked = 3.0 if name.startswith(("shared", "lm_head")) else 1.0
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, peaked * weight.shape[-1] ** -0.5, generator=generator)
        if theirs.lm_head.weight is not theirs.shared.weight:
            theirs.lm_head.weight[end] *= 1.5  # so that some texts end
    theirs.save_pretrained(folder)
    return theirs, load_network(folder)


@torch.no_grad()
def written(theirs, ids, end, **options):
    """What transformers writes, less start, end and filling, and whether it ended. Its cache fails with unequal halves."""
    out = theirs.generate(torch.tensor([ids]), do_sample=False, use_cache=False, **options)[0, 1:].tolist()
    return out[: out.index(end)] if end in out else out, end in out


@settings(
    max_examples=32, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow]
)
@given(
    shape=shapes(),
    seed=st.integers(0, 2**16),
    rows=st.lists(st.lists(st.integers(2, 50), min_size=1, max_size=14), min_size=2, max_size=3),
    limit=st.integers(3, 12),
)
def test_greedy_and_beams_are_transformers(tmp_path_factory, tokenizer, shape, seed, rows, limit):
    end = tokenizer.end_of_text
    theirs, network = models(shape, seed, tmp_path_factory.mktemp("t5"), tokenizer.vocab_size, end)
    together = generate(network, tokenizer, rows, max_tokens=limit, sampling=GREEDY)
    again = generate(network, tokenizer, rows, max_tokens=limit, sampling=GREEDY, cache=False)
    for ids, mine, uncached in zip(rows, together, again, strict=True):
        [alone] = generate(network, tokenizer, [ids], max_tokens=limit, sampling=GREEDY)
        expected, ended = written(theirs, ids, end, max_new_tokens=limit)
        assert mine.tokens == alone.tokens == uncached.tokens == expected
        assert mine.finish_reason == ("stop" if ended else "length")
        assert mine.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
        assert mine.logprobs == pytest.approx(uncached.logprobs, abs=1e-4)
    for beams in (2, 5):
        found = generate(network, tokenizer, rows[:1], max_tokens=limit, beams=beams)
        for ids, mine in zip(rows[:1], found, strict=True):
            expected, ended = written(theirs, ids, end, max_new_tokens=limit, num_beams=beams)
            assert (mine.tokens, mine.finish_reason) == (expected, "stop" if ended else "length")
            assert mine.logprobs == pytest.approx(own(theirs, ids, mine.tokens), abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_a_penalty_counts_what_is_written_and_not_what_is_read(tmp_path, tokenizer, seed):
    shape = {"d_model": 12, "d_kv": 4, "d_ff": 20, "num_layers": 1, "num_heads": 2}
    theirs, network = models(shape, seed, tmp_path, tokenizer.vocab_size, tokenizer.end_of_text)
    ids = list(range(1, 25))
    sampling = Sampling(temperature=0.0, repetition_penalty=1.8)
    [mine] = generate(network, tokenizer, [ids], max_tokens=10, sampling=sampling)
    expected, _ = written(theirs, ids, tokenizer.end_of_text, max_new_tokens=10, repetition_penalty=1.8)
    assert mine.tokens == expected
    assert mine.tokens != generate(network, tokenizer, [ids], max_tokens=10, sampling=GREEDY)[0].tokens


@torch.no_grad()
def own(theirs, ids, tokens):
    """The log-probability that transformers gives each token."""
    logits = theirs(torch.tensor([ids]), decoder_input_ids=torch.tensor([[0, *tokens]])).logits[0, :-1]
    return logits.log_softmax(-1)[range(len(tokens)), tokens].tolist()


@pytest.fixture(scope="module")
def network(tokenizer):
    shape = {"d_model": 24, "layers": 2, "decoder_layers": 2, "heads": 2, "kv_heads": 2, "d_head": 8, "d_mlp": 30}
    return tiny.randomised(FAMILIES["t5"].new(vocab_size=tokenizer.vocab_size, context_length=24, tied=False, **shape))


@pytest.mark.parametrize("seed", range(4))
def test_drawn_texts_are_the_same_in_company_and_without_the_cache(network, tokenizer, seed):
    rows = [[5, 6, 7, 8, 9, 10, 11], [12], [20, 21, 22], [30] * 24]
    sampling = Sampling(seed=seed, temperature=1.5, top_p=0.95, repetition_penalty=1.2)
    together = generate(network, tokenizer, rows, sampling=sampling)
    for ids, mine, uncached in zip(
        rows, together, generate(network, tokenizer, rows, sampling=sampling, cache=False), strict=True
    ):
        [alone] = generate(network, tokenizer, [ids], sampling=sampling)
        assert mine.tokens == alone.tokens == uncached.tokens
    other = generate(network, tokenizer, rows, sampling=Sampling(seed=seed + 1, temperature=1.5))
    assert [each.tokens for each in other] != [each.tokens for each in together]


def test_what_is_written_follows_from_what_is_read(network, tokenizer):
    texts = {
        generate(network, tokenizer, [prompt], max_tokens=20, sampling=GREEDY)[0].text
        for prompt in ("Alice", "Rabbit", "a b c")
    }
    assert len(texts) == 3


def test_a_text_is_read_with_its_gaps_and_its_end(network, tokenizer):
    ids = [*tokenizer.encode("Al"), tokenizer.sentinels[0], *tokenizer.encode("e"), tokenizer.end_of_text]
    expected = generate(network, tokenizer, [ids], sampling=GREEDY)
    assert generate(network, tokenizer, ["Al<extra_id_0>e"], sampling=GREEDY) == expected


def test_the_text_says_which_gap_it_is_about(network, tokenizer):
    for seed in range(30):
        [mine] = generate(network, tokenizer, ["Alice"], sampling=Sampling(seed=seed, temperature=3.0))
        if set(mine.tokens) & set(tokenizer.sentinels):
            assert "<extra_id_" in mine.text
            assert mine.text == tokenizer.decode(mine.tokens, special=True)
            break
    else:
        pytest.fail("no text has a sentinel")


def test_a_stream_is_the_text_in_pieces(network, tokenizer):
    counts = []
    for sampling in (GREEDY, *(Sampling(seed=seed, temperature=2.0) for seed in range(5))):
        [whole] = generate(network, tokenizer, ["Alice was"], sampling=sampling)
        pieces = list(stream(network, tokenizer, "Alice was", sampling=sampling))
        assert "".join(pieces) == whole.text
        counts.append(len(pieces))
    assert max(counts) > 10


def test_a_stop_string_ends_an_answer(network, tokenizer):
    [whole] = generate(network, tokenizer, ["Alice was"], sampling=GREEDY, max_tokens=15)
    stop = whole.text[4:6]
    for beams in (1, 2):
        [free] = generate(network, tokenizer, ["Alice was"], max_tokens=15, beams=beams, sampling=GREEDY)
        stop = free.text[4:6]
        [mine] = generate(network, tokenizer, ["Alice was"], max_tokens=15, stop=stop, beams=beams, sampling=GREEDY)
        assert (mine.text, mine.finish_reason) == (free.text[: free.text.index(stop)], "stop")


class TestRoom:
    def test_the_prompt_may_fill_the_context_and_the_answer_too(self, network, tokenizer):
        [mine] = generate(network, tokenizer, [[5] * 24], max_tokens=23, sampling=GREEDY)
        assert len(mine.tokens) == 23 or mine.finish_reason == "stop"
        [most] = generate(network, tokenizer, [[5] * 24], sampling=GREEDY)
        assert most == mine

    @pytest.mark.parametrize("beams", [1, 3])
    def test_a_prompt_that_is_too_long(self, network, tokenizer, beams):
        with pytest.raises(ConfigError) as caught:
            generate(network, tokenizer, [[5] * 25], beams=beams)
        assert str(caught.value) == "the prompt has 25 tokens, but the model's context is 24; shorten it"

    @pytest.mark.parametrize("beams", [1, 3])
    def test_an_answer_that_is_too_long(self, network, tokenizer, beams):
        with pytest.raises(ConfigError) as caught:
            generate(network, tokenizer, [[5] * 20], max_tokens=24, beams=beams)
        assert str(caught.value) == "an answer of 24 tokens exceeds the model's context of 24; use --max-tokens 23 or less"


def test_an_empty_prompt_is_its_end_alone(network, tokenizer):
    assert generate(network, tokenizer, [""], sampling=GREEDY) == generate(network, tokenizer, [[0]], sampling=GREEDY)
    assert tokenizer.end_of_text == 0


def test_a_model_says_what_it_cannot_do(network, tokenizer):
    model = api.Model(network, tokenizer)
    for call, message in (
        (lambda: model.score("Alice"), "a t5 model of this kind gives no probability to a text; use a decoder"),
        (lambda: model.embed("Alice"), "embedding texts with a t5 model is not supported; use an encoder or a decoder"),
        (
            lambda: model.fill("[MASK]"),
            "this t5 model fills no masks, since it has no masked-language-model head; use generate",
        ),
    ):
        with pytest.raises(ModelError) as caught:
            call()
        assert str(caught.value).startswith(message)
    with pytest.raises(ConfigError, match=r"^a t5 model takes decoder_ids"):
        model(torch.zeros(1, 3, dtype=torch.long))


@pytest.mark.parametrize("beams", [1, 2])
def test_the_answer_needs_no_room_for_the_prompt(network, tokenizer, monkeypatch, beams):
    lengths = []
    monkeypatch.setattr(decoding, "Slots", lambda *_, **options: lengths.append(options["length"]) or Slots(*_, **options))
    generate(network, tokenizer, [[5] * 24], max_tokens=3, beams=beams)
    assert lengths == [1 + 3]
