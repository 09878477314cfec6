"""Batches: pure functions of a number, and no token is missed or met twice."""

import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.core.errors import ConfigError, CorpusError
from pellucid.text.batches import IGNORED, Batches, Lanes, document_numbers, sequential
from pellucid.text.view import SECTIONS, TokenView


def view_of(lengths: list[int], chosen: list[bool] | None = None) -> TokenView:
    """Sections of some lengths; every token is another number, ends are 0."""
    numbers = iter(range(1, 10**6))
    tokens = [token for length in lengths for token in (*(next(numbers) for _ in range(length)), 0)]
    ends = np.cumsum([length + 1 for length in lengths])
    records = np.array([(end, end, length, 0) for end, length in zip(ends, lengths, strict=True)], dtype=SECTIONS)
    mask = np.ones(len(lengths), dtype=bool) if chosen is None else np.array(chosen)
    return TokenView(np.array(tokens, dtype=np.uint32), records, mask, 0, "key")


streams = st.lists(st.integers(0, 40), min_size=1, max_size=12)


@given(streams, st.integers(1, 50), st.integers(1, 9), st.integers(0, 2**63), st.integers(0, 3))
@settings(max_examples=200)
def test_every_token_of_every_epoch_is_a_target_exactly_once(lengths, context, batch_size, seed, epoch):
    view = view_of(lengths)
    context = min(context, view.tokens)
    batches = Batches(view, context=context, batch_size=batch_size, seed=seed)
    first, last = epoch * batches.windows, (epoch + 1) * batches.windows  # of the rows of all batches, those of this epoch
    targets = []
    for number in range(first // batch_size, -(-last // batch_size)):
        batch = batches[number]
        assert batch.ids.shape == batch.targets.shape == (batch_size, context)
        rows = np.arange(number * batch_size, (number + 1) * batch_size)
        inside = (rows >= first) & (rows < last)
        targets += batch.targets[inside][batch.targets[inside] != IGNORED].tolist()
    assert view.tokens == len(targets)
    assert sorted(targets) == sorted(view.read(0, view.tokens).tolist())


@given(streams, st.integers(1, 50), st.integers(0, 20))
def test_the_input_of_a_target_is_the_token_before_it(lengths, context, number):
    view = view_of(lengths)
    batches = Batches(view, context=min(context, view.tokens), batch_size=3, seed=1)
    stream = [0, *view.read(0, view.tokens).tolist()]
    before = {token: stream[place] for place, token in enumerate(stream[1:]) if token != 0}
    batch = batches[number]
    assert all(
        before[target] == id
        for id, target in zip(batch.ids.ravel().tolist(), batch.targets.ravel().tolist(), strict=True)
        if target > 0
    )
    known = batch.targets[:, :-1] != IGNORED
    assert (batch.ids[:, 1:][known] == batch.targets[:, :-1][known]).all()


@given(st.integers(0, 30), st.integers(0, 5), st.integers(0, 5))
def test_a_batch_depends_on_nothing_but_its_number(number, start, count):
    view = view_of([30, 7, 51, 3, 80])

    def fresh() -> Batches:
        return Batches(view, context=8, batch_size=5, seed=7, documents=True)

    used = fresh()
    for other in (40, 3, 0, number + 1):
        used[other]
    whole, again = fresh()[number], used[number]
    part, other = used.rows(number, slice(start, start + count)), whole.rows(slice(start, start + count))
    for name in ("ids", "targets", "documents"):
        assert np.array_equal(getattr(whole, name), getattr(again, name))
        assert np.array_equal(getattr(part, name), getattr(other, name))
        assert getattr(whole, name).dtype == np.int64


def test_epochs_and_seeds_have_orders_of_their_own():
    view = view_of([4000])

    def order(seed: int, epoch: int) -> list[int]:
        batches = Batches(view, context=1, batch_size=4001, seed=seed)
        return batches[epoch].targets.ravel().tolist()

    orders = [order(seed, epoch) for seed in (0, 1, 2**64 - 1) for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 6
    correlations = np.abs(np.corrcoef(orders)[np.triu_indices(6, 1)])
    assert correlations.max() < 0.08


def test_the_order_is_the_same_on_every_machine():
    """A golden value: batches of old runs must not change under a resume."""
    batch = Batches(view_of([100, 50, 75]), context=10, batch_size=4, seed=1234)[3]
    assert zlib.crc32(batch.ids.astype("<i8").tobytes() + batch.targets.astype("<i8").tobytes()) == 1525195428


def test_the_last_window_is_filled_with_targets_to_ignore():
    [batch] = sequential(view_of([6]), context=5, batch_size=4)
    assert batch.ids.tolist() == [[0, 1, 2, 3, 4], [5, 6, 0, 0, 0]]
    assert batch.targets.tolist() == [[1, 2, 3, 4, 5], [6, 0, IGNORED, IGNORED, IGNORED]]


def test_documents_are_numbered_within_a_row():
    [batch] = sequential(view_of([2, 3, 1]), context=5, batch_size=4, documents=True)
    assert batch.ids.tolist() == [[0, 1, 2, 0, 3], [4, 5, 0, 6, 0]]
    assert batch.documents.tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 1, 2]]
    assert document_numbers(np.array([[5, 0, 0, 6]]), 0).tolist() == [[0, 1, 2, 2]]
    assert next(sequential(view_of([9]), context=2, batch_size=2)).documents is None


