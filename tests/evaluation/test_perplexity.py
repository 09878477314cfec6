"""Perplexity: brute force, transformers' own guide and `Model.score` are the judges of a window that slides."""

import math

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3ForCausalLM

from pellucid import api
from pellucid.core.errors import ConfigError, CorpusError, ModelError, TokenizerError
from pellucid.evaluation.likelihood import likelihoods
from pellucid.evaluation.perplexity import perplexity, slide
from pellucid.network.families import FAMILIES
from pellucid.network.weights import save_network
from pellucid.text.corpus import Corpus
from pellucid.text.sections import SECTION
from pellucid.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train_chars([tiny.ALICE])
CONTEXT = 24
TEXT = tiny.ALICE[:100]


def make(family="qwen3", **changes):
    """A tiny network of random weights; nobody may change it."""
    shape = {"vocab_size": TOKENIZER.vocab_size, "context_length": CONTEXT, "d_model": 24, "layers": 2}
    if family not in ("lstm", "bag-of-words"):
        shape |= {"heads": 2, "kv_heads": 2, "d_head": 12, "d_mlp": 40}
    return tiny.randomised(FAMILIES[family].new(**shape | changes))


NETWORK = make()


def of(texts, network=NETWORK, **options):
    return perplexity(network, TOKENIZER, Corpus.of(texts), **options)


def brute_force(network, text, context):
    """Nats of each token, each by itself with `context` tokens before it."""
    ids = [TOKENIZER.end_of_text, *TOKENIZER.encode(text)]
    found = []
    for at in range(1, len(ids)):
        with torch.no_grad():
            logits = network(torch.tensor([ids[max(0, at - context) : at]])).logits[0, -1]
        found.append(-float(logits.double().log_softmax(dim=-1)[ids[at]]))
    return found


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "lstm", "bag-of-words"])
@pytest.mark.parametrize("context", [7, CONTEXT])
def test_with_stride_1_every_token_is_scored_after_the_whole_context(family, context):
    network = make(family)
    expected = brute_force(network, TEXT, context)
    found = of([TEXT], network, context=context, stride=1)
    assert found.tokens == len(TEXT) == len(expected)
    assert found.loss == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.bits_per_byte == pytest.approx(sum(expected) / math.log(2) / len(TEXT.encode()), rel=1e-5)


@pytest.mark.parametrize("length", [1, CONTEXT - 1, CONTEXT])
def test_one_window_is_the_score_of_the_text(length):
    text = tiny.ALICE[:length]
    scores = api.Model(NETWORK, TOKENIZER).score(text)
    for stride in (1, CONTEXT):
        assert of([text], stride=stride).loss == pytest.approx(-float(scores.mean()), rel=1e-5)


@pytest.mark.parametrize("stride", [1, 5, 12, CONTEXT])
def test_equals_the_guide_of_transformers_with_its_averaging_put_right(tmp_path, stride):
    save_network(NETWORK, tmp_path)
    theirs = Qwen3ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.tensor([[TOKENIZER.end_of_text, *TOKENIZER.encode(TEXT)]])
    nats, scored, before, longest = 0.0, 0, 0, CONTEXT + 1  # ours does not read a window's last token, only scores it
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + longest, ids.shape[1])
        inputs = ids[:, begin:end]
        labels = inputs.clone()
        labels[:, : -(end - before)] = -100
        with torch.no_grad():
            loss = theirs(inputs, labels=labels).loss
        count = int((labels[:, 1:] != -100).sum())
        nats, scored, before = nats + float(loss) * count, scored + count, end
        if end == ids.shape[1]:
            break
    found = of([TEXT], stride=stride)
    assert (found.tokens, found.stride) == (scored, stride)
    assert found.loss == pytest.approx(nats / scored, rel=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 30, 100_000])
def test_the_size_of_batches_changes_nothing(batch_tokens):
    expected, found = of(tiny.DOCUMENTS), of(tiny.DOCUMENTS, batch_tokens=batch_tokens)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert (found.tokens, found.bytes, found.documents) == (expected.tokens, expected.bytes, len(tiny.DOCUMENTS))


def test_documents_do_not_see_one_another():
    alone = [of([text]) for text in tiny.DOCUMENTS]
    together = of(tiny.DOCUMENTS)
    assert together.loss * together.tokens == pytest.approx(sum(one.loss * one.tokens for one in alone), rel=1e-6)
    assert of(tiny.DOCUMENTS[::-1]).loss == pytest.approx(together.loss, rel=1e-6)


def test_sections_of_one_document_are_one_text():
    text = " ".join([tiny.ALICE] * 5)
    assert len(text) > SECTION
    found = of([text], context=16, stride=8)
    assert (found.documents, found.tokens, found.bytes) == (1, len(text), len(text.encode()))
    ids = TOKENIZER.encode(text)
    whole = list(slide([ids], [0], 16, 8))
    assert list(slide([ids[start : start + 100] for start in range(0, len(ids), 100)], [0], 16, 8)) == whole
    nats = -sum(one.logprob for one in likelihoods(NETWORK, whole))
    assert found.loss == pytest.approx(nats / len(ids), rel=1e-6)


