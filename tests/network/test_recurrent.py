"""The LSTM against torch.nn.LSTM, its gates against the formulas in float64, and its state carried over pieces."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import randomised

from pellucid.core.errors import ConfigError
from pellucid.network.families import FAMILIES
from pellucid.network.masks import Mask
from pellucid.network.recurrent import GATES
from pellucid.network.taps import Taps
from pellucid.network.weights import load_network, save_network

SMALL = FAMILIES["lstm"].new(vocab_size=13, context_length=32, d_model=7, layers=2)
NAMES = {"inputs": "weight_ih", "recurrent": "weight_hh", "inputs_bias": "bias_ih", "recurrent_bias": "bias_hh"}


class Theirs(torch.nn.Module):
    """An embedding, torch's LSTM and a matrix."""

    def __init__(self, network):
        super().__init__()
        config = network.config
        self.embedding = torch.nn.Embedding(config.vocab_size, config.d_model)
        self.lstm = torch.nn.LSTM(config.d_model, config.d_model, config.layers, batch_first=True)
        self.head = torch.nn.Linear(config.d_model, config.vocab_size, bias=False)
        with torch.no_grad():
            self.embedding.weight.copy_(network.embedding.weight)
            self.head.weight.copy_(network.head.weight)
            for i, block in enumerate(network.blocks):
                for ours, theirs in NAMES.items():
                    getattr(self.lstm, f"{theirs}_l{i}").copy_(getattr(block, ours))
        if config.tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.lstm(self.embedding(ids))[0])


@st.composite
def configs(draw):
    return FAMILIES["lstm"].new(
        vocab_size=draw(st.integers(2, 60)),
        context_length=32,
        d_model=draw(st.integers(1, 40)),
        layers=draw(st.integers(1, 4)),
        tied=draw(st.booleans()),
    )


def some_ids(config, batch=3, seq=17, seed=0):
    return torch.randint(0, config.vocab_size, (batch, seq), generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, derandomize=True, database=None)
@given(config=configs(), seed=st.integers(0, 999))
def test_logits_and_gradients_equal_those_of_torch(config, seed, tmp_path_factory):
    network, ids = randomised(config, seed), some_ids(config, seed=seed)
    theirs, targets = Theirs(network), some_ids(config, seed=seed + 1)
    mine, other = network(ids).logits, theirs(ids)
    assert (mine - other).abs().max() < 1e-4
    for logits in (mine, other):
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    found = {"embedding": network.embedding.weight.grad, "head": network.head.weight.grad}
    expected = {"embedding": theirs.embedding.weight.grad, "head": theirs.head.weight.grad}
    for i, block in enumerate(network.blocks):
        found |= {f"{name}{i}": getattr(block, name).grad for name in NAMES}
        expected |= {f"{name}{i}": getattr(theirs.lstm, f"{NAMES[name]}_l{i}").grad for name in NAMES}
    whole = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < 1e-3 * max(gradient.norm(), 1e-3 * whole), name

    folder = tmp_path_factory.mktemp("model")
    save_network(network, folder)
    again = load_network(folder)
    assert again.config == config
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("cuts", [[17], [1, 16], [5, 1, 11], [1] * 17])
def test_a_text_in_pieces_is_the_text_as_a_whole(cuts):
    network, ids = randomised(SMALL), some_ids(SMALL)
    state = network.state(3)
    pieces = [network(piece, cache=state).logits for piece in ids.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), network(ids).logits, rtol=1e-5, atol=1e-5)


def in_float64(block, x):
    """Hochreiter and Schmidhuber's equations, one position after another."""
    w_in, w_rec, b_in, b_rec = (getattr(block, name).double() for name in NAMES)
    hidden = cell = torch.zeros(x.shape[0], x.shape[2], dtype=torch.float64)
    steps = []
    for t in range(x.shape[1]):
        i, f, g, o = (x[:, t] @ w_in.T + b_in + hidden @ w_rec.T + b_rec).chunk(4, dim=-1)
        i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
        cell = f * cell + i * g
        hidden = o * torch.tanh(cell)
        steps.append(dict(zip((*GATES, "cell", "after"), (i, f, g, o, cell, hidden), strict=True)))
    return {name: torch.stack([step[name] for step in steps], dim=1) for name in steps[0]}


def test_gates_that_are_read_are_those_of_the_formulas():
    network, ids, taps = randomised(SMALL), some_ids(SMALL), Taps("*")
    network(ids, taps=taps)
    for i, block in enumerate(network.blocks):
        x = taps["embedding"] if i == 0 else taps[f"blocks.{i - 1}.after"]
        for name, value in in_float64(block, x.double()).items():
            assert (taps[f"blocks.{i}.{name}"] - value).abs().max() < 1e-5, name


@pytest.mark.parametrize("site", [*GATES, "cell"])
def test_an_edit_that_changes_nothing_changes_nothing_and_one_position_changes_all_later_ones(site):
    network, ids = randomised(SMALL), some_ids(SMALL)
    plain = network(ids).logits
    same = network(ids, taps=Taps(edit={f"blocks.0.{site}": lambda value: value.clone()})).logits
    torch.testing.assert_close(same, plain, rtol=1e-5, atol=1e-5)

    calls = []

    def fifth(value):
        calls.append(value.shape)
        return value * 0 if len(calls) == 5 else value

    taps = Taps("*", edit={f"blocks.0.{site}": fifth})
    edited = network(ids, taps=taps).logits
    assert calls == [(3, 1, 7)] * 17
    assert not taps[f"blocks.0.{site}"][:, 4].any()
    assert (edited - plain)[:, :4].abs().max() < 1e-5
    assert ((edited - plain).abs().amax(dim=(0, 2))[4:] > 1e-6).all()


def test_a_gate_that_forgets_everything_leaves_the_candidate_alone():
    network, ids = randomised(SMALL), some_ids(SMALL)
    taps = Taps("*", edit={"blocks.0.forget_gate": torch.zeros_like})
    network(ids, taps=taps)
    expected = taps["blocks.0.input_gate"] * taps["blocks.0.candidate"]
    torch.testing.assert_close(taps["blocks.0.cell"], expected)


def test_a_mask_is_refused_and_the_causal_one_is_what_it_does_anyway():
    network, ids = randomised(SMALL), some_ids(SMALL)
    assert torch.equal(network(ids, Mask.for_causal(17)).logits, network(ids).logits)
    with pytest.raises(ConfigError, match="an LSTM reads every token before the next one: it can take no mask"):
        network(ids, Mask.for_everything(17))