@given(streams, st.integers(1, 30), st.integers(1, 5))
def test_in_order_every_token_is_a_target_once(lengths, context, batch_size):
    view = view_of(lengths)
    targets = np.concatenate([batch.targets.ravel() for batch in sequential(view, context=context, batch_size=batch_size)])
    assert targets[targets != IGNORED].tolist() == view.read(0, view.tokens).tolist()


def test_a_limit_takes_windows_evenly_spaced():
    view = view_of([999])
    batches = list(sequential(view, context=10, batch_size=3, limit=7))
    firsts = [int(row[0]) for batch in batches for row in batch.targets]
    assert firsts == [1, 141, 281, 421, 571, 711, 851]
    assert [len(batch.ids) for batch in batches] == [3, 3, 1]
    assert sum(len(batch.ids) for batch in sequential(view, context=10, batch_size=3, limit=500)) == 100


def test_text_shorter_than_a_context_is_one_clear_sentence():
    with pytest.raises(CorpusError) as caught:
        Batches(view_of([6]), context=8, batch_size=1, seed=0)
    assert str(caught.value) == "the text has 7 tokens, fewer than one context of 8; give more text, or a smaller context"
    assert Batches(view_of([6]), context=7, batch_size=1, seed=0).windows == 1
    assert len(list(sequential(view_of([6]), context=8, batch_size=1))) == 1  # a short text can still be evaluated


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"context": 0, "batch_size": 1}, "the context is 0 tokens; it must be at least 1"),
        ({"context": 1, "batch_size": 0}, "the batch size is 0; it must be at least 1"),
        ({"context": 1, "batch_size": -3}, "the batch size is -3; it must be at least 1"),
    ],
)
def test_sizes_that_make_no_sense_are_one_clear_sentence(options, said):
    for call in (lambda: Batches(view_of([6]), seed=0, **options), lambda: sequential(view_of([6]), **options)):
        with pytest.raises(ConfigError) as caught:
            call()
        assert str(caught.value) == said
    with pytest.raises(ConfigError, match="the limit is 0 windows; it must be at least 1"):
        sequential(view_of([6]), context=1, batch_size=1, limit=0)
    with pytest.raises(IndexError, match="batch -1 does not exist; numbers begin at 0"):
        Batches(view_of([6]), context=1, batch_size=1, seed=0)[-1]


@given(streams, st.integers(1, 50), st.integers(1, 9), st.integers(0, 2))
@settings(max_examples=200)
def test_lanes_are_contiguous_shares_that_hold_every_token_once(lengths, context, batch_size, epoch):
    view = view_of(lengths)
    lanes = Lanes(view, context=min(context, view.tokens), batch_size=batch_size)
    numbers = range(epoch * lanes.batches_per_epoch, (epoch + 1) * lanes.batches_per_epoch)
    batches = [lanes[number] for number in numbers]
    shares = np.hstack([batch.targets for batch in batches])  # row by row, each as one text
    assert shares[shares != IGNORED].tolist() == view.read(0, view.tokens).tolist()
    assert [lanes.continues(number) for number in numbers] == [False] + [True] * (len(numbers) - 1)
    for before, after in pairwise(batches):
        goes_on = after.targets[:, 0] != IGNORED
        assert (after.ids[goes_on, 0] == before.targets[goes_on, -1]).all()
    windows = (shares[:, :: lanes.context] != IGNORED).sum(axis=1)
    assert windows.max() - windows.min() <= 1  # shares are even
    assert all((batch.targets != IGNORED).any() for batch in batches)


@given(st.integers(0, 30), st.integers(0, 5), st.integers(0, 5))
def test_a_batch_of_lanes_depends_on_nothing_but_its_number(number, start, count):
    lanes = Lanes(view_of([30, 7, 51, 3, 80]), context=8, batch_size=5)
    whole, part = lanes[number].rows(slice(start, start + count)), lanes.rows(number, slice(start, start + count))
    again = lanes[number + lanes.batches_per_epoch].rows(slice(start, start + count))  # every epoch is in the same order
    for name in ("ids", "targets"):
        assert np.array_equal(getattr(whole, name), getattr(part, name))
        assert np.array_equal(getattr(whole, name), getattr(again, name))


def test_a_share_that_has_ended_is_ignored():
    lanes = Lanes(view_of([12]), context=3, batch_size=2)  # 5 windows in 2 lanes
    assert [lanes[number].targets.tolist() for number in range(3)] == [
        [[1, 2, 3], [7, 8, 9]],
        [[4, 5, 6], [10, 11, 12]],
        [[IGNORED] * 3, [0, IGNORED, IGNORED]],
    ]
    assert lanes[0].ids.tolist() == [[0, 1, 2], [6, 7, 8]]
    assert not Batches(view_of([12]), context=3, batch_size=2, seed=0).continues(1)
