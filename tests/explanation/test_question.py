"""What may be asked, what is refused and how, and which tokens belong to which word."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from asked import TEXT, by_hand, classifier, filler, question, writer
from hypothesis import given
from hypothesis import strategies as st
from labellers import labeller
from pupils import SIZES
from tiny import randomised

import pellucid
from pellucid.api import Model
from pellucid.core.errors import ConfigError, ModelError
from pellucid.explanation.question import ask
from pellucid.explanation.removal import Removal
from pellucid.explanation.shares import direct_shares
from pellucid.explanation.units import places_of, units_of
from pellucid.network.families import FAMILIES
from pellucid.text.chat import with_chat_tokens
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.word_spans import words_of

WRITER, CLASSIFIER = writer("qwen3"), classifier("bert")
BYTES = Tokenizer.train_bpe(["Alice was beginning to get very tired of sitting by her sister on the bank. " * 4], 300)


@pytest.fixture(scope="module")
def words(data):
    """GPT-2's tokenizer, whose tokens begin with spaces."""
    return Tokenizer.load(data / "tokenizers" / "gpt2")


def test_two_tokens_are_a_difference_of_logits():
    asked = question(WRITER, target="a", foil="b")
    assert asked.measure == "logit('a') - logit('b')"
    assert by_hand(asked, asked.ids) == pytest.approx(Removal(asked).whole, abs=1e-4)


def test_longer_answers_are_a_difference_of_log_probabilities():
    assert question(WRITER, target=" ran", foil=" fell").measure == "log p(' ran') - log p(' fell')"
    assert question(WRITER, target=" ran").measure == "log p(' ran')"


def test_without_target_and_foil_the_two_likeliest_are_compared():
    asked = question(WRITER)
    assert Removal(asked).whole >= 0
    other = question(WRITER, target=asked.foil.name)
    assert other.foil == asked.target
    labels = question(CLASSIFIER)
    assert labels.target.name == CLASSIFIER.predict(TEXT)[0].label
    assert question(CLASSIFIER, foil=labels.target.name).target != labels.target


def test_labels_that_hold_beside_others_and_numbers_have_no_foil():
    several = classifier("gpt2", problem="multi")
    assert question(several, target="yes").foil is None
    with pytest.raises(ConfigError, match="has nothing to be held against but its absence; leave the foil out"):
        question(several, target="yes", foil="no")
    assert question(classifier("gpt2", problem="regression", labels=("score",))).measure == "the value"


def test_a_tagger_is_asked_about_a_word():
    model = labeller("bert", head="tag", labels=("O", "B-x"))
    by_name, by_number = question(model, word="the", target="B-x"), question(model, word=2, target="B-x")
    assert by_name.at == by_number.at
    assert by_name.foil.name == "O"
    with pytest.raises(ConfigError, match=r"the word 'teh' does not occur in the text; did you mean 'the'\?"):
        question(model, word="teh")
    with pytest.raises(ConfigError, match="word 9 is asked about, but the text has 4, counted from 0"):
        question(model, word=9)
    with pytest.raises(ConfigError, match="cannot be deleted; remove by mask or mean"):
        Removal(by_name, "delete")


