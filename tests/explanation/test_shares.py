"""Direct logit attribution and the logit lens against the algebra written out."""

from __future__ import annotations

import pytest
import torch
from asked import by_hand, classifier, filler, pooling_classifier, question, writer
from labellers import labeller

from pellucid.core.errors import ModelError
from pellucid.core.precision import Holding
from pellucid.explanation.lens import logit_lens
from pellucid.explanation.shares import direct_shares
from pellucid.network.holding import hold

ASKED = {
    "gpt2": lambda: question(writer("gpt2"), target="a", foil="b"),
    "qwen3": lambda: question(writer("qwen3"), target="a", foil="b"),
    "llama, a continuation": lambda: question(writer("llama"), target=" ran", foil=" fell down"),
    "qwen3, a continuation alone": lambda: question(writer("qwen3"), target=" ran down"),
    "t5": lambda: question(writer("t5"), target=" ran", foil=" rolled"),
    "t5, scaled": lambda: question(writer("t5", head_scale=0.3), target="a", foil="b"),
    "bert fills": lambda: question(filler(), "Alice saw the [MASK]abbit", target="r", foil="h"),
    "bert, the mean": lambda: question(classifier("bert", pooling="mean"), target="yes", foil="no"),
    "bert, first and pooler": lambda: question(pooling_classifier(), target="yes", foil="no"),
    "gpt2, the last": lambda: question(classifier("gpt2", pooling="last"), target="yes", foil="no"),
    "qwen3, several labels": lambda: question(classifier("qwen3", problem="multi"), target="yes"),
    "bert tags": lambda: question(labeller("bert", head="tag", labels=("O", "B-x")), word="saw", target="B-x", foil="O"),
}


@pytest.mark.parametrize("kind", ASKED)
def test_shares_sum_to_the_difference_of_logits(kind):
    asked = ASKED[kind]()
    shares, config = direct_shares(asked), asked.network.config
    assert abs(shares.gap) < 1e-4
    assert shares.difference != 0
    layers, attentions = (config.decoder_layers, 2) if config.architecture == "encoder-decoder" else (config.layers, 1)
    assert len(shares.parts) == 2 + layers * (1 + attentions * config.heads)
    assert sum(value != 0 for value in shares.parts.values()) > layers


def rotated(x, angle):
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1)


def normed(x, norm):
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


@torch.no_grad()
def by_algebra(asked):
    """The shares of a two-layer pre-norm decoder, from its weights and ids alone, in float64."""
    network, config = asked.network.double(), asked.network.config
    ids = torch.tensor(asked.ids)
    half = config.d_head // 2
    angle = torch.arange(len(ids))[:, None] * config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    x = network.embedding.weight[ids]
    parts, streams = {"embedding": x}, [x]
    for layer, block in enumerate(network.blocks):
        read = normed(x, block.norm_attn)
        heads = []
        for head in range(config.heads):
            group = head // (config.heads // config.kv_heads)
            rows, shared = (slice(n * config.d_head, (n + 1) * config.d_head) for n in (head, group))
            q = rotated(normed(read @ block.attn.q.weight[rows].T, block.attn.norm_q), angle)
            k = rotated(normed(read @ block.attn.k.weight[shared].T, block.attn.norm_k), angle)
            v = read @ block.attn.v.weight[shared].T
            scores = (q @ k.T / config.d_head**0.5).masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -torch.inf)
            heads.append(scores.softmax(-1) @ v @ block.attn.output.weight[:, rows].T)
            parts[f"blocks.{layer}.attn.head.{head}"] = heads[-1]
        x = x + sum(heads)
        read = normed(x, block.norm_mlp)
        gate, up = read @ block.mlp.gate.weight.T, read @ block.mlp.up.weight.T
        parts[f"blocks.{layer}.mlp"] = (gate * gate.sigmoid() * up) @ block.mlp.down.weight.T
        x = x + parts[f"blocks.{layer}.mlp"]
        streams.append(x)
    scale = (x[-1].square().mean() + config.norm_eps).sqrt()
    direction = network.head.weight[asked.target.ids[0]] - network.head.weight[asked.foil.ids[0]]
    shares = {name: float((part[-1] / scale * network.norm.weight) @ direction) for name, part in parts.items()}
    lens = [normed(stream, network.norm) @ network.head.weight.T for stream in streams]
    network.float()
    return shares, lens


def test_shares_and_lens_equal_the_algebra_of_a_two_layer_model():
    asked = question(writer("qwen3"), target="a", foil="b")
    shares, lens = direct_shares(asked), logit_lens(asked)
    expected, logits = by_algebra(asked)
    assert shares.parts.pop("biases") == 0
    assert shares.parts == pytest.approx(expected, abs=1e-4)
    target, foil = asked.target.ids[0], asked.foil.ids[0]
    assert lens.differences == pytest.approx([float(row[-1, target] - row[-1, foil]) for row in logits], abs=1e-4)
    assert lens.ranks == tuple(1 + int((row[-1] > row[-1, target]).sum()) for row in logits)
    for guesses, row in zip(lens.guesses, logits, strict=True):
        for guess, place in zip(guesses, lens.positions, strict=True):
            best = row[place].softmax(-1).topk(3)
            assert guess.probabilities == pytest.approx(best.values.tolist(), abs=1e-4)
            assert guess.answers == tuple(asked.tokenizer.decode([id], special=True) for id in best.indices.tolist())


@pytest.mark.parametrize("kind", ASKED)
def test_the_lens_ends_at_the_difference_itself(kind):
    asked = ASKED[kind]()
    lens, shares = logit_lens(asked), direct_shares(asked)
    assert lens.differences[-1] == pytest.approx(shares.difference, abs=1e-4)
    assert len(lens.guesses) == len(lens.heights) == len(lens.ranks)


def test_a_quantised_model_is_shared_out_too():
    model = writer("llama", d_model=64, heads=2, kv_heads=1, d_head=32, d_mlp=128)
    hold(model.network, Holding(precision="int8"))
    asked = question(model, target="a", foil="b")
    shares = direct_shares(asked)
    assert abs(shares.gap) < 0.01 * abs(shares.difference)
    assert shares.difference == pytest.approx(by_hand(asked, asked.ids), abs=1e-4)


@pytest.mark.parametrize("family", ["lstm", "bag-of-words"])
def test_networks_without_a_stream_say_so(family):
    asked = question(writer(family), target="a", foil="b")
    with pytest.raises(ModelError, match=f"a {family} network has no stream that its parts add to"):
        direct_shares(asked)
    with pytest.raises(ModelError, match="has no stream"):
        logit_lens(asked)
