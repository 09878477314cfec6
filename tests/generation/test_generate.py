"""Written text: the same with and without the cache, alone and in a batch, here and in transformers."""

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from pellucid import api
from pellucid.core.errors import ConfigError, ModelError, TokenizerError
from pellucid.generation.generate import generate, stream
from pellucid.generation.settings import Sampling
from pellucid.generation.text import Generation
from pellucid.network.weights import save_network
from pellucid.text.tokenizer import Tokenizer

CONTEXT = 32
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train_chars(tiny.DOCUMENTS)


@pytest.fixture(scope="module")
def network(tokenizer):
    return tiny.randomised(tiny.config(tokenizer.vocab_size, context_length=CONTEXT, layers=2, heads=4, kv_heads=2, d_head=8))


@pytest.fixture(scope="module")
def theirs(network, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_network(network, folder, end_of_text=tokenizer.end_of_text)
    return AutoModelForCausalLM.from_pretrained(folder)


samplings = st.builds(
    Sampling,
    temperature=st.floats(0.3, 2.0),
    top_k=st.none() | st.integers(1, 60),
    top_p=st.just(1.0) | st.floats(0.1, 1.0),
    min_p=st.just(0.0) | st.floats(0.0, 0.5),
    repetition_penalty=st.just(1.0) | st.floats(0.8, 2.0),
    seed=st.integers(0, 10**6),
) | st.builds(Sampling, temperature=st.just(0.0), repetition_penalty=st.just(1.0) | st.floats(0.8, 2.0))

prompts = st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=20), min_size=1, max_size=4)


@settings(max_examples=15, derandomize=True)  # a draw within 1e-7 of a boundary may fall on either side
@given(prompts=prompts, sampling=samplings, max_tokens=st.none() | st.integers(1, 12))
def test_the_cache_and_company_change_no_token(network, tokenizer, prompts, sampling, max_tokens):
    options = {"max_tokens": max_tokens, "sampling": sampling}
    together = generate(network, tokenizer, prompts, **options)
    assert generate(network, tokenizer, prompts, cache=False, **options) == close(together)
    for prompt, generation in zip(prompts, together, strict=True):
        assert generate(network, tokenizer, [prompt], **options) == close([generation])


def close(generations):
    """Equal in all but the last digits of log-probabilities."""
    return [
        Generation(text=g.text, tokens=g.tokens, logprobs=pytest.approx(g.logprobs, abs=1e-4), finish_reason=g.finish_reason)
        for g in generations
    ]


@pytest.mark.parametrize("prompt", ["A", "Alice was ", '"And what is the use of', "Down, down, down. Would the fal"])
def test_greedy_text_is_that_of_transformers(network, tokenizer, theirs, prompt):
    ids = tokenizer.encode(prompt)
    [ours] = generate(network, tokenizer, [prompt], sampling=GREEDY)
    out = theirs.generate(torch.tensor([ids]), do_sample=False, max_length=CONTEXT, pad_token_id=0)[0, len(ids) :].tolist()
    assert ours.tokens == [token for token in out if token != tokenizer.end_of_text]
    assert ours.text == tokenizer.decode(ours.tokens)
    assert (ours.finish_reason == "stop") == (tokenizer.end_of_text in out)


def test_a_penalised_greedy_text_is_that_of_transformers(network, tokenizer, theirs):
    ids = tokenizer.encode("Alice was ")
    [ours] = generate(network, tokenizer, [ids], sampling=Sampling(temperature=0.0, repetition_penalty=1.7))
    options = {"do_sample": False, "max_length": CONTEXT, "repetition_penalty": 1.7, "pad_token_id": 0}
    out = theirs.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist()
    assert ours.tokens == [token for token in out if token != tokenizer.end_of_text]


@torch.no_grad()
def test_log_probabilities_are_the_models_own_whatever_was_filtered(network, tokenizer, theirs):
    ids = tokenizer.encode("Suddenly ")
    for sampling in (GREEDY, Sampling(seed=3), Sampling(seed=4, temperature=0.2, top_k=3, repetition_penalty=2.0)):
        [written] = generate(network, tokenizer, [ids], sampling=sampling)
        logprobs = theirs(torch.tensor([ids + written.tokens])).logits[0].log_softmax(-1)
        expected = [float(logprobs[len(ids) - 1 + i, token]) for i, token in enumerate(written.tokens)]
        assert written.logprobs == pytest.approx(expected, abs=1e-4)