BAD = {
    "empty": ({"text": " \n"}, "the text to explain is empty; give at least one word"),
    "no ids": ({"text": []}, "the text to explain is empty; give at least one token"),
    "too long": ({"text": "a" * 129}, "the text has 129 tokens, but the model's context is 128; explain a part of it"),
    "answer too long": (
        {"text": "a" * 127, "target": "bcd"},
        "the text has 127 tokens and the answer 3, more than the model's",
    ),
    "equal": (
        {"text": TEXT, "target": "a", "foil": "a"},
        "target and foil are both 'a', and a thing does not differ from itself",
    ),
    "empty target": ({"text": TEXT, "target": ""}, "the target or foil is empty; give a word, such as ' she'"),
    "one begins the other": ({"text": TEXT, "target": " r", "foil": " ran"}, "' r' and ' ran' begin with each other"),
    "a word": ({"text": TEXT, "word": "saw"}, "a word is named only to a tagger or a masked language model"),
    "a span": ({"text": TEXT, "spans": ["the rabit"]}, "the span 'the rabit' does not occur in the text"),
    "a span near": ({"text": TEXT, "spans": ["rabit"]}, "the span 'rabit' does not occur in the text; did you mean 'rabbit'?"),
    "a span outside": ({"text": TEXT, "spans": [(5, 50)]}, "the span 5 to 50 lies outside the text, which has 20 characters"),
    "two spans": ({"text": TEXT, "spans": ["Alice saw", "saw the"]}, "the spans overlap at 'saw the'"),
    "no token": ({"text": [3, 10**6]}, "token id 1000000 is not in the vocabulary"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_asked_is_said(kind):
    options, said = BAD[kind]
    with pytest.raises(ConfigError, match=re.escape(said)):
        ask(WRITER.network, WRITER.tokenizer, **options)


def test_unknown_labels_are_told_the_nearest():
    with pytest.raises(ConfigError, match=r"the model has no label 'yess'; did you mean 'yes'\?"):
        question(CLASSIFIER, target="yess")
    with pytest.raises(ConfigError, match="the model has no label 'quux'; it knows no, yes, perhaps"):
        question(CLASSIFIER, target="quux")


def test_masks_are_asked_for_and_stand_for_one_token():
    model = filler()
    with pytest.raises(
        ConfigError, match=r"there is no mask in 'Alice saw the rabbit'; write \[MASK\] where a word is missing"
    ):
        question(model)
    with pytest.raises(ConfigError, match=r"mask 1 is asked about, but the text has 1, counted from 0"):
        question(model, "Alice saw the [MASK]abbit", word=1)
    with pytest.raises(ConfigError, match=r"'he' is 2 tokens \('h', 'e'\), but a mask stands for one; name one of them"):
        question(model, "Alice saw the [MASK]abbit", target="he")


def test_a_model_without_a_head_says_how_to_get_one():
    bare = FAMILIES["bert"].new(vocab_size=60, context_length=64, head="none", **SIZES["bert"])
    with pytest.raises(ModelError, match=r"gives vectors but no scores.*pellucid finetune MODEL --task classify"):
        ask(randomised(bare), filler().tokenizer, TEXT)


def test_an_answer_that_would_be_part_of_the_texts_last_token_is_refused(words):
    shape = {
        "vocab_size": words.vocab_size,
        "context_length": 64,
        "d_model": 16,
        "layers": 1,
        "heads": 2,
        "kv_heads": 2,
        "d_head": 8,
    }
    network = randomised(FAMILIES["gpt2"].new(d_mlp=16, **shape))
    asked = ask(network, words, "The nurse said that", target=" she", foil=" he")
    assert (len(asked.target.ids), len(asked.foil.ids)) == (1, 1)
    with pytest.raises(ConfigError, match="'she' are one token, ' she'; move a space from the end of the text"):
        ask(network, words, "The nurse said that ", target="she", foil="he")
    with pytest.raises(ConfigError, match=r"one token.*end the text before it"):
        ask(network, words, "The nur", target="se", foil=" he")


@given(st.text(min_size=1, max_size=60), st.sampled_from(["words", "tokens", "sentences"]))
def test_every_token_of_a_text_belongs_to_one_unit(text, by):
    ids, places = BYTES.encode_places(text)
    units, _ = units_of(text, places, by=by)
    held = [token for unit in units for token in unit.tokens]
    assert held == sorted(set(held))
    assert len(held) == (len(ids) if text.strip(" ") or by == "tokens" else 0)
    assert all(unit.text == text[unit.start : unit.end] for unit in units)
    assert [unit.start for unit in units] == sorted(unit.start for unit in units)


def test_words_and_spans_and_sentences():
    text = "Alice's cat  saw it. Did she?"
    places = BYTES.encode_places(text)[1]
    assert [unit.text for unit in units_of(text, places, by="words")[0]] == [
        "Alice",
        "'s",
        "cat",
        "saw",
        "it",
        ".",
        "Did",
        "she",
        "?",
    ]
    assert [unit.text for unit in units_of(text, places, by="sentences")[0]] == ["Alice's cat  saw it.", "Did she?"]
    spans = units_of(text, places, by="words", spans=["Alice's cat"])[0]
    assert [unit.text for unit in spans] == ["Alice's cat", "saw", "it", ".", "Did", "she", "?"]
    assert units_of("word " * 200, BYTES.encode_places("word " * 200)[1])[1] == "parts of sentences"


def test_chinese_sentences_and_words():
    text = "春眠不觉晓。处处闻啼鸟。"
    places = BYTES.encode_places(text)[1]
    assert [unit.text for unit in units_of(text, places, by="sentences")[0]] == ["春眠不觉晓。", "处处闻啼鸟。"]
    assert len(units_of(text, places, by="words")[0]) == 12


@given(st.text(max_size=40))
def test_ids_spell_their_text(text):
    ids = BYTES.encode(text)
    spelt, places = places_of(BYTES, ids)
    assert spelt == text
    assert [place is not None for place in places] == [True] * len(ids)
    assert {at for place in places for at in range(*place)} == set(range(len(text)))


def test_ids_of_a_conversation_keep_their_special_tokens():
    ids = [WRITER.tokenizer.end_of_text, *WRITER.tokenizer.encode(TEXT)]
    asked = ask(WRITER.network, WRITER.tokenizer, ids, target="a", foil="b")
    assert all(0 not in unit.tokens for unit in asked.units)
    assert [unit.text for unit in asked.units] == TEXT.split()


def test_long_sentences_are_cut_where_units_are_left_to_us():
    text = "Alice saw the rabbit " * 45
    units, _ = units_of("Alice ran. " + text, BYTES.encode_places("Alice ran. " + text)[1])
    assert [len(words_of(unit.text).spans) for unit in units] == [3, 40, 40, 40, 40, 20]
    assert {unit.text.split()[0] for unit in units} == {"Alice"}


def test_a_span_that_cuts_a_token_is_refused():
    tokenizer = Tokenizer.train_bpe(["international nation internationalization " * 20], 278)
    places = tokenizer.encode_places("see internationalization")[1]
    with pytest.raises(ConfigError, match=r"the span 'nation' begins or ends inside a token.*name 'internationalization'"):
        units_of("see internationalization", places, spans=["nation"])


OPTIONS = {
    "by": ({"by": "letters"}, "units are words, tokens, sentences, auto, not 'letters'"),
    "removal": ({"removal": "burn"}, "remove by auto, delete, mask, mean, not 'burn'"),
    "no mask": ({"removal": "mask"}, "this model's tokenizer has no mask token; remove by delete or mean"),
    "samples": ({"samples": 3}, "samples must be an even number from 4 on, since orders are drawn in pairs, not 3"),
    "steps": ({"steps": 0}, "steps must be 1 or more, not 0"),
    "seed": ({"seed": -1}, "the seed must be 0 or more, not -1"),
    "no method": ({"methods": []}, "no method is named; choose from shapley, occlusion"),
    "a method": ({"methods": ["magic"]}, "there is no method 'magic'; choose from shapley, occlusion"),
    "idle samples": ({"methods": ["occlusion"], "samples": 8}, "samples has no effect without shapley; leave it out"),
    "idle steps": ({"methods": ["shapley"], "steps": 8}, "steps has no effect without integrated gradients; leave it out"),
    "text": ({"text": None}, "the text is neither a text nor token ids; give one of both"),
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_options_that_make_no_sense(kind):
    options, said = OPTIONS[kind]
    with pytest.raises(ConfigError, match=re.escape(said)):
        pellucid.explain(WRITER, **{"text": TEXT} | options)


def test_a_t5s_answer_names_gaps():
    words = Tokenizer.train_chars([TEXT], extra=["<extra_id_0>", "<extra_id_1>"])
    shape = {"vocab_size": words.vocab_size, "context_length": 64} | SIZES["t5"]
    asked = ask(randomised(FAMILIES["t5"].new(**shape)), words, "Alice <extra_id_0> rabbit", target="<extra_id_0>saw")
    assert len(asked.target.ids) == 4
    assert [unit.text for unit in asked.units] == ["Alice", "rabbit"]


def test_weights_that_are_no_numbers_are_said():
    model = writer("gpt2")
    with torch.no_grad():
        model.network.norm.weight[0] = torch.nan
    with pytest.raises(ModelError, match="is nan, no number: the model's weights or its input are broken"):
        pellucid.explain(model, TEXT, target="a", foil="b")


def test_explaining_leaves_the_network_as_it_was():
    model = writer("qwen3", dropout=0.1)
    model.network.train()
    before = [(weight.requires_grad, weight.clone()) for weight in model.network.parameters()]
    found = pellucid.explain(model, TEXT, target="a", foil="b", against="Alice was the rabbit")
    assert found.difference == pellucid.explain(model, TEXT, target="a", foil="b").difference  # no dropout
    assert model.network.training
    for (learns, was), weight in zip(before, model.network.parameters(), strict=True):
        assert learns == weight.requires_grad
        assert torch.equal(was, weight)


def test_two_threads_may_explain_one_network(monkeypatch):
    monkeypatch.setattr("pellucid.explanation.gradients.LONG", 20)
    model = writer("qwen3")
    texts = [TEXT, "Alice was beginning to get very tired", TEXT, "a rabbit"]
    options = {"target": "a", "foil": "b", "methods": ["integrated gradients"]}
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: pellucid.explain(model, text, **options).leading.values, texts))
    for text, values in zip(texts, together, strict=True):
        assert pellucid.explain(model, text, **options).leading.values == pytest.approx(values, abs=1e-5)
    assert not model.network.recompute


def test_an_edited_model_is_explained_as_it_answers():
    model = writer("qwen3")
    edited = model.edit({"blocks.0.attn.mixed": lambda x: x * 0.5})
    found = pellucid.explain(edited, TEXT, target="a", foil="b")
    assert found.difference != pytest.approx(pellucid.explain(model, TEXT, target="a", foil="b").difference)
    assert abs(found.shares.gap) < 1e-4
    assert pellucid.explain(model.edit({"blocks.0.attn.out": 0.0}), TEXT, target="a", foil="b").shares is None
    stream = pellucid.explain(model.edit({"hidden": lambda x: x * 1.5 + 0.1}), TEXT, target="a", foil="b")
    assert (stream.shares, stream.lens) == (None, None)
    with pytest.raises(ModelError, match="an edit changes this model's stream, which is then no sum of its parts"):
        direct_shares(stream.question)


def test_a_conversation_is_explained_with_its_template():
    model = writer("qwen3")
    tokenizer, _ = with_chat_tokens(model.tokenizer)
    shape = {"vocab_size": tokenizer.vocab_size, "context_length": 128} | SIZES["qwen3"]
    chatty = Model(randomised(FAMILIES["qwen3"].new(**shape)), tokenizer)
    talk, other = ([{"role": "user", "content": text}] for text in (TEXT, "Alice was the rabbit"))
    found = pellucid.explain(chatty, talk, against=other)
    assert {"user", "Alice", "saw", "assistant"} <= {unit.text for unit in found.question.units}
    assert found.patching.patched
