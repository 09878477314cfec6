"""Masking and span corruption: the text comes back from what is shown and what is asked, the same for everybody who asks."""

import time
import zlib
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.core.errors import ConfigError
from pellucid.text.batches import IGNORED, Batch, Batches, Corruption, document_numbers, row_keys, sequential
from pellucid.text.masking import Masking
from pellucid.text.spans import SpanCorruption
from pellucid.text.view import SECTIONS, TokenView

VOCAB, MASK, SPECIAL = 5000, 3, frozenset(range(5))  # the text's tokens are from 5 on, its ends 0
SENTINELS = range(VOCAB, VOCAB + 200)
STARTS = np.arange(VOCAB) * 7919 % 10 < 6  # of words: 1.7 tokens on average

masking = Masking(mask=MASK, special=SPECIAL, vocab=VOCAB)
whole_words = Masking(mask=MASK, special=SPECIAL, vocab=VOCAB, word_starts=STARTS)
spans = SpanCorruption(sentinels=SENTINELS[:100], start=1, end_of_text=0)

ways = pytest.mark.parametrize("corruption", [None, masking, whole_words, spans], ids=["causal", "masked", "words", "spans"])
seeds = st.integers(0, 2**63)


def view_of(length: int) -> TokenView:
    """Documents of 36 tokens, ends not counted, the last one shorter; nearly every token is another number."""
    tokens = (5 + np.arange(length) * 7919 % (VOCAB - 5)).astype(np.uint16)
    ends = np.unique([*range(37, length, 37), length])
    tokens[ends - 1] = 0
    records = np.array([(end, end, 1, 0) for end in ends], dtype=SECTIONS)
    return TokenView(tokens, records, np.ones(len(ends), dtype=bool), 0, "key")


def restored(batch: Batch) -> list[list[int]]:
    """The text of each row, from what is shown and what is asked alone."""
    shown = np.ones(batch.ids.shape, dtype=bool) if batch.present is None else batch.present
    rows = [(ids[here], targets) for ids, targets, here in zip(batch.ids, batch.targets, shown, strict=True)]
    if batch.decoder_ids is not None:
        return [filled_in(ids.tolist(), targets[targets != IGNORED].tolist()) for ids, targets in rows]
    return [np.where(targets[: len(ids)] == IGNORED, ids, targets[: len(ids)]).tolist() for ids, targets in rows]


def filled_in(ids: list[int], targets: list[int]) -> list[int]:
    """What an encoder reads and what its decoder is to write, put together again."""
    assert ids[-1] == targets[-1] == 0
    assert [token for token in targets if token >= VOCAB] == list(SENTINELS[: sum(token >= VOCAB for token in targets)])
    assert targets[-2] >= VOCAB  # the last sentinel
    hidden: dict[int, list[int]] = {}
    for token in targets[:-1]:
        if token >= VOCAB:
            hidden[token] = []
        else:
            hidden[max(hidden)].append(token)
    assert [token for token in ids if token >= VOCAB] == list(hidden)[:-1]
    return [part for token in ids[:-1] for part in hidden.get(token, [token])]