@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    before=st.integers(1, 3),
    context=st.integers(1, 12),
    data=st.data(),
)
@settings(max_examples=300)
def test_windows_score_every_token_once_with_enough_before_it(lengths, before, context, data):
    stride = data.draw(st.integers(1, context))
    ids = list(range(100, 100 + sum(lengths)))
    parts = [ids[sum(lengths[:n]) : sum(lengths[: n + 1])] for n in range(len(lengths))]
    opening = list(range(before))
    windows = list(slide(parts, opening, context, stride))
    assert [id for _, after in windows for id in after] == ids
    whole = opening + ids
    for read, after in windows:
        assert read
        assert len(read) + len(after) - 1 <= max(context, before)
        start = whole.index(read[0])
        assert [*read, *after] == whole[start : start + len(read) + len(after)]
        assert start == 0 or len(read) >= context - stride


def test_the_interval_is_over_documents():
    assert of([TEXT]).perplexity_interval is None
    found = of(tiny.DOCUMENTS)
    (low, high), (few, many) = found.perplexity_interval, found.bits_per_byte_interval
    assert low < found.perplexity < high
    assert few < found.bits_per_byte < many
    generator = np.random.default_rng(7)
    each = [of([text]) for text in tiny.DOCUMENTS]
    draws = [[each[n] for n in generator.integers(len(each), size=len(each))] for _ in range(2000)]
    resampled = [math.exp(sum(one.loss * one.tokens for one in drawn) / sum(one.tokens for one in drawn)) for drawn in draws]
    assert np.percentile(resampled, [2.5, 97.5]) == pytest.approx([low, high], rel=0.02)
    assert of([TEXT, TEXT]).perplexity_interval == pytest.approx([of([TEXT]).perplexity] * 2, rel=1e-6)


def test_a_model_that_learnt_the_text_predicts_it_better(tmp_path):
    model = tiny.pretrain(tmp_path / "run", steps=40).model
    found = perplexity(model.network, model.tokenizer, Corpus.of(tiny.DOCUMENTS))
    assert found.perplexity < of(tiny.DOCUMENTS).perplexity
    assert found.perplexity < model.config.vocab_size


def test_scores_are_never_all_held_at_once(monkeypatch):
    seen = []
    network = make()
    monkeypatch.setattr("pellucid.evaluation.likelihood.SCORES", 10 * TOKENIZER.vocab_size)
    network.head.register_forward_hook(lambda module, args, scores: seen.append(scores.shape[0]))
    assert of([TEXT], network).loss == pytest.approx(of([TEXT]).loss, rel=1e-6)
    assert max(seen) == 10


def test_default_window_is_the_context_and_half_of_it():
    found = of([TEXT])
    assert (found.context, found.stride) == (CONTEXT, CONTEXT // 2)
    found = of([TEXT], context=1)
    assert (found.context, found.stride) == (1, 1)


def message(error, *arguments, **options):
    with pytest.raises(error) as caught:
        of(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"stride": 25}, "stride must be from 1 to 24, the context, not 25: it would leave tokens out"),
        ({"stride": 0}, "stride must be from 1 to 24, the context, not 0: it would leave tokens out"),
        ({"stride": -3}, "stride must be from 1 to 24, the context, not -3: it would leave tokens out"),
        ({"context": 4, "stride": 5}, "stride must be from 1 to 4, the context, not 5: it would leave tokens out"),
        ({"context": 0}, "context must be from 1 to 24, which is the model's, not 0"),
        ({"context": 1000}, "context must be from 1 to 24, which is the model's, not 1,000"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1, not 0"),
    ],
)
def test_a_window_that_makes_no_sense_is_refused(options, expected):
    assert message(ConfigError, [TEXT], **options) == expected


@pytest.mark.parametrize("texts", [[""], [" ", "\n\n"], []])
def test_no_text_is_refused(texts):
    assert "empty" in message(CorpusError, texts)


def test_a_character_that_the_tokenizer_has_not_is_refused():
    with pytest.raises(TokenizerError):
        of([TEXT, "天"])


def test_masked_models_and_those_that_answer_are_refused_with_a_way_out():
    text = message(ModelError, [TEXT], make("bert", kv_heads=2))
    assert text == (
        "this bert model does not continue texts, so it gives no probability to one; evaluate a decoder, "
        "or see with `pellucid fill` what it puts in the place of a mask"
    )
    text = message(ModelError, [TEXT], make("t5", decoder_layers=1))
    assert text == (
        "this t5 model answers a text instead of continuing it, so it gives no probability to one; "
        "evaluate a decoder, such as GPT-2 or Llama"
    )


def test_weights_that_are_no_numbers_are_said_to_be_damaged():
    network = make()
    with torch.no_grad():
        network.embedding.weight[:] = torch.nan
    text = message(ModelError, [TEXT], network)
    assert text == "the model's probabilities are no numbers (NaN or 0): its weights are damaged; restore them"


def test_a_tokenizer_without_an_end_of_text_is_refused():
    tokenizer = Tokenizer.train_chars(tiny.DOCUMENTS)
    tokenizer.end_of_text = None
    with pytest.raises(ModelError, match="has no end-of-text token, so its first token has no probability"):
        perplexity(NETWORK, tokenizer, Corpus.of([TEXT]))
