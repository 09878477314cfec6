"""Tokens to text as they come: whole characters only, and all of the text."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers

from pellucid.text.tokenizer import Tokenizer

TEXT = "Ünï天地玄黄😀 and some more plain English words. " * 30


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return Tokenizer.train_bpe([TEXT], 300)


@pytest.fixture(scope="module")
def chars() -> Tokenizer:
    return Tokenizer.train_chars([TEXT])


@pytest.fixture(scope="module")
def llama() -> Tokenizer:
    """As Llama's: a mark for the space, and bytes for what is unknown."""
    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"abcdefgh", "ab", "\u2581ab", "cd"]
    vocabulary = {word: id for id, word in enumerate(words)}
    merges = [("a", "b"), ("c", "d"), ("\u2581", "ab")]
    backend = Backend(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "</s>"])
    return Tokenizer(backend, {})


def streamed(tokenizer: Tokenizer, ids: list[int], **options) -> list[str]:
    stream = tokenizer.stream(**options)
    return [*(stream.push(id) for id in ids), stream.finish()]


@given(ids=st.lists(st.integers(0, 299), max_size=60), special=st.booleans())
def test_joined_pieces_are_the_text_for_any_tokens(bpe, ids, special):
    assert "".join(streamed(bpe, ids, special=special)) == bpe.decode(ids, special=special)


@given(st.text())
def test_no_piece_holds_half_a_character(bpe, text):
    pieces = streamed(bpe, bpe.encode(text))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@given(st.data())
def test_characters_come_one_by_one(chars, data):
    ids = data.draw(st.lists(st.integers(0, chars.vocab_size - 1), max_size=40))
    assert "".join(streamed(chars, ids)) == chars.decode(ids)
    assert "".join(streamed(chars, ids, special=True)) == chars.decode(ids, special=True)


@given(st.text(alphabet="abcd 天😀é", max_size=40))
def test_tokens_that_depend_on_their_neighbours(llama, text):
    ids = llama.encode(text)
    pieces = streamed(llama, ids)
    assert "".join(pieces) == llama.decode(ids) == text
    assert all("\ufffd" not in piece for piece in pieces)


@given(st.text(alphabet="ab é天", max_size=20), st.text(alphabet="ab é天", max_size=20))
def test_a_text_that_goes_on_keeps_the_space_between(llama, first, second):
    ids = llama.encode(first + second)
    for at in range(len(ids) + 1):
        before = llama.decode(ids[:at])
        if not before.endswith("\ufffd"):
            assert before + "".join(streamed(llama, ids[at:], after=ids[:at])) == llama.decode(ids)


def test_words_that_go_on_keep_the_space_between(data):
    tokenizer = Tokenizer.load(data / "tokenizers" / "bert-base-uncased")
    ids = tokenizer.encode("this film is unbelievably late")
    for at in range(1, len(ids)):
        assert tokenizer.decode(ids[:at]) + "".join(streamed(tokenizer, ids[at:], after=ids[:at])) == tokenizer.decode(ids)


def test_wordpieces(data):
    tokenizer = Tokenizer.load(data / "tokenizers" / "bert-base-uncased")
    ids = tokenizer.encode("He wasn't unbelievably late , was he ? 天地")
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_stream_that_never_completes_a_character_is_not_held_back_for_ever(llama, bpe):
    half = llama.backend.token_to_id("<0xE5>")
    assert len("".join(streamed(llama, [half] * 100)[:-1])) > 50
    [half] = [id for id in range(bpe.vocab_size) if bpe.token_bytes(id) == b"\xe5"]
    assert streamed(bpe, [half] * 3) == ["", "\ufffd", "\ufffd", "\ufffd"]


def test_the_cost_of_a_token_does_not_grow(bpe, llama):
    for tokenizer in (bpe, llama):
        ids = (tokenizer.encode("abcd " * 50) * 400)[:40_000]
        stream = tokenizer.stream()
        times = []
        for start in range(0, len(ids), 10_000):
            begun = time.process_time()
            for id in ids[start : start + 10_000]:
                stream.push(id)
            times.append(time.process_time() - begun)
        assert min(times[2:]) < 5 * min(times[:2])