@ways
@given(
    length=st.integers(1, 700), context=st.integers(10, 60), batch_size=st.integers(1, 9), seed=seeds, epoch=st.integers(0, 3)
)
@settings(max_examples=60)
def test_an_epoch_holds_every_token_exactly_once(corruption, length, context, batch_size, seed, epoch):
    view = view_of(max(length, context))
    batches = Batches(view, context=context, batch_size=batch_size, seed=seed, corruption=corruption)
    first, last = epoch * batches.windows, (epoch + 1) * batches.windows
    texts = []
    for number in range(first // batch_size, -(-last // batch_size)):
        inside = slice(max(first - number * batch_size, 0), max(last - number * batch_size, 0))
        batch = batches.rows(number, inside)
        if corruption is None:
            texts += [row[row != IGNORED].tolist() for row in batch.targets]
        else:
            texts += restored(batch)
    stream = view.read(0, view.tokens).tolist()
    assert sorted(texts) == sorted(stream[start : start + context] for start in range(0, len(stream), context))


@ways
@given(number=st.integers(0, 30), start=st.integers(0, 5), count=st.integers(0, 5))
@settings(max_examples=40)
def test_a_batch_depends_on_nothing_but_its_number(corruption, number, start, count):
    view = view_of(333)

    def fresh() -> Batches:
        return Batches(view, context=16, batch_size=5, seed=7, corruption=corruption)

    used = fresh()
    for other in (40, 3, 0, number + 1):
        used[other]
    whole, part = fresh()[number], used.rows(number, slice(start, start + count))
    assert_equal(whole, used[number])
    assert_equal(whole.rows(slice(start, start + count)), part)
    one = Batches(view, context=16, batch_size=1, seed=7, corruption=corruption)[5 * number + 2]
    assert_equal(whole.rows(slice(2, 3)), one)


def assert_equal(one: Batch, other: Batch) -> None:
    for name in (field.name for field in fields(Batch)):
        left, right = getattr(one, name), getattr(other, name)
        assert (left is None) == (right is None)
        assert left is None or (np.asarray(left).dtype == np.asarray(right).dtype and np.array_equal(left, right))


@ways
def test_validation_is_the_same_every_time_whatever_the_limit_and_the_size_of_batches(corruption):
    view = view_of(1000)
    all_rows = {tuple(row) for batch in sequential(view, context=16, batch_size=7, corruption=corruption) for row in batch.ids}
    some = list(sequential(view, context=16, batch_size=3, limit=10, corruption=corruption))
    assert {tuple(row) for batch in some for row in batch.ids} <= all_rows
    for one, other in zip(some, sequential(view, context=16, batch_size=3, limit=10, corruption=corruption), strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("corruption", [masking, whole_words, spans], ids=["masked", "words", "spans"])
def test_every_epoch_and_every_seed_hides_something_else(corruption):
    view = view_of(64)  # one window
    batches = [Batches(view, context=64, batch_size=100, seed=seed, corruption=corruption)[0] for seed in (0, 1)]
    assert len({tuple(row) for batch in batches for row in batch.ids}) > 195


def test_corrupted_batches_are_the_same_on_every_machine():
    """Golden values: batches of old runs must not change under a resume."""
    sums = []
    for corruption in (masking, whole_words, spans):
        batch = Batches(view_of(300), context=32, batch_size=4, seed=1234, corruption=corruption)[3]
        arrays = [batch.ids, batch.targets, *([] if batch.decoder_ids is None else [batch.decoder_ids])]
        sums.append(zlib.crc32(b"".join(array.astype("<i8").tobytes() for array in arrays)))
    assert sums == [3261280652, 1321181011, 2808920880]


def test_three_rows_as_an_example():
    """Golden too: the text is 10, 11, 12 and so on, and X is the mask, _ nothing to learn."""
    text, key, X, _ = np.arange(10, 50)[None], row_keys(7, np.arange(1)), MASK, IGNORED
    batch = spans(text, np.ones(text.shape, dtype=bool), key)
    assert batch.ids.tolist() == [[*range(10, 38), 5000, *range(43, 49), 5001, 0]]
    assert batch.targets.tolist() == [[5000, 38, 39, 40, 41, 42, 5001, 49, 5002, 0]]
    assert batch.decoder_ids.tolist() == [[1, 5000, 38, 39, 40, 41, 42, 5001, 49, 5002]]
    text = text[:, :20]
    batch = masking(text, np.ones(text.shape, dtype=bool), key)
    assert batch.ids.tolist() == [[*range(10, 27), X, 28, 29]]
    assert batch.targets.tolist() == [[_, _, _, _, _, _, 16, _, _, 19, _, _, _, _, _, _, _, 27, _, _]]
    words = Masking(mask=MASK, special=SPECIAL, vocab=VOCAB, word_starts=np.arange(VOCAB) % 3 == 0)
    batch = words(text, np.ones(text.shape, dtype=bool), key)
    assert batch.ids.tolist() == [[*range(10, 27), X, X, X]]
    assert batch.targets.tolist() == [[_] * 17 + [27, 28, 29]]


def windows(count: int, context: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokens = np.random.default_rng(5).integers(5, VOCAB, (count, context))
    return tokens, np.ones(tokens.shape, dtype=bool), row_keys(3, np.arange(count))


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.4])
@pytest.mark.parametrize("starts", [None, STARTS], ids=["tokens", "words"])
def test_of_the_chosen_tokens_8_of_10_are_masked_1_is_another_and_1_stays(rate, starts):
    tokens, present, keys = windows(1500, 256)
    batch = Masking(mask=MASK, special=SPECIAL, vocab=VOCAB, rate=rate, word_starts=starts)(tokens, present, keys)
    chosen = batch.targets != IGNORED
    assert chosen.mean() == pytest.approx(rate, abs=0.002)
    assert (batch.ids[~chosen] == tokens[~chosen]).all()
    assert (batch.targets[chosen] == tokens[chosen]).all()
    ids, count = batch.ids[chosen], int(chosen.sum())
    kept = ids == tokens[chosen]
    for share, expected in (((ids == MASK).mean(), 0.8), (kept.mean(), 0.1), ((~kept & (ids != MASK)).mean(), 0.1)):
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / count) + 1 / VOCAB
    others = ids[~kept & (ids != MASK)]
    assert not np.isin(others, list(SPECIAL)).any()
    halves = np.histogram(others, bins=4, range=(5, VOCAB))[0] / len(others)
    assert np.abs(halves - 0.25).max() < 0.03  # from all over the vocabulary
    places = chosen.mean(axis=0)
    assert np.abs(places - rate).max() < 5 * np.sqrt(rate / 1500) + (
        0.1 if starts is not None else 0
    )  # from all over the window


