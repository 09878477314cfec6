"""The loss on held-out text, against transformers' model and the sum written out."""

import math

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from pellucid.network.weights import save_network
from pellucid.training.objectives import TokenPrediction
from pellucid.training.validation import Validation, validate

CONTEXT = 24


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """A stream of characters, a network, and the same network as transformers opens it."""
    view, tokenizer = tiny.view(tmp_path_factory.mktemp("store"))
    assert view.tokens % CONTEXT  # the last window is not full
    network, folder = (
        tiny.randomised(tiny.config(tokenizer.vocab_size, context_length=CONTEXT)),
        tmp_path_factory.mktemp("model"),
    )
    save_network(network, folder)
    return view, network, AutoModelForCausalLM.from_pretrained(folder)


def measure(held_out, *, windows=None, documents=False, batch_size=4):
    view, network, _ = held_out
    options = {"context": CONTEXT, "documents": documents, "batch_size": batch_size, "windows": windows}
    return validate(network, TokenPrediction(), view, **options)


@torch.no_grad()
def by_hand(held_out, *, documents=False):
    """Loss of every token, in order: each window reads the token before it, the first one an end of text."""
    view, _, theirs = held_out
    stream = [view.end_of_text, *view.read(0, view.tokens).tolist()]
    losses = []
    for start in range(0, view.tokens, CONTEXT):
        ids, targets = stream[start : start + CONTEXT], stream[start + 1 : start + CONTEXT + 1]
        ids = ids[: len(targets)]
        begins = [i for i, id in enumerate(ids) if i == 0 or (documents and id == view.end_of_text)]
        for begin, end in zip(begins, [*begins[1:], len(ids)], strict=True):
            logits = theirs(torch.tensor([ids[begin:end]])).logits[0]
            losses += (-logits.log_softmax(-1)[range(end - begin), targets[begin:end]]).tolist()
    assert len(losses) == view.tokens
    return losses


@pytest.mark.parametrize("documents", [False, True])
def test_the_mean_over_the_whole_split_is_transformers(held_out, documents):
    ours, theirs = measure(held_out, documents=documents), by_hand(held_out, documents=documents)
    assert ours.loss == pytest.approx(float(np.mean(theirs)), rel=1e-5)
    assert ours.loss > math.log(40)  # nonsense weights: there is something to measure


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_it_does_not_depend_on_the_batch_size(held_out, batch_size):
    assert measure(held_out, batch_size=batch_size).loss == pytest.approx(measure(held_out).loss, rel=1e-6)


def test_some_windows_are_spread_over_the_text(held_out):
    view = held_out[0]
    losses, count = by_hand(held_out), -(-view.tokens // CONTEXT)
    for some in (1, 7, count - 1):
        numbers = [i * count // some for i in range(some)]
        chosen = [loss for n in numbers for loss in losses[n * CONTEXT : (n + 1) * CONTEXT]]
        assert measure(held_out, windows=some).loss == pytest.approx(float(np.mean(chosen)), rel=1e-5)
    assert measure(held_out, windows=count + 5) == measure(held_out)


def test_bits_per_byte_count_the_bytes_of_the_text_and_not_its_tokens(held_out):
    view, result = held_out[0], measure(held_out)
    size = sum(len(text.encode()) for text in tiny.DOCUMENTS)
    assert view.bytes == size
    assert result.bits_per_byte == pytest.approx(result.loss * view.tokens / math.log(2) / size)
    # a uniform guess among 256 bytes, one token a byte, is 8 bits
    assert Validation(loss=math.log(256), bytes_per_token=1.0).bits_per_byte == pytest.approx(8)
    # the same text in tokens of four bytes with four times the loss is as well predicted
    assert Validation(loss=4 * math.log(256), bytes_per_token=4.0).bits_per_byte == pytest.approx(8)


def test_perplexity_is_the_exponential_of_the_loss():
    assert Validation(loss=math.log(42), bytes_per_token=1.0).perplexity == pytest.approx(42)
    assert math.isfinite(Validation(loss=1e6, bytes_per_token=1.0).perplexity)


def test_measuring_leaves_no_gradients_and_changes_nothing(held_out):
    network = held_out[1]
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    measure(held_out)
    assert all(weight.grad is None for weight in network.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
