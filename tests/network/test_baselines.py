"""The bag of words against a formula, one text after another."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import randomised

from pellucid.network.families import FAMILIES
from pellucid.network.masks import Mask
from pellucid.network.weights import load_network, save_network

NAMES = ("one", "two", "three", "four", "five", "six")


@st.composite
def configs(draw, labels):
    return FAMILIES["bag-of-words"].new(
        vocab_size=draw(st.integers(2, 60)),
        context_length=32,
        d_model=draw(st.integers(1, 40)),
        layers=draw(st.integers(1, 4)),
        tied=draw(st.booleans()),
        **labelled(draw(labels)),
    )


def labelled(count):
    """The fields of a classifier; none without labels."""
    return {"head": "classify", "labels": NAMES[:count], "problem": "multi"} if count else {}


def some_ids(config, batch=3, seq=17, seed=0):
    return torch.randint(0, config.vocab_size, (batch, seq), generator=torch.Generator().manual_seed(seed))


def scores(network, ids):
    """Of one list of tokens, in float64: the mean, each layer, the head."""
    x = network.embedding.weight.double()[ids].mean(dim=0)
    for layer in network.blocks:
        x = F.relu(layer.weight.double() @ x + layer.bias.double())
    found = network.head.weight.double() @ x
    return found if network.head.bias is None else found + network.head.bias.double()


@settings(max_examples=30, derandomize=True, database=None)
@given(config=configs(labels=st.just(0)), seed=st.integers(0, 999))
def test_each_next_token_is_predicted_from_the_mean_of_those_before(config, seed):
    network, ids = randomised(config, seed), some_ids(config, seed=seed)
    expected = torch.stack([torch.stack([scores(network, row[: t + 1]) for t in range(17)]) for row in ids])
    assert (network(ids).logits - expected).abs().max() < 1e-4
    assert (network(ids, Mask.for_causal(17)).logits - expected).abs().max() < 1e-4


@settings(max_examples=30, derandomize=True, database=None)
@given(
    config=configs(labels=st.integers(1, 6)),
    seed=st.integers(0, 999),
    lengths=st.lists(st.integers(1, 17), min_size=3, max_size=3),
)
def test_labels_are_scored_from_the_mean_of_all_that_is_there(config, seed, lengths, tmp_path_factory):
    network, ids = randomised(config, seed), some_ids(config, seed=seed)
    present = torch.arange(17) < torch.tensor(lengths)[:, None]
    found = network(ids, Mask.for_bidirectional(present)).logits
    expected = torch.stack([scores(network, row[:length]) for row, length in zip(ids, lengths, strict=True)])
    assert found.shape == (3, len(config.labels))
    assert (found - expected).abs().max() < 1e-4
    assert torch.equal(network(ids, Mask.for_causal(17, present=present)).logits, found)
    assert (network(ids).logits - torch.stack([scores(network, row) for row in ids])).abs().max() < 1e-4

    folder = tmp_path_factory.mktemp("model")
    save_network(network, folder)
    again = load_network(folder)
    assert again.config == config
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_packed_documents_equal_documents_alone():
    network = randomised(FAMILIES["bag-of-words"].new(vocab_size=13, context_length=32, d_model=7, layers=2))
    ids, documents = some_ids(network.config, batch=1), torch.tensor([[0] * 6 + [1] * 11])
    alone = torch.cat([network(part).logits for part in ids.split([6, 11], dim=1)], dim=1)
    torch.testing.assert_close(network(ids, Mask.for_documents(documents)).logits, alone, rtol=1e-5, atol=1e-5)


def test_a_text_of_padding_only_is_scored_as_zeros_not_as_nan():
    network = randomised(FAMILIES["bag-of-words"].new(vocab_size=13, context_length=32, d_model=7, layers=1, **labelled(3)))
    present = torch.tensor([[True] * 17, [False] * 17])
    logits = network(some_ids(network.config, batch=2), Mask.for_bidirectional(present)).logits
    assert (logits[0] != network.head.bias).all()
    assert torch.equal(logits[1], network.head.bias)


def test_gradients_equal_those_of_the_formula():
    network = randomised(FAMILIES["bag-of-words"].new(vocab_size=13, context_length=32, d_model=7, layers=3))
    ids, targets = some_ids(network.config, batch=1), some_ids(network.config, batch=1, seed=1)
    F.cross_entropy(network(ids).logits[0], targets[0]).backward()
    found = [weight.grad.clone() for weight in network.parameters()]
    network.zero_grad()
    F.cross_entropy(torch.stack([scores(network, ids[0, : t + 1]) for t in range(17)]), targets[0]).backward()
    for mine, weight in zip(found, network.parameters(), strict=True):
        assert (mine - weight.grad).norm() < 1e-3 * weight.grad.norm()
