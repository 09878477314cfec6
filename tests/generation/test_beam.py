"""Beam search: transformers', token for token, in decoders; what a search by hand finds, in networks that only we have."""

from itertools import product

import numpy as np
import pytest
import tiny
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from pellucid.core.errors import ConfigError
from pellucid.generation.beam import search
from pellucid.generation.generate import generate
from pellucid.generation.settings import Sampling
from pellucid.network.families import FAMILIES
from pellucid.network.weights import save_network
from pellucid.text.tokenizer import Tokenizer

logging.set_verbosity_error()
logging.disable_progress_bar()


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train_chars(tiny.DOCUMENTS)


def config(family, vocab_size, **changes):
    shape = {"d_model": 16, "layers": 1, "heads": 2, "kv_heads": 2, "d_head": 8, "d_mlp": 24, "tied": False}
    if family in ("lstm", "bag-of-words"):
        shape = {"d_model": 16, "layers": 2, "tied": False}
    return FAMILIES[family].new(vocab_size=vocab_size, context_length=32, **shape | changes)


def peaked(config, seed, end):
    """A network whose scores lie far apart, and whose texts end now and then."""
    network = tiny.randomised(config, seed=seed)
    with torch.no_grad():
        network.scorer.weight.mul_(2.0)
        network.scorer.weight[end].mul_(1.5)
    return network


@settings(
    max_examples=30, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow]
)
@given(
    family=st.sampled_from(["llama", "gpt2", "qwen3"]),
    seed=st.integers(0, 2**16),
    ids=st.lists(st.integers(2, 50), min_size=1, max_size=12),
    limit=st.integers(1, 14),
)
def test_it_is_transformers_in_decoders(tmp_path_factory, tokenizer, family, seed, ids, limit):
    end, folder = tokenizer.end_of_text, tmp_path_factory.mktemp("model")
    network = peaked(config(family, tokenizer.vocab_size), seed, end)
    save_network(network, folder, end_of_text=end)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    for beams, penalty in ((2, 1.0), (3, 1.0), (5, 1.0), (3, 0.0), (3, 2.0), (2, -1.0)):
        options = {"num_beams": beams, "length_penalty": penalty, "max_new_tokens": limit, "pad_token_id": end}
        out = theirs.generate(torch.tensor([ids]), do_sample=False, eos_token_id=end, **options)[0, len(ids) :].tolist()
        found = search(network, ids, beams=beams, max_tokens=limit, ends=frozenset({end}), length_penalty=penalty)
        assert found.tokens == (out[: out.index(end)] if end in out else out), (beams, penalty)
        assert found.ended == (end in out)
        if penalty == 1.0:
            [mine] = generate(network, tokenizer, [ids], max_tokens=limit, beams=beams)
            assert mine.tokens == found.tokens
            assert mine.finish_reason == ("stop" if end in out else "length")


def by_hand(network, prompt, beams, steps, end):
    """Beam search that reads every text anew, without any of what is kept between steps."""
    rows, finished = [((), 0.0)], []
    for length in range(1, steps + 1):
        new = []
        for tokens, score in rows:
            with torch.no_grad():
                logprobs = network(torch.tensor([[*prompt, *tokens]])).logits[0, -1].log_softmax(-1)
            new += [((*tokens, token), score + float(logprob)) for token, logprob in enumerate(logprobs)]
        new = sorted(new, key=lambda pair: -pair[1])[: 2 * beams]
        finished += [(score / length, tokens) for tokens, score in new[:beams] if tokens[-1] == end or length == steps]
        finished = sorted(finished, reverse=True)[:beams]
        rows = [(tokens, score) for tokens, score in new if tokens[-1] != end][:beams]
        if len(finished) == beams and finished[-1][0] >= rows[0][1] / length:
            break
    return [token for token in finished[0][1] if token != end]


@pytest.mark.parametrize("family", ["lstm", "bag-of-words", "gpt2"])
@pytest.mark.parametrize("beams", [2, 4])
def test_what_is_kept_follows_the_beams(tokenizer, family, beams):
    """States, keys and values go with the row that they were computed for."""
    end, found = tokenizer.end_of_text, []
    for seed in range(6):
        network = peaked(config(family, tokenizer.vocab_size), seed, end)
        prompt = [7, 3 + seed, 20]
        found.append(search(network, prompt, beams=beams, max_tokens=9, ends=frozenset({end})))
        assert found[-1].tokens == by_hand(network, prompt, beams, 9, end)
    assert len({tuple(beam.tokens) for beam in found}) > 3


def test_enough_beams_find_the_likeliest_of_all_texts():
    """With as many beams as there are texts nothing is left out."""
    network = tiny.randomised(config("lstm", 4), seed=2)
    with torch.no_grad():
        logprobs = {}
        for text in product(range(4), repeat=3):
            scores = network(torch.tensor([[1, *text]])).logits[0].log_softmax(-1)
            logprobs[text] = float(sum(scores[i, token] for i, token in enumerate(text)))
    best = max(logprobs, key=logprobs.get)
    found = search(network, [1], beams=64, max_tokens=3, ends=frozenset())
    assert tuple(found.tokens) == best
    assert 3 * found.score == pytest.approx(logprobs[best], abs=1e-4)
    assert sum(found.logprobs) == pytest.approx(logprobs[best], abs=1e-4)


def test_beams_find_likelier_texts_than_greed(tokenizer):
    gains = []
    for seed in range(8):
        network = tiny.randomised(config("gpt2", tokenizer.vocab_size), seed=seed)
        options = {"max_tokens": 8, "sampling": Sampling(temperature=0)}
        [greedy], [searched] = (generate(network, tokenizer, [[9]], beams=beams, **options) for beams in (1, 5))
        if greedy.finish_reason == searched.finish_reason == "length":
            gains.append(sum(searched.logprobs) - sum(greedy.logprobs))
    assert len(gains) > 4
    assert np.mean(gains) > 0.1


class TestBadInput:
    def message(self, tokenizer, **options):
        with pytest.raises(ConfigError) as caught:
            generate(tiny.randomised(config("gpt2", tokenizer.vocab_size)), tokenizer, ["Alice"], **options)
        return str(caught.value)

    @pytest.mark.parametrize("beams", [0, -2])
    def test_no_beams(self, tokenizer, beams):
        assert self.message(tokenizer, beams=beams) == f"beams must be at least 1, not {beams}"

    @pytest.mark.parametrize("sampling", [Sampling(seed=1), Sampling(top_k=3), Sampling(temperature=0.5)])
    def test_drawing_and_searching_at_once(self, tokenizer, sampling):
        expected = "beam search draws nothing, so sampling options have no effect with beams; leave them out"
        assert self.message(tokenizer, beams=2, sampling=sampling) == expected

    def test_too_long(self, tokenizer):
        message = self.message(tokenizer, beams=2, max_tokens=40)
        assert message == "the prompt's 5 tokens and 40 more exceed the model's context of 32; use --max-tokens 27 or less"

    def test_more_beams_than_tokens_is_no_error(self, tokenizer):
        network = tiny.randomised(config("gpt2", tokenizer.vocab_size))
        assert generate(network, tokenizer, ["Alice"], beams=200, max_tokens=2)[0].tokens
