"""Low-rank adapters: no change at first, one matrix in the end, and nothing else of the network moves."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SMALL, randomised

from pellucid.core.errors import ConfigError
from pellucid.network.adapters import LoRA, LowRank, adapted, adapter_state, attach, disabled, merge, merged
from pellucid.network.families import FAMILIES

SIZES = {
    "vocab_size": 40,
    "context_length": 32,
    "d_model": 24,
    "layers": 2,
    "heads": 4,
    "kv_heads": 4,
    "d_head": 6,
    "d_mlp": 40,
}
CONFIGS = {
    "qwen3": SMALL,
    "gpt2": FAMILIES["gpt2"].new(**SIZES),
    "bert": FAMILIES["bert"].new(**SIZES),
    "distilbert": FAMILIES["distilbert"].new(**SIZES | {"head": "none"}),
    "t5": FAMILIES["t5"].new(**SIZES | {"decoder_layers": 2}),
    "bag-of-words": FAMILIES["bag-of-words"].new(vocab_size=40, context_length=32, d_model=24, layers=3),
}
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])


def answers(network):
    """What the network says of the same texts: scores, or vectors if it has no head."""
    options = {"decoder_ids": IDS[:, :5]} if network.config.architecture == "encoder-decoder" else {}
    out = network(IDS, **options)
    return out.hidden if out.logits is None else out.logits


def adapted_network(config=SMALL, seed=0, **options):
    """A network with adapters whose every number matters."""
    network = attach(randomised(config, seed), LoRA(**options), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapted(network).values():
            layer.lora_b.normal_(0.0, 0.1, generator=generator)
    return network


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_a_new_adapter_changes_nothing_and_a_merged_one_says_what_it_said(config):
    before = answers(randomised(config))
    assert torch.equal(answers(attach(randomised(config), LoRA(rank=3), seed=1)), before)
    network = adapted_network(config, rank=3)
    names, said = set(randomised(config).state_dict()), answers(network)
    assert (said - before).abs().max() > 1e-2
    with disabled(network):
        assert torch.equal(answers(network), before)
    assert torch.equal(answers(network), said)
    with merged(network):
        assert not adapted(network)
        assert (answers(network) - said).abs().max() < 1e-5 * said.abs().max().clamp(min=1)
    assert torch.equal(answers(network), said)
    merge(network)
    assert set(network.state_dict()) == names
    assert not adapted(network)
    assert (answers(network) - said).abs().max() < 1e-5 * said.abs().max().clamp(min=1)


@settings(max_examples=25)
@given(
    name=st.sampled_from(["qwen3", "bert", "gpt2", "t5"]),
    rank=st.integers(1, 30),
    alpha=st.floats(0.1, 64),
    targets=st.sets(st.sampled_from(["attn.q", "attn.k", "attn.v", "attn.output", "mlp.up", "down"]), min_size=1),
)
@torch.no_grad()
def test_merged_equals_unmerged(name, rank, alpha, targets):
    network = adapted_network(CONFIGS[name], rank=rank, alpha=alpha, targets=tuple(targets))
    assert all(any(layer.endswith(target) for target in targets) for layer in adapted(network))
    said = answers(network)
    assert (answers(merge(network)) - said).abs().max() < 2e-5 * said.abs().max().clamp(min=1)


@torch.no_grad()
def test_the_output_is_that_of_the_formula():
    layer = adapted(adapted_network(rank=4, alpha=6.0))["blocks.1.mlp.up"]
    x, weight = torch.randn(5, 24).double(), layer.weight.double()
    expected = x @ (weight + 6.0 / 4 * layer.lora_b.double() @ layer.lora_a.double()).T
    assert torch.allclose(layer(x.float()).double(), expected, atol=1e-5)


def test_only_the_adapter_learns():
    network = adapted_network(targets=("attn.q", "mlp.down"))
    answers(network).square().mean().backward()
    learning = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert learning == set(adapter_state(network))
    assert learning == {
        f"blocks.{i}.{part}.lora_{which}" for i in range(2) for part in ("attn.q", "mlp.down") for which in "ab"
    }
    assert all((weight.grad is not None) == weight.requires_grad for weight in network.parameters())
    assert all(weight.grad.abs().max() > 0 for weight in adapter_state(network).values())


def test_the_same_seed_makes_the_same_adapter():
    first, again, other = (attach(randomised(), LoRA(), seed=seed) for seed in (5, 5, 6))
    assert all(torch.equal(value, adapter_state(again)[name]) for name, value in adapter_state(first).items())
    layers, others = adapted(first), adapted(other)
    assert all(not torch.equal(layers[name].lora_a, others[name].lora_a) for name in layers)
    assert all(layer.lora_a.abs().max() <= layer.in_features**-0.5 and not layer.lora_b.any() for layer in layers.values())


def test_dropout_is_of_training_only():
    network = adapted_network(dropout=0.5)
    assert torch.equal(answers(network), answers(network))
    network.train()
    assert not torch.equal(answers(network), answers(network))


def test_activations_computed_again_give_the_same_gradients():
    gradients = []
    for recompute in (False, True):
        network = adapted_network(rank=2)
        network.compute_in(None, recompute=recompute)
        answers(network).square().mean().backward()
        gradients.append([weight.grad for weight in adapter_state(network).values()])
    assert all(torch.equal(held, again) for held, again in zip(*gradients, strict=True))


@torch.no_grad()
def test_it_computes_in_the_type_of_activations():
    network = adapted_network()
    exact = answers(network)
    network.compute_in(torch.bfloat16)
    assert answers(network).dtype == torch.bfloat16
    assert (answers(network).float() - exact).abs().max() < 0.1 * exact.abs().max()
    assert {value.dtype for value in adapter_state(network).values()} == {torch.float32}


@torch.no_grad()
def test_a_merged_matrix_keeps_its_type():
    network = randomised().to(torch.bfloat16)
    attach(network, LoRA(), seed=0)
    assert {layer.lora_a.dtype for layer in adapted(network).values()} == {torch.float32}
    assert {weight.dtype for weight in merge(network).parameters()} == {torch.bfloat16}


def test_every_linear_layer_of_the_blocks_is_one_of_all():
    layers = adapted(attach(randomised(CONFIGS["t5"]), LoRA(), seed=0))
    assert len([name for name in layers if ".cross." in name]) == 2 * 4
    assert len(layers) == 2 * 7 + 2 * 11  # q k v output, gate up down; and attention to the encoder
    assert all("blocks." in name and isinstance(layer, LowRank) for name, layer in layers.items())


class TestRefused:
    def test_a_target_that_there_is_not(self):
        with pytest.raises(ConfigError) as caught:
            attach(randomised(), LoRA(targets=("attn.q", "attn.query", "q_proj")), seed=0)
        assert str(caught.value) == (
            "no layer is called attn.query, q_proj; those that take an adapter are "
            "attn.k, attn.output, attn.q, attn.v, mlp.down, mlp.gate, mlp.up, or all"
        )

    def test_a_part_of_a_name_is_no_target(self):
        with pytest.raises(ConfigError, match="no layer is called p; "):
            attach(randomised(), LoRA(targets=("p",)), seed=0)

    @pytest.mark.parametrize("family", ["lstm", "bag-of-words"])
    def test_a_network_without_linear_layers_in_its_blocks(self, family):
        config = FAMILIES[family].new(vocab_size=20, context_length=8, d_model=8, layers=1)
        with pytest.raises(ConfigError) as caught:
            attach(randomised(config), LoRA(), seed=0)
        assert str(caught.value) == (
            f"this {family} network has no linear layers in its blocks that an adapter could change; "
            "use --method full or --method head"
        )

    def test_a_second_adapter(self):
        network = attach(randomised(), LoRA(targets=("attn.q",)), seed=0)
        with pytest.raises(ConfigError, match="has an adapter already; merge it first"):
            attach(network, LoRA(targets=("attn.v",)), seed=0)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rank": 0}, "the rank of an adapter must be from 1 to 4,096, not 0"),
            ({"rank": -4}, "the rank of an adapter must be from 1 to 4,096, not -4"),
            ({"rank": 5000}, "the rank of an adapter must be from 1 to 4,096, not 5000"),
            ({"alpha": 0.0}, "alpha of an adapter must be a finite number above 0, not 0.0"),
            ({"alpha": float("nan")}, "alpha of an adapter must be a finite number above 0, not nan"),
            ({"alpha": float("inf")}, "alpha of an adapter must be a finite number above 0, not inf"),
            ({"dropout": 1.0}, "dropout of an adapter must be at least 0 and below 1, not 1.0"),
            ({"dropout": float("nan")}, "dropout of an adapter must be at least 0 and below 1, not nan"),
            ({"targets": ()}, "targets of an adapter must be endings of modules' names, or all, not ()"),
        ],
    )
    def test_numbers_that_make_no_sense(self, options, message):
        with pytest.raises(ConfigError) as caught:
            LoRA(**options)
        assert str(caught.value) == message

    def test_a_failed_attempt_leaves_the_network_as_it_was(self):
        network = randomised()
        with pytest.raises(ConfigError):
            attach(network, LoRA(targets=("nothing",)), seed=0)
        assert all(weight.requires_grad for weight in network.parameters())


def test_targets_can_be_one_layer():
    network = attach(randomised(replace(SMALL, layers=3)), LoRA(targets=("blocks.1.attn.q",)), seed=0)
    assert list(adapted(network)) == ["blocks.1.attn.q"]
