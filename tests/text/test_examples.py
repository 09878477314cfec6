"""Examples and their batches: all once an epoch, a pure function of the number, little filling, nothing lost when packed."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SMALL

from pellucid.core.errors import ConfigError
from pellucid.network.build import build
from pellucid.text.batches import IGNORED, Batch
from pellucid.text.examples import POOL, Example, ExampleBatches, collate, pack, sequential_examples
from pellucid.training.objectives import TokenPrediction

lengths = st.lists(st.integers(1, 30), min_size=1, max_size=60)


def examples_of(sizes: list[int]) -> list[Example]:
    """Example n has tokens 1000 n + 1, 1000 n + 2, ... and the class n."""
    return [Example(np.arange(1, size + 1) + 1000 * n, n) for n, size in enumerate(sizes)]


def tagged(sizes: list[int]) -> list[Example]:
    return [Example(example.ids, example.ids + 1) for example in examples_of(sizes)]


def same(one: Batch, other: Batch) -> bool:
    names = ("ids", "targets", "documents", "decoder_ids", "present", "reference")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


@given(lengths, st.integers(1, 9), st.integers(0, 2**64), st.integers(0, 3))
def test_every_example_comes_once_an_epoch(sizes, batch_size, seed, epoch):
    batches = ExampleBatches(examples_of(sizes), batch_size=batch_size, seed=seed, pad=0)
    count = batches.batches_per_epoch
    assert count == -(-len(sizes) // batch_size)
    rows = [batches[number].targets for number in range(epoch * count, (epoch + 1) * count)]
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(sizes)))
    assert all(len(row) == batch_size for row in rows[:-1])
    assert not batches.continues(epoch)


@given(lengths, st.integers(1, 9), st.integers(0, 2**64), st.lists(st.integers(0, 40), max_size=6))
def test_a_batch_depends_on_nothing_but_its_number(sizes, batch_size, seed, before):
    def make() -> ExampleBatches:
        return ExampleBatches(examples_of(sizes), batch_size=batch_size, seed=seed, pad=0)

    used = make()
    for number in before:
        used[number]
    assert same(used[7], make()[7])


@given(lengths, st.integers(1, 9), st.integers(0, 20))
def test_rows_go_from_long_to_short_and_say_what_is_filling(sizes, batch_size, number):
    batch = ExampleBatches(tagged(sizes), batch_size=batch_size, seed=3, pad=9)[number]
    present = np.ones(batch.ids.shape, dtype=bool) if batch.present is None else batch.present
    long = present.sum(axis=1)
    assert (np.diff(long) <= 0).all()
    assert batch.ids.shape[1] == min(-(-long[0] // 4) * 4, max(sizes))  # of few widths, none beyond the longest text
    assert (batch.ids[~present] == 9).all()
    assert ((batch.targets == IGNORED) == ~present).all()
    assert (batch.targets[present] == batch.ids[present] + 1).all()


def test_epochs_have_orders_of_their_own():
    batches = ExampleBatches(examples_of([5] * 64), batch_size=8, seed=1, pad=0)
    first, second = ([batches.indices(n) for n in range(start, start + 8)] for start in (0, 8))
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(64))
    assert {frozenset(rows) for rows in first} != {frozenset(rows) for rows in second}


def test_rows_of_like_length_come_together_and_batches_in_random_order():
    sizes = (4 * np.random.default_rng(0).integers(1, 50, 4000)).tolist()
    batches = ExampleBatches(examples_of(sizes), batch_size=20, seed=1, pad=0)
    made = [batches[n] for n in range(batches.batches_per_epoch)]
    filling = 1 - sum(sizes) / sum(batch.ids.size for batch in made)
    assert filling < 0.03  # at random it would be about half
    widths = np.array([batch.ids.shape[1] for batch in made])
    assert abs(np.corrcoef(widths[:-1], widths[1:])[0, 1]) < 0.25
    assert len(made) > POOL
    assert batches.context == round(sum(sizes) / len(sizes))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=20), st.integers(1, 4), st.integers(0, 9))
def test_pairs_stay_side_by_side_and_in_order(sizes, pairs, number):
    batches = ExampleBatches(examples_of([*sizes, *reversed(sizes)]), batch_size=2 * pairs, seed=5, pad=0, group=2)
    rows = batches[number].targets.tolist()
    assert all(chosen % 2 == 0 and rejected == chosen + 1 for chosen, rejected in zip(rows[::2], rows[1::2], strict=True))


@given(lengths, st.integers(1, 7), st.data())
def test_a_part_of_a_batch_is_about_as_short_as_its_longest_row(sizes, batch_size, data):
    batch = ExampleBatches(tagged(sizes), batch_size=batch_size, seed=2, pad=0)[0]
    start = data.draw(st.integers(0, len(batch.ids) - 1))
    part = batch.rows(slice(start, start + 2))
    assert part.ids.shape == part.targets.shape
    long = max((row != 0).sum() for row in batch.ids[start : start + 2])
    width = part.ids.shape[1]
    assert width == min(-(-long // 4) * 4, batch.ids.shape[1])
    assert (part.ids == batch.ids[start : start + 2, :width]).all()


def test_batches_that_are_not_of_examples_keep_their_filling():
    ids = np.array([[1, 2, 0], [1, 0, 0]])
    assert Batch(ids, ids, present=ids > 0).rows(slice(1, 2)).ids.shape == (1, 3)


def test_targets_of_every_kind():
    ids = np.array([1, 2])
    short = np.array([3])
    assert collate([Example(ids, 2), Example(short, 0)], 0).targets.tolist() == [2, 0]
    assert collate([Example(ids, 0.5), Example(short, 2.0)], 0).targets.tolist() == [[0.5], [2.0]]
    several = [Example(ids, np.array([0, 1, 1], dtype=np.float32)), Example(short, np.array([1, 0, 0], dtype=np.float32))]
    batch = collate(several, 0)
    assert batch.targets.dtype == np.float32
    assert batch.rows(slice(1, 2)).targets.tolist() == [[1, 0, 0]]  # labels are no tokens: none is cut off
    assert batch.rows(slice(1, 2)).ids.tolist() == [[3, 0]]
    assert collate([Example(ids, 0, reference=-1.5)], 0).reference.tolist() == [-1.5]


def test_the_decoder_of_a_part_is_as_short_as_its_targets():
    long = Example(np.array([1]), np.array([5, 6, 7]), decoder_ids=np.array([0, 5, 6]))
    short = Example(np.array([1, 2]), np.array([8]), decoder_ids=np.array([0]))
    part = collate([short, long], 0).rows(slice(0, 1))
    assert (part.ids.tolist(), part.targets.tolist(), part.decoder_ids.tolist()) == ([[1, 2]], [[8]], [[0]])


@given(lengths, st.integers(1, 9), st.integers(1, 90))
def test_in_sequence_all_examples_come_once_within_the_limits(sizes, batch_size, batch_tokens):
    seen: list[int] = []
    for batch, indices in sequential_examples(examples_of(sizes), pad=0, batch_size=batch_size, batch_tokens=batch_tokens):
        assert batch.targets.tolist() == indices.tolist()
        assert len(indices) <= batch_size
        assert batch.ids.size <= batch_tokens or len(indices) == 1
        seen += indices.tolist()
    assert sorted(seen) == list(range(len(sizes)))
    assert [sizes[index] for index in seen] == sorted(sizes, reverse=True)


@given(lengths, st.integers(30, 90))
def test_packing_loses_nothing_and_splits_nothing(sizes, context):
    examples = tagged(sizes)
    rows = pack(examples, context)
    pieces = []
    for row in rows:
        assert len(row.ids) <= context
        for number in range(row.documents.max() + 1):
            inside = row.documents == number
            assert (row.target[inside] == row.ids[inside] + 1).all()
            pieces.append(row.ids[inside].tolist())
    assert sorted(pieces) == sorted(example.ids.tolist() for example in examples)
    fewest = -(-sum(sizes) // context)
    assert len(rows) <= 2 * fewest + 1
    assert [row.ids.tolist() for row in pack(examples, context)] == [row.ids.tolist() for row in rows]


def test_filling_is_a_document_that_no_text_is_in():
    rows = pack(tagged([4, 3, 2]), 7)
    batch = collate([*rows, *tagged([1])], 0)
    assert batch.documents.tolist() == [[0, 0, 0, 0, 1, 1, 1], [0, 0, *[-1] * 5], [0, *[-1] * 6]]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda: ExampleBatches([], batch_size=2, seed=0, pad=0), "there are no examples to make batches of; give some"),
        (
            lambda: ExampleBatches(examples_of([1]), batch_size=0, seed=0, pad=0),
            "the batch size is 0; it must be a multiple of 1, and at least 1",
        ),
        (
            lambda: ExampleBatches(examples_of([1, 1]), batch_size=3, seed=0, pad=0, group=2),
            "the batch size is 3; it must be a multiple of 2, and at least 1",
        ),
        (
            lambda: ExampleBatches(examples_of([1]), batch_size=2, seed=0, pad=0, group=2),
            "1 examples do not make groups of 2; give each its partner",
        ),
        (lambda: Example(np.array([], dtype=np.int64), 0), "an example has no tokens; leave it out"),
        (lambda: pack(tagged([9]), 8), "an example has 9 tokens, more than a context of 8; cut it, or leave it out"),
        (
            lambda: pack(examples_of([3]), 8),
            "only examples with a target for each token can share a row; switch packing off",
        ),
        (
            lambda: pack([Example(np.array([1]), np.array([1]), decoder_ids=np.array([0]))], 8),
            "examples of an encoder-decoder, of pairs, or packed already cannot share a row; switch packing off",
        ),
        (
            lambda: list(sequential_examples(examples_of([1]), pad=0)),
            "batches of None rows and None tokens make no sense; give one that is at least 1",
        ),
        (
            lambda: list(sequential_examples(examples_of([1]), pad=0, batch_size=0)),
            "batches of 0 rows and None tokens make no sense; give one that is at least 1",
        ),
    ],
)
def test_what_makes_no_sense_is_one_sentence(wrong, sentence):
    with pytest.raises(ConfigError) as error:
        wrong()
    assert str(error.value) == sentence


def test_a_batch_before_the_first_does_not_exist():
    with pytest.raises(IndexError, match="batch -1 does not exist"):
        ExampleBatches(examples_of([1]), batch_size=1, seed=0, pad=0)[-1]


@given(st.lists(st.integers(1, 12), min_size=2, max_size=8), st.integers(12, 32), st.integers(0, 99))
@settings(max_examples=20)
def test_packed_rows_and_parts_of_batches_teach_what_single_rows_do(sizes, context, seed):
    network = build(SMALL, seed=0)
    random = np.random.default_rng(seed)
    tokens = [random.integers(1, 50, size + 1) for size in sizes]
    examples = [Example(row[:-1], np.where(random.random(len(row) - 1) < 0.3, IGNORED, row[1:])) for row in tokens]
    lesson = TokenPrediction()

    def loss(batch: Batch) -> float:
        return lesson.loss(network, batch).item() if lesson.count(batch) else 0.0

    alone = sum(loss(collate([example], 0)) for example in examples)
    packed = collate(pack(examples, context), 0)
    assert loss(packed) == pytest.approx(alone, rel=1e-5)
    assert sum(loss(packed.rows(slice(n, n + 1))) for n in range(len(packed.ids))) == pytest.approx(alone, rel=1e-5)
    batches = ExampleBatches(examples, batch_size=3, seed=1, pad=0)
    parts = [
        batches[n].rows(slice(r, r + 2)) for n in range(batches.batches_per_epoch) for r in range(0, len(batches[n].ids), 2)
    ]
    assert sum(map(loss, parts)) == pytest.approx(alone, rel=1e-5)
