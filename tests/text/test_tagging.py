"""Words and their tokens: every word has a first token of its own, whatever the tokenizer, however long the text."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_data import DATA
from tiny import ALICE
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from pellucid.core.errors import ConfigError, CorpusError
from pellucid.text.alignment import NO_TOKEN, encode_words
from pellucid.text.batches import IGNORED
from pellucid.text.encoded import encode_texts
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.word_spans import Words, joined, words_of

MORE = 'It\'s "done"... 我爱北京 café 3rd, (x)!?\n'
KINDS = ["bpe", "chars", "unigram", "gpt2", "bert-base-uncased", "bert-base-chinese"]


@cache
def tokenizer(kind: str) -> Tokenizer:
    if kind == "bpe":
        return Tokenizer.train_bpe([ALICE + MORE], 400)
    if kind == "chars":
        return Tokenizer.train_chars([ALICE + MORE], extra=["[MASK]"])
    if kind == "unigram":
        backend = Backend(models.Unigram())
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
        backend.train_from_iterator([ALICE + MORE], trainer)
        return Tokenizer(backend, {})
    if not (DATA / "tokenizers").is_dir():
        pytest.skip("the folder of real tokenizers is not beside this checkout")
    return Tokenizer.load(DATA / "tokenizers" / kind)


texts = st.lists(st.sampled_from([*ALICE.split(), *MORE.split(), "\n", "  ", '."', "...", "it's"]), min_size=1, max_size=30)


@pytest.mark.parametrize("kind", KINDS)
@given(parts=texts, spaced=st.booleans())
def test_every_word_has_a_first_token_of_its_own(kind, parts, spaced):
    words = words_of((" " if spaced else "").join(parts))
    if not words.spans:
        return
    encoded = encode_words(tokenizer(kind), [words], longest=None)
    (window,) = encoded.windows
    before, after = tokenizer(kind).frame
    assert window.ids[: len(before)].tolist() == before
    assert window.ids[len(window.ids) - len(after) :].tolist() == after
    assert encoded.lost == 0
    assert (np.diff(window.starts) > 0).all()
    assert window.starts.min() >= len(before)
    assert window.starts.max() < len(window.ids) - len(after)
    targets = window.targets(list(range(len(words.spans))))
    assert targets[window.starts].tolist() == list(range(len(words.spans)))
    assert (targets != IGNORED).sum() == len(words.spans)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_are_those_of_the_text(kind):
    words = words_of("Alice was beginning to get very tired of sitting by her sister, and Alice's cat it's.")
    (window,) = encode_words(tokenizer(kind), [words], longest=None).windows
    assert window.ids.tolist() == tokenizer(kind).encode(words.text, framed=True)
    first = [tokenizer(kind).decode([window.ids[start]]).strip().lower() for start in window.starts]
    assert all(word.lower().startswith(token) for token, word in zip(first, words.words(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
@given(parts=texts, longest=st.integers(24, 40))
def test_a_long_row_goes_on_in_windows_that_begin_with_a_word(kind, parts, longest):
    words = words_of(" ".join(parts))
    if not words.spans:
        return
    whole = encode_words(tokenizer(kind), [words], longest=None).windows[0]
    encoded = encode_words(tokenizer(kind), [words], longest=longest, long="split")
    assert [window.first for window in encoded.windows] == np.cumsum([0, *(len(w.starts) for w in encoded.windows)]).tolist()[
        :-1
    ]
    assert sum(len(window.starts) for window in encoded.windows) == len(words.spans)
    assert all(len(window.ids) <= longest for window in encoded.windows)
    assert encoded.long == (len(whole.ids) > longest)
    tokens = [window.ids[start] for window in encoded.windows for start in window.starts]
    assert tokens == whole.ids[whole.starts].tolist()
    cut = encode_words(tokenizer(kind), [words], longest=longest, long="cut")
    assert cut.windows[0].ids.tolist() == encoded.windows[0].ids.tolist()
    assert cut.lost == len(words.spans) - len(encoded.windows[0].starts)


def test_what_the_tokenizer_leaves_out_has_no_token():
    words = joined(["a", "\u200b", "b"])
    encoded = encode_words(tokenizer("bert-base-uncased"), [words], longest=None)
    assert encoded.windows[0].starts.tolist() == [1, NO_TOKEN, 2]
    assert encoded.windows[0].targets([5, 6, 7]).tolist() == [IGNORED, 5, 7, IGNORED]
    assert encoded.lost == 1
    with pytest.raises(CorpusError) as error:
        encode_words(tokenizer("bert-base-uncased"), [joined(["\u200b"])], longest=None)
    assert str(error.value) == "text 0: no word of the text has a token; leave it out"


def test_words_of_a_text():
    assert words_of("Alice's cat: 3rd... 我爱x!!").words() == ["Alice", "'s", "cat", ":", "3rd", "...", "我", "爱", "x", "!!"]
    assert words_of("'quoted' e\u0301 \U0001f642").words() == ["'", "quoted", "'", "e\u0301", "\U0001f642"]
    assert words_of(" \n") == Words(" \n", ())


def test_words_become_a_text():
    assert joined(["I", "love", "北", "京", "x"]).text == "I love 北京 x"
    assert joined(["I", "love", "北", "京", "x"]).words() == ["I", "love", "北", "京", "x"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=8))
def test_joined_words_are_found_again(words):
    assert joined(words).words() == words


def test_texts_are_framed_cut_and_split():
    bert = tokenizer("bert-base-uncased")
    texts = ["one two three four five", "one"]
    whole = encode_texts(bert, texts, longest=None)
    assert [row.tolist() for row in whole.windows] == [row.tolist() for row in bert.encode_batch(texts, framed=True)]
    assert (whole.texts.tolist(), whole.long, whole.longest) == ([0, 1], 0, 7)
    cut = encode_texts(bert, texts, longest=5, long="cut")
    assert [row.tolist() for row in cut.windows] == [bert.encode("one two three", framed=True), bert.encode("one", framed=True)]
    assert (cut.long, cut.longest) == (1, 7)
    split = encode_texts(bert, texts, longest=5, long="split")
    assert split.texts.tolist() == [0, 0, 1]
    parts = ["one two three", "four five", "one"]
    assert [row.tolist() for row in split.windows] == [bert.encode(part, framed=True) for part in parts]
    assert encode_texts(bert, [], longest=5).windows == []


@pytest.mark.parametrize(
    ("options", "texts", "sentence"),
    [
        (
            {"longest": 4},
            ["one two three four", "a b c", "a"],
            "2 texts have more than the 4 tokens that the model takes, of 3 (the longest, text 0, has 6); "
            "pass --long cut to leave out what is beyond, or --long split to read such a text in parts",
        ),
        (
            {"longest": 5},
            ["a", "one two three four"],
            "1 text has more than the 5 tokens that the model takes, of 2 (the longest, text 1, has 6); "
            "pass --long cut to leave out what is beyond, or --long split to read such a text in parts",
        ),
        ({"longest": 2}, ["a"], "2 tokens leave no room for a text, whose frame takes 2; allow more"),
        ({"longest": 9, "long": "wrap"}, ["a"], "--long is 'wrap'; it must be one of error, cut, split"),
    ],
)
def test_texts_that_do_not_fit_are_one_sentence(options, texts, sentence):
    bert = tokenizer("bert-base-uncased")
    for call in (
        lambda: encode_texts(bert, texts, **options),
        lambda: encode_words(bert, [words_of(text) for text in texts], **options),
    ):
        with pytest.raises((CorpusError, ConfigError)) as error:
            call()
        assert str(error.value) == sentence


def test_texts_without_a_token_and_words_that_are_too_long():
    with pytest.raises(CorpusError) as error:
        encode_texts(tokenizer("gpt2"), ["a", "", ""], longest=9, place=lambda number: f"a.csv:{number + 2}")
    assert str(error.value) == "a.csv:3: the text has no tokens, nor has 1 other; leave it out"
    with pytest.raises(CorpusError) as error:
        encode_words(tokenizer("chars"), [joined(["Alice", "beginning"])], longest=9, long="split")
    assert str(error.value) == "text 0: word 2 has 9 tokens, more than the 7 that fit; leave it out"