@given(length=st.integers(1, 60), rate=st.floats(0.01, 0.9), seed=seeds, words=st.booleans())
@settings(max_examples=200)
def test_special_tokens_stay_and_a_row_with_others_has_a_target(length, rate, seed, words):
    random = np.random.default_rng(seed)
    tokens = random.integers(0, 12, (8, length))  # 5 of 12 are special
    present = np.arange(length) < random.integers(1, length + 1, (8, 1))
    starts = random.random(12) < 0.5 if words else None
    corruption = Masking(mask=MASK, special=SPECIAL, vocab=12, rate=rate, word_starts=starts)
    batch = corruption(tokens, present, row_keys(seed, np.arange(8)))
    special, chosen = np.isin(tokens, list(SPECIAL)), batch.targets != IGNORED
    assert (batch.ids[special] == tokens[special]).all()
    assert not (chosen & (special | ~present)).any()
    assert (chosen.any(axis=1) == (~special & present).any(axis=1)).all()


@given(seed=seeds, rate=st.floats(0.05, 0.5))
@settings(max_examples=100)
def test_words_are_never_cut(seed, rate):
    random = np.random.default_rng(seed)
    tokens = random.integers(0, VOCAB, (4, 64))
    tokens[random.random(tokens.shape) < 0.1] = 0
    corruption = Masking(mask=MASK, special=SPECIAL, vocab=VOCAB, rate=rate, word_starts=STARTS)
    chosen = corruption(tokens, np.ones(tokens.shape, dtype=bool), row_keys(seed, np.arange(4))).targets != IGNORED
    continues = ~STARTS[tokens] & ~np.isin(tokens, list(SPECIAL))
    continues[:, 1:] &= ~np.isin(tokens[:, :-1], list(SPECIAL))  # after a special token a word begins anew
    assert (chosen[:, 1:] == chosen[:, :-1])[continues[:, 1:]].all()


def test_words_of_every_length_are_chosen_alike():
    """Choosing whole words must not prefer short words to long ones."""
    tokens, present, keys = windows(1500, 256)
    chosen = whole_words(tokens, present, keys).targets != IGNORED
    starts = STARTS[tokens]
    single = starts[:, :-1] & starts[:, 1:]
    triple = starts[:, :-3] & ~starts[:, 1:-2] & ~starts[:, 2:-1] & starts[:, 3:]
    for length in (chosen[:, :-1][single], chosen[:, :-3][triple]):
        assert length.mean() == pytest.approx(0.15, abs=0.01)


def test_documents_are_numbered_before_anything_is_hidden():
    ends_too = Masking(mask=MASK, special=(), vocab=VOCAB, rate=0.5)
    batch = Batches(view_of(500), context=50, batch_size=4, seed=0, documents=True, corruption=ends_too)[0]
    assert (batch.targets == 0).any()
    text = np.where(batch.targets == IGNORED, batch.ids, batch.targets)
    assert np.array_equal(batch.documents, document_numbers(text, 0))


@given(length=st.integers(1, 300), density=st.floats(0.05, 0.6), mean=st.floats(1, 8), seed=seeds)
@settings(max_examples=200)
def test_hidden_spans_come_back_from_the_targets(length, density, mean, seed):
    tokens = np.random.default_rng(seed).integers(0, VOCAB, (3, length))
    corruption = SpanCorruption(sentinels=SENTINELS, start=1, end_of_text=0, density=density, mean_span=mean)
    batch = corruption(tokens, np.ones(tokens.shape, dtype=bool), row_keys(seed, np.arange(3)))
    assert (batch.ids.shape[1], batch.targets.shape[1]) == corruption.lengths(length)
    assert batch.present is None
    assert (batch.decoder_ids[:, 0] == 1).all()
    assert np.array_equal(batch.decoder_ids[:, 1:], batch.targets[:, :-1])
    assert restored(batch) == tokens.tolist()


