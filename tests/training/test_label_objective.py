"""Learning labels: torch's own losses and formulas written out are the judges, and no cut of a batch changes a gradient."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SMALL, randomised

from pellucid.network.families import FAMILIES
from pellucid.network.labels import with_labels
from pellucid.text.batches import IGNORED
from pellucid.text.examples import Example, collate
from pellucid.training.finetune import parts_of
from pellucid.training.label_objective import LabelPrediction

LABELS = ("a", "b", "c")
SIZES = {"vocab_size": 50, "context_length": 32, "d_model": 24, "layers": 2}
CONFIGS = {
    "qwen3": SMALL,
    "bert": FAMILIES["bert"].new(**SIZES, heads=4, kv_heads=4, d_head=6, d_mlp=40, dropout=0.0),
    "lstm": FAMILIES["lstm"].new(**SIZES),
    "bag-of-words": FAMILIES["bag-of-words"].new(**SIZES),
}
LENGTHS = (9, 7, 7, 4, 3, 1)


def network(name="qwen3", head="classify", problem="single", labels=LABELS):
    """A network with a head for labels, ready to learn."""
    labelled = with_labels(randomised(CONFIGS[name]), head=head, labels=labels, problem=problem, seed=3)
    torch.nn.init.normal_(labelled.head.weight, std=0.5, generator=torch.Generator().manual_seed(4))
    return labelled.requires_grad_(True).train()


def targets(kind, seed=0):
    """A target for each row."""
    chance, rows = np.random.default_rng(seed), len(LENGTHS)
    if kind == "single":
        return [int(number) for number in chance.integers(0, 3, rows)]
    if kind == "multi":
        return [chance.integers(0, 2, 3).astype(np.float32) for _ in range(rows)]
    if kind == "regression":
        return [float(number) for number in chance.normal(size=rows)]
    tags = [chance.integers(0, 3, length) for length in LENGTHS]
    for row in tags:
        row[1::3] = IGNORED
    return [row.astype(np.int64) for row in tags]


def examples(kind, seed=0):
    chance = np.random.default_rng(seed)
    ids = [chance.integers(1, 50, length) for length in LENGTHS]
    return [Example(row, target) for row, target in zip(ids, targets(kind, seed=seed), strict=True)]


def objective(kind, weights=None, smoothing=0.0, variance=1.0):
    problem = "single" if kind == "tag" else kind
    return LabelPrediction(problem, weights=weights, smoothing=smoothing, variance=variance)


def gradients(net, teach, batch, pieces):
    """What a step would hand to its optimizer, and the mean loss."""
    net.zero_grad()
    total = 0.0
    for rows in pieces:
        loss = teach.loss(net, batch.rows(rows)) / teach.count(batch)
        loss.backward()
        total += loss.item()
    return total, {name: weight.grad.clone() for name, weight in net.named_parameters() if weight.grad is not None}


KINDS = {"single": "classify", "multi": "classify", "regression": "classify", "tag": "tag"}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_any_cut_of_a_batch_gives_the_gradients_of_the_whole(name, kind, weighted):
    if (name, kind) == ("bag-of-words", "tag") or (weighted and kind == "regression"):
        return
    labels, problem = (("y",), "regression") if kind == "regression" else (LABELS, "multi" if kind == "multi" else "single")
    net = network(name, KINDS[kind], problem, labels)
    teach = objective(kind, torch.tensor([0.5, 2.0, 3.0]) if weighted else None)
    batch = collate(examples(kind), 0)
    whole_loss, whole = gradients(net, teach, batch, [slice(0, len(LENGTHS))])
    assert whole_loss > 0
    for tokens in (1, 8, 16, 20, 1000):
        loss, cut = gradients(net, teach, batch, parts_of(batch, tokens))
        assert loss == pytest.approx(whole_loss, abs=1e-5)
        assert cut.keys() == whole.keys()
        for at, gradient in cut.items():
            assert (gradient - whole[at]).abs().max() < 1e-5 * max(1.0, whole[at].abs().max().item()), (tokens, at)


@settings(max_examples=30)
@given(order=st.permutations(range(len(LENGTHS))), tokens=st.integers(1, 60), kind=st.sampled_from(sorted(KINDS)))
def test_the_order_of_rows_and_their_padding_change_nothing(order, tokens, kind):
    labels, problem = (("y",), "regression") if kind == "regression" else (LABELS, "multi" if kind == "multi" else "single")
    net, teach, rows = network("qwen3", KINDS[kind], problem, labels), objective(kind), examples(kind)
    loss, found = gradients(net, teach, collate(rows, 0), [slice(0, len(rows))])
    moved = collate([rows[at] for at in order], pad=7)
    other, shuffled = gradients(net, teach, moved, parts_of(moved, tokens))
    assert other == pytest.approx(loss, abs=1e-5)
    for at, gradient in found.items():
        assert (gradient - shuffled[at]).abs().max() < 1e-5 * max(1.0, gradient.abs().max().item()), at


@given(tokens=st.integers(1, 100), group=st.sampled_from([1, 2]), lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12))
def test_parts_of_a_batch_are_its_rows_once_in_order_and_small_enough(tokens, group, lengths):
    rows = [Example(np.ones(length, np.int64), 0) for length in lengths for _ in range(group)]
    batch = collate(rows, 0)
    parts = list(parts_of(batch, tokens, group))
    assert [number for part in parts for number in range(part.start, part.stop)] == list(range(len(rows)))
    for part in parts:
        assert (part.stop - part.start) % group == 0
        assert part.stop - part.start == group or batch.rows(part).ids.size <= tokens


@given(seed=st.integers(0, 100), smoothing=st.sampled_from([0.0, 0.1, 0.5]))
def test_weighted_classes_and_smoothing_are_torchs_weighted_mean(seed, smoothing):
    generator = torch.Generator().manual_seed(seed)
    logits, weights = torch.randn(6, 3, generator=generator), torch.rand(3, generator=generator) + 0.1
    batch = collate(examples("single", seed), 0)
    wanted = torch.from_numpy(batch.targets)
    teach = objective("single", weights, smoothing)
    mean = teach.loss_of(logits, wanted) / teach.count(batch)
    assert mean.item() == pytest.approx(
        F.cross_entropy(logits, wanted, weight=weights, label_smoothing=smoothing).item(), rel=1e-5
    )


def test_smoothing_is_the_formula():
    logits, wanted, share = torch.tensor([[1.0, -2.0, 0.5]]).double(), torch.tensor([2]), 0.3
    logprobs = logits.log_softmax(-1)[0]
    expected = -(1 - share) * logprobs[2] - share * logprobs.mean()
    assert objective("single", smoothing=share).loss_of(logits, wanted).item() == pytest.approx(expected.item())


def test_several_labels_are_each_a_choice_of_its_own():
    logits, wanted = (
        torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]]).double(),
        torch.tensor([[1.0, 0, 1], [0, 1, 0]]).double(),
    )
    weights = torch.tensor([0.5, 2.0, 3.0]).double()
    yes = torch.sigmoid(logits)
    each = -(wanted * yes.log() + (1 - wanted) * (1 - yes).log())
    assert objective("multi").loss_of(logits, wanted).item() == pytest.approx(each.sum().item())
    assert objective("multi", weights).loss_of(logits, wanted).item() == pytest.approx((each * weights).sum().item())
    batch = collate(
        [Example(np.ones(2, np.int64), np.float32([1, 0, 1])), Example(np.ones(3, np.int64), np.float32([0, 1, 0]))], 0
    )
    assert objective("multi").count(batch) == 6
    assert objective("multi", weights).count(batch) == 2 * 5.5


def test_numbers_are_squared_errors_over_the_variance_and_each_of_them_counts():
    batch = collate([Example(np.ones(2, np.int64), value) for value in (1.5, float(IGNORED), -2.0)], 0)
    teach = objective("regression", variance=4.0)
    assert teach.count(batch) == 3  # the number that marks tokens to ignore is a number like any other
    logits = torch.tensor([[1.0], [-98.0], [0.0]])
    assert teach.loss_of(logits, torch.from_numpy(batch.targets)).item() == pytest.approx((0.25 + 4 + 4) / 4)
    assert teach.right(logits, torch.from_numpy(batch.targets)) == (0, 0)


def test_tags_count_where_a_word_begins():
    logits, wanted = (
        torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0)),
        torch.tensor([[0, IGNORED, 2], [1, 1, IGNORED]]),
    )
    logprobs = logits.log_softmax(-1)
    expected = -(logprobs[0, 0, 0] + logprobs[0, 2, 2] + logprobs[1, 0, 1] + logprobs[1, 1, 1])
    assert objective("tag").loss_of(logits, wanted).item() == pytest.approx(expected.item(), rel=1e-5)
    weights = torch.tensor([1.0, 2.0, 5.0])
    batch = collate([Example(np.ones(3, np.int64), row.numpy()) for row in wanted], 0)
    assert (objective("tag").count(batch), objective("tag", weights).count(batch)) == (4, 10)


def test_what_is_right():
    wanted = torch.tensor([[0, IGNORED, 2], [1, 1, IGNORED]])
    logits = F.one_hot(torch.tensor([[0, 1, 1], [1, 1, 0]]), 3).float()
    assert objective("tag").right(logits, wanted) == (3, 4)
    several = torch.tensor([[1.0, 0, 1]])
    assert objective("multi").right(torch.tensor([[2.0, -1.0, -3.0]]), several) == (2, 3)