def test_a_seed_decides_the_text(network, tokenizer):
    texts = [generate(network, tokenizer, ["Alice"], sampling=Sampling(seed=seed))[0].text for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_text_ends_at_an_end_of_text_or_at_the_limit_and_says_which(network, tokenizer):
    reasons = set()
    for seed in range(25):
        [made] = generate(network, tokenizer, ["Alice"], max_tokens=20, sampling=Sampling(seed=seed, temperature=2.0))
        reasons.add(made.finish_reason)
        assert tokenizer.end_of_text not in made.tokens
        assert (len(made.tokens) == 20) if made.finish_reason == "length" else (len(made.tokens) < 20)
        assert len(made.logprobs) == len(made.tokens)
        assert made.text == tokenizer.decode(made.tokens)
    assert reasons == {"stop", "length"}


def test_rows_that_end_early_do_not_disturb_the_others(network, tokenizer):
    """Among many seeds' worth of prompts some rows end at once, others at the limit."""
    ids = [[i] for i in range(3, 40)]
    sampling = Sampling(seed=11, temperature=2.5)
    together = generate(network, tokenizer, ids, sampling=sampling)
    assert len({len(made.tokens) for made in together}) > 4
    for prompt, made in zip(ids, together, strict=True):
        assert generate(network, tokenizer, [prompt], sampling=sampling) == close([made])


@pytest.fixture
def free(network, tokenizer):
    """What is written when nothing stops it."""
    [made] = generate(network, tokenizer, ["Alice"], max_tokens=20, sampling=Sampling(seed=2))
    assert made.finish_reason == "length"
    return made


@pytest.fixture
def stopped(network, tokenizer):
    def write(stop):
        return generate(network, tokenizer, ["Alice"], max_tokens=20, sampling=Sampling(seed=2), stop=stop)[0]

    return write


def test_text_ends_before_a_stop_string_that_spans_tokens(tokenizer, free, stopped):
    for start in range(0, len(free.text) - 3, 4):
        stop = free.text[start : start + 3]
        made = stopped(stop)
        assert made.text == free.text[: free.text.index(stop)]
        assert made.finish_reason == "stop"
        assert made.tokens == free.tokens[: len(made.tokens)]
        assert tokenizer.decode(made.tokens) == made.text + stop  # not a token more was computed
        assert stopped([stop]) == made


def test_the_first_of_several_stop_strings_ends_the_text(free, stopped):
    early, late = free.text[2:4], free.text[9:12]
    assert stopped([late, early, "never there"]).text == free.text[: min(free.text.index(early), free.text.index(late))]


def test_a_stop_string_that_is_complete_with_the_last_token_still_counts(free, stopped):
    stop = free.text[-2:]
    assert free.text.index(stop) == len(free.text) - 2
    assert (stopped(stop).finish_reason, stopped(stop).text) == ("stop", free.text[:-2])


def test_a_stop_string_that_never_comes_changes_nothing(free, stopped):
    assert stopped("never there") == free


def test_an_empty_stop_string_is_an_error(stopped):
    with pytest.raises(ConfigError, match=r"^a stop string is empty, which would end every text at once; leave it out$"):
        stopped(["x", ""])


class TestBadInput:
    def message(self, network, tokenizer, prompt, error=ConfigError, **options):
        for write in (
            lambda: generate(network, tokenizer, [prompt], **options),
            lambda: list(stream(network, tokenizer, prompt, **options)),
        ):
            with pytest.raises(error) as caught:
                write()
        return str(caught.value)

    @pytest.mark.parametrize("length", [32, 33, 500])
    def test_a_prompt_longer_than_the_context(self, network, tokenizer, length):
        expected = (
            f"the prompt has {length} tokens, but the model's context is 32 "
            "and must hold the continuation too; shorten the prompt"
        )
        assert self.message(network, tokenizer, "a" * length) == expected

    def test_a_prompt_that_leaves_room_for_one_token(self, network, tokenizer):
        [made] = generate(network, tokenizer, ["a" * 31])
        assert len(made.tokens) <= 1

    @pytest.mark.parametrize("more", [28, 1000])
    def test_more_tokens_than_the_context_holds(self, network, tokenizer, more):
        expected = f"the prompt's 5 tokens and {more:,} more exceed the model's context of 32; use --max-tokens 27 or less"
        assert self.message(network, tokenizer, "Alice", max_tokens=more) == expected
        assert len(generate(network, tokenizer, ["Alice"], max_tokens=27)) == 1

    @pytest.mark.parametrize("count", [0, -1])
    def test_no_tokens_at_all(self, network, tokenizer, count):
        assert self.message(network, tokenizer, "Alice", max_tokens=count) == f"max_tokens must be at least 1, not {count}"

    @pytest.mark.parametrize("bad", [52, 10**9, -1, -52])
    def test_a_token_that_is_none(self, network, tokenizer, bad):
        assert tokenizer.vocab_size == 52
        assert self.message(network, tokenizer, [5, bad, 6]) == f"token id {bad} is not in the vocabulary of 52"

    def test_a_character_that_the_tokenizer_does_not_know(self, network, tokenizer):
        message = self.message(network, tokenizer, "Alice ß", error=TokenizerError)
        assert message.startswith("character 'ß' (U+00DF, at position 6) is not among the 49")

    def test_an_empty_prompt_begins_a_document(self, network, tokenizer):
        assert generate(network, tokenizer, [""]) == generate(network, tokenizer, [[tokenizer.end_of_text]])

    def test_an_empty_prompt_without_an_end_of_text_cannot_begin(self, network, tokenizer, monkeypatch):
        monkeypatch.setattr(tokenizer, "end_of_text", None)
        expected = "this model's tokenizer has no end-of-text token to start from; give a prompt"
        assert self.message(network, tokenizer, "", error=ModelError) == expected

    def test_no_prompts_give_no_texts(self, network, tokenizer):
        assert generate(network, tokenizer, []) == []


def test_writing_leaves_the_network_as_it_was(network, tokenizer):
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    generate(network, tokenizer, ["Alice", "A"], max_tokens=5)
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_a_stream_that_is_abandoned_leaves_no_mode_behind(network, tokenizer):
    pieces = stream(network, tokenizer, "Alice")
    next(pieces)
    assert not torch.is_inference_mode_enabled()  # also while it waits
    pieces.close()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("precision", [torch.bfloat16])
def test_a_network_that_computes_in_bf16_writes_the_same_with_the_cache(tokenizer, precision):
    network = tiny.randomised(tiny.config(tokenizer.vocab_size, context_length=CONTEXT))
    network.compute_dtype = precision
    cached, plain = (
        generate(network, tokenizer, ["Alice was"], max_tokens=4, sampling=GREEDY, cache=cache) for cache in (True, False)
    )
    assert cached[0].logprobs == pytest.approx(plain[0].logprobs, abs=0.1)


def test_a_text_ends_at_any_end_that_its_folder_names_as_in_transformers(network, tokenizer, tmp_path):
    prompts = [tokenizer.encode(text) for text in ("A", "Alice was ", "Down, down", "She", "the hot day")]
    free = generate(network, tokenizer, prompts, sampling=GREEDY, max_tokens=12)
    ends = frozenset({tokenizer.end_of_text, *(made.tokens[len(made.tokens) // 2] for made in free if made.tokens)})
    api.Model(network, tokenizer, ends=ends).save(tmp_path / "model")
    model, theirs = api.load(tmp_path / "model"), AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.ends == ends == set(theirs.generation_config.eos_token_id)
    stopped = 0
    for ids, unended in zip(prompts, free, strict=True):
        for beams in (1, 2, 3):
            options = {"do_sample": False, "num_beams": beams, "max_new_tokens": 12, "pad_token_id": 0}
            out = theirs.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist()
            length = next((at for at, token in enumerate(out) if token in ends), len(out))
            mine = model.generate(ids, max_tokens=12, temperature=0.0, beams=beams)
            assert mine.tokens == out[:length], beams
            assert mine.finish_reason == ("stop" if length < len(out) else "length")
            stopped += beams == 1 and length < len(unended.tokens)
    assert stopped >= 2
