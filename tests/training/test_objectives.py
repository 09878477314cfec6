"""The loss against torch's own, in value, in gradient, and in the memory it may take."""

from itertools import pairwise

import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pellucid.text.batches import IGNORED, Batches
from pellucid.training import objectives
from pellucid.training.objectives import TokenPrediction, cross_entropy


def tensors(tokens=40, d_model=8, vocab=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, d_model, generator=generator, requires_grad=True)
    weight = torch.randn(vocab, d_model, generator=generator, requires_grad=True)
    targets = torch.randint(vocab, (tokens,), generator=generator)
    targets[torch.rand(tokens, generator=generator) < 0.2] = IGNORED
    return hidden, weight, targets


def with_gradients(loss, hidden, weight):
    return loss, *torch.autograd.grad(loss, (hidden, weight))


@settings(max_examples=30)
@given(tokens=st.integers(1, 60), vocab=st.integers(2, 40), limit=st.integers(1, 500), seed=st.integers(0, 99))
def test_the_loss_in_pieces_is_torchs_loss_with_its_gradients(tokens, vocab, limit, seed):
    hidden, weight, targets = tensors(tokens, vocab=vocab, seed=seed)
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="sum", ignore_index=IGNORED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objectives, "LOGITS", limit)
        ours = with_gradients(cross_entropy(hidden, weight, targets), hidden, weight)
    for mine, theirs in zip(ours, with_gradients(expected, hidden, weight), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("limit", [objectives.LOGITS, 100])
def test_the_loss_is_that_of_torchs_linear_cross_entropy(monkeypatch, limit):
    hidden, weight, targets = tensors()
    monkeypatch.setattr(objectives, "LOGITS", limit)
    theirs = F.linear_cross_entropy(hidden, weight, targets, reduction="sum", ignore_index=IGNORED)
    torch.testing.assert_close(cross_entropy(hidden, weight, targets), theirs, rtol=1e-5, atol=1e-5)


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor):
                self.numbers = max(self.numbers, value.numel())
        return result


def test_no_more_logits_exist_at_once_than_the_limit_forwards_and_backwards(monkeypatch):
    hidden, weight, targets = tensors(tokens=400, vocab=100)
    monkeypatch.setattr(objectives, "LOGITS", 1000)
    with Largest() as largest:
        cross_entropy(hidden, weight, targets).backward()
    assert largest.numbers == hidden.numel()  # 3,200, where all logits are 40,000
    monkeypatch.setattr(objectives, "LOGITS", 10**9)
    with Largest() as largest:
        cross_entropy(hidden, weight, targets).backward()
    assert largest.numbers == 40_000


@pytest.mark.parametrize("limit", [objectives.LOGITS, 100])
def test_bf16_activations_get_the_gradient_of_exact_ones(monkeypatch, limit):
    hidden, weight, targets = tensors(tokens=200)
    monkeypatch.setattr(objectives, "LOGITS", limit)
    _, *exact = with_gradients(cross_entropy(hidden, weight, targets), hidden, weight)
    rough = hidden.detach().bfloat16().requires_grad_()
    _, *gradients = with_gradients(cross_entropy(rough, weight, targets), rough, weight)
    for ours, theirs in zip(gradients, exact, strict=True):
        assert float((ours.float() - theirs).norm() / theirs.norm()) < 0.01


@pytest.mark.parametrize("trained", [{"hidden"}, {"weight"}, {"bias"}, {"hidden", "weight", "bias"}])
def test_in_pieces_a_gradient_goes_to_whatever_is_trained_and_nowhere_else(monkeypatch, trained):
    hidden, weight, targets = tensors()
    given = {"hidden": hidden, "weight": weight, "bias": torch.linspace(-1, 1, len(weight))}
    given = {name: value.detach().requires_grad_(name in trained) for name, value in given.items()}
    logits = F.linear(given["hidden"], given["weight"], given["bias"])
    loss = 3 * F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED)
    theirs = torch.autograd.grad(loss, [given[name] for name in sorted(trained)])
    monkeypatch.setattr(objectives, "LOGITS", 100)
    (3 * cross_entropy(given["hidden"], given["weight"], targets, given["bias"])).backward()
    assert {name for name, value in given.items() if value.grad is not None} == trained
    for name, gradient in zip(sorted(trained), theirs, strict=True):
        torch.testing.assert_close(given[name].grad, gradient, rtol=1e-5, atol=1e-5)


def test_in_pieces_no_logits_are_computed_twice(monkeypatch):
    hidden, weight, targets = tensors(tokens=40, vocab=50)
    monkeypatch.setattr(objectives, "LOGITS", 1000)  # two pieces
    calls = []
    linear = F.linear
    monkeypatch.setattr(objectives.F, "linear", lambda *given: calls.append(len(given[0])) or linear(*given))
    cross_entropy(hidden, weight, targets).backward()
    assert calls == [20, 20]


@pytest.mark.parametrize("target", [-1, 10**6])
def test_a_target_outside_the_vocabulary_is_no_token(target):
    hidden, weight, targets = tensors()
    targets[0] = target
    with pytest.raises((IndexError, RuntimeError)):
        cross_entropy(hidden, weight, targets)


@torch.no_grad()
@pytest.mark.parametrize("limit", [objectives.LOGITS, 100])
def test_bf16_activations_still_give_an_fp32_loss(monkeypatch, limit):
    hidden, weight, targets = tensors(tokens=2000)
    monkeypatch.setattr(objectives, "LOGITS", limit)
    exact = cross_entropy(hidden, weight, targets)
    loss = cross_entropy(hidden.bfloat16(), weight, targets)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(exact), rel=2e-3)
    assert float(loss) != float(loss.bfloat16())  # a bf16 sum of 2,000 losses would have three digits


def test_nothing_to_learn_costs_nothing():
    hidden, weight, targets = tensors()
    assert cross_entropy(hidden, weight, torch.full_like(targets, IGNORED)).item() == 0.0


def test_under_document_masks_packed_documents_cost_what_they_cost_alone(tmp_path):
    view, tokenizer = tiny.view(tmp_path)
    network = tiny.randomised(tiny.config(tokenizer.vocab_size, context_length=64))
    [batch] = [Batches(view, context=64, batch_size=4, seed=0, documents=True)[0]]
    ends = batch.ids == tokenizer.end_of_text
    assert ends[:, 1:].any()  # else the batch proves nothing
    alone = 0.0
    for ids, targets, end in zip(batch.ids, batch.targets, ends, strict=True):
        starts = [0, *(place for place in end.nonzero()[0].tolist() if place > 0), len(ids)]
        for start, stop in pairwise(starts):
            logits = network(torch.from_numpy(ids[None, start:stop])).logits[0]
            alone += F.cross_entropy(logits, torch.from_numpy(targets[start:stop]), reduction="sum").item()
    with torch.no_grad():
        packed = float(TokenPrediction().loss(network, batch))
        leaking = float(TokenPrediction().loss(network, Batches(view, context=64, batch_size=4, seed=0)[0]))
    assert packed == pytest.approx(alone, rel=1e-5)
    assert leaking != pytest.approx(alone, rel=1e-3)
