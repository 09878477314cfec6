"""Text shown while it is written: the pieces are the text, never half a character, never the beginning of a stop string."""

import pytest
import tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pellucid.generation.generate import generate, stream
from pellucid.generation.settings import Sampling
from pellucid.generation.text import Request, Text
from pellucid.text.tokenizer import Tokenizer

CHINESE = "明月几时有，把酒问青天。不知天上宫阙，今夕是何年。😀 naïve café"


def begun(tokenizer, stop=(), most=100):
    """A text of which nothing is written yet."""
    return Text(
        Request(prompt=[0], vocabulary=tokenizer.vocab_size, max_tokens=most, sampling=Sampling(), stop=stop), tokenizer
    )


@pytest.fixture(scope="module")
def bytes_and_network():
    """A tokenizer whose tokens are mostly single bytes, and a network that writes them at random: most of it is no UTF-8."""
    tokenizer = Tokenizer.train_bpe([*tiny.DOCUMENTS, CHINESE * 3], 300)
    return tokenizer, tiny.randomised(tiny.config(tokenizer.vocab_size, context_length=64))


@pytest.mark.parametrize("stop", [(), ("e",), ("\ufffd\ufffd", "th")])
def test_pieces_of_random_bytes_add_up_to_the_text(bytes_and_network, stop):
    tokenizer, network = bytes_and_network
    broken = 0
    for seed in range(12):
        options = {"sampling": Sampling(seed=seed, temperature=1.5), "stop": stop, "max_tokens": 40}
        [whole] = generate(network, tokenizer, ["月"], **options)
        pieces = list(stream(network, tokenizer, "月", **options))
        assert "".join(pieces) == whole.text
        assert all(pieces)
        assert all(piece.encode() for piece in pieces)  # no half characters
        if not stop:
            assert whole.text == tokenizer.decode(whole.tokens)
        broken += "\ufffd" in whole.text
    assert broken > 5  # bytes that are no text did occur


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30), cut=st.integers(0, 10))
def test_a_character_is_shown_when_its_last_byte_has_come_and_not_before(text, cut, bytes_and_network):
    tokenizer, _ = bytes_and_network
    ids, shown = tokenizer.encode(text), ""
    row = begun(tokenizer, most=len(ids) + 1)
    for number, token in enumerate(ids):
        row.take(token, 0.0)
        shown += row.news()
        assert text.startswith(shown)
        whole = tokenizer.decode(ids[: number + 1]).rstrip("\ufffd")
        assert shown.startswith(whole) or "\ufffd" in text
    row.finish("length")
    assert shown + row.news() == text


@pytest.fixture(scope="module")
def letters():
    return Tokenizer.train_chars(["abcd"])


@settings(max_examples=500)
@given(text=st.text("abc", max_size=14), stop=st.lists(st.text("abc", min_size=1, max_size=5), max_size=3))
@example(text="abcabc", stop=["bcabb", "abcabc"])
def test_with_several_stop_strings_nothing_is_shown_that_is_taken_back(text, stop, letters):
    row, shown = begun(letters, stop), ""
    for token in letters.encode(text):
        if row.finish_reason:
            break
        row.take(token, 0.0)
        shown += row.news()
        assert shown == row.text[: len(shown)]
    if not row.finish_reason:
        row.finish("length")
    shown += row.news()
    ends = [text.find(string) for string in stop if string in text]
    if not ends:
        assert (shown, row.text, row.finish_reason) == (text, text, "length")
    else:
        assert shown == row.text
        assert row.finish_reason == "stop"
        assert not any(string in shown for string in stop)
        assert text.startswith(shown)


def test_without_stop_strings_every_character_is_shown_at_once(letters):
    row = begun(letters)
    for character in "abcd":
        row.take(letters.encode(character)[0], 0.0)
        assert row.news() == character
    assert row.news() == ""


def test_what_may_become_a_stop_string_is_held_back_and_then_shown_or_cut(letters):
    row = begun(letters, ["bca"])
    shown = []
    for character in "abcbd":
        row.take(letters.encode(character)[0], 0.0)
        shown.append(row.news())
    assert shown == ["a", "", "", "bc", "bd"]