def test_a_window_of_512_is_corrupted_in_the_numbers_of_t5():
    """77 of 512 tokens in 26 spans, each of at least one token, as random_spans_noise_mask has them."""
    tokens, present, keys = windows(400, 512)
    batch = spans(tokens, present, keys)
    assert batch.ids.shape == (400, 512 - 77 + 26 + 1)
    assert batch.targets.shape == (400, 77 + 26 + 1 + 1)
    assert ((batch.ids >= VOCAB).sum(axis=1) == 26).all()
    assert (batch.ids[:, 0] < VOCAB).all()  # a window begins with text and ends with a span
    assert (batch.ids[:, -2] == SENTINELS[25]).all()
    is_sentinel = batch.targets >= VOCAB
    assert not (is_sentinel[:, 1:] & is_sentinel[:, :-1]).any()  # no span is empty
    firsts = np.array([np.diff(np.flatnonzero(row)) - 1 for row in is_sentinel])
    assert firsts.mean() == pytest.approx(77 / 26)
    assert np.abs(firsts.mean(axis=0) - 77 / 26).max() < 0.6  # early spans are as long as late ones


def test_the_filled_window_says_which_inputs_are_text():
    view = view_of(70)
    masked, spanned = (list(sequential(view, context=50, batch_size=2, corruption=way)) for way in (masking, spans))
    assert masked[0].present.sum(axis=1).tolist() == [50, 20]
    assert spanned[0].present.sum(axis=1).tolist() == [50 - 8 + 3 + 1, 20 - 3 + 1 + 1]
    assert (spanned[0].targets[1] != IGNORED).sum() == 3 + 1 + 1 + 1
    assert spanned[0].rows(slice(0, 1)).present is None  # all of it is text
    assert Batches(view_of(100), context=50, batch_size=2, seed=0, corruption=masking)[0].present is None


def test_a_batch_is_corrupted_in_little_time():
    """Next to a training step it must not count."""
    tokens, present, keys = windows(32, 256)

    def seconds(corruption: Corruption) -> float:
        started = time.perf_counter()
        corruption(tokens, present, keys)
        return time.perf_counter() - started

    assert max(min(seconds(corruption) for _ in range(30)) for corruption in (masking, whole_words, spans)) < 0.01


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: Batches(view_of(3000), context=2048, batch_size=1, seed=0, corruption=spans),
            "windows of 2048 tokens need 103 sentinels, but there are 100; "
            "choose a smaller context or longer spans, or a tokenizer with more sentinels",
        ),
        (
            lambda: sequential(view_of(30), context=8, batch_size=1, corruption=spans),
            "windows of 8 tokens would become 9 inputs and 4 targets, more than a context; "
            "choose a larger context, or longer spans",
        ),
        (
            lambda: Batches(view_of(300), context=64, batch_size=1, seed=0, documents=True, corruption=spans),
            "windows of 64 tokens become 58 inputs and 15 targets, which document masks do not fit; switch document masks off",
        ),
        (
            lambda: Masking(mask=3, special=(), vocab=9, rate=1.5),
            "the masking rate is 1.5; it must lie between 0 and 1",
        ),
        (
            lambda: Masking(mask=9, special=(), vocab=9),
            "the mask token is 9, which is not among the 9 of the vocabulary; name one that is",
        ),
        (
            lambda: Masking(mask=0, special=(1,), vocab=2),
            "all 2 tokens of the vocabulary are special; masking needs ordinary ones",
        ),
        (
            lambda: Masking(mask=0, special=(), vocab=9, word_starts=STARTS),
            "word_starts is about 5000 tokens, the vocabulary has 9; give one for each",
        ),
        (
            lambda: SpanCorruption(sentinels=SENTINELS, start=1, end_of_text=0, density=0),
            "the noise density is 0; it must lie between 0 and 1",
        ),
        (
            lambda: SpanCorruption(sentinels=SENTINELS, start=1, end_of_text=0, mean_span=0.5),
            "the mean span length is 0.5; it must be at least 1",
        ),
    ],
)
def test_what_makes_no_sense_is_one_clear_sentence(call, said):
    with pytest.raises(ConfigError) as caught:
        call()
    assert str(caught.value) == said
