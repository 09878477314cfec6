"""The network against transformers' Qwen3, and its own promises: packing, taps, recomputation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SMALL, randomised
from transformers import AutoModelForCausalLM

from pellucid.core.errors import ConfigError, ModelError
from pellucid.network.build import block_parameters, build, parameters
from pellucid.network.families import FAMILIES
from pellucid.network.flops import forward_flops
from pellucid.network.masks import Mask
from pellucid.network.taps import Taps
from pellucid.network.weights import load_network, read_config, save_network


def some_ids(config, batch=2, seq=20, seed=0):
    return torch.randint(0, config.vocab_size, (batch, seq), generator=torch.Generator().manual_seed(seed))


@st.composite
def configs(draw):
    kv_heads, d_head = draw(st.integers(1, 3)), 2 * draw(st.integers(1, 8))
    heads = kv_heads * draw(st.integers(1, 3))
    return FAMILIES["qwen3"].new(
        vocab_size=draw(st.integers(2, 300)),
        context_length=32,
        d_model=draw(st.integers(2, 48)),
        layers=draw(st.integers(1, 3)),
        heads=heads,
        kv_heads=kv_heads,
        d_head=d_head,
        d_mlp=draw(st.integers(1, 64)),
        tied=draw(st.booleans()),
        rope_theta=draw(st.sampled_from([10_000.0, 1_000_000.0])),
    )


@settings(deadline=None, max_examples=12)
@given(config=configs(), seed=st.integers(0, 99))
def test_logits_equal_transformers(config, seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    network, ids = randomised(config, seed), some_ids(config, seed=seed)
    save_network(network, folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    assert (network(ids).logits - theirs(ids).logits).abs().max() < 1e-4


@settings(deadline=None, max_examples=10)
@given(config=configs())
def test_saved_equals_loaded_bit_for_bit(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    network = randomised(config)
    save_network(network, folder)
    loaded = load_network(folder)
    assert loaded.config == config
    assert torch.equal(loaded(some_ids(config)).logits, network(some_ids(config)).logits)


@settings(deadline=None, max_examples=20)
@given(config=configs())
def test_parameters_are_counted_as_they_are(config):
    assert sum(p.numel() for p in build(config, seed=0).parameters()) == parameters(config)


def test_flops_equal_what_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    network, ids = randomised(SMALL), some_ids(SMALL, batch=3)
    with FlopCounterMode(display=False) as counter:
        network(ids)
    counted = counter.get_total_flops() / ids.numel()
    # torch counts no attention for the CPU's fused kernel; ours less its attention must be the matrices
    matrices = 2 * (block_parameters(SMALL) + SMALL.vocab_size * SMALL.d_model)
    attention = SMALL.layers * 4 * (20 + 1) / 2 * SMALL.heads * SMALL.d_head
    assert forward_flops(SMALL, 20) == pytest.approx(matrices + attention)
    assert counted == pytest.approx(matrices, rel=1e-9) or counted == pytest.approx(
        matrices + SMALL.layers * 4 * 20 * SMALL.heads * SMALL.d_head, rel=1e-9
    )


def test_packed_documents_equal_documents_alone():
    network = randomised(SMALL)
    first, second = some_ids(SMALL, batch=1, seq=7, seed=1), some_ids(SMALL, batch=1, seq=12, seed=2)
    packed = torch.cat((first, second), dim=1)
    documents = torch.tensor([[0] * 7 + [1] * 12])
    logits = network(packed, Mask.for_documents(documents)).logits
    alone = torch.cat((network(first).logits, network(second).logits), dim=1)
    torch.testing.assert_close(logits, alone, rtol=1e-5, atol=1e-5)
    assert (network(packed).logits - alone).abs().max() > 1e-2  # without the mask they differ


def test_a_causal_network_does_not_see_the_future():
    network, ids = randomised(SMALL), some_ids(SMALL)
    changed = ids.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % SMALL.vocab_size
    before, after = network(ids).logits, network(changed).logits
    torch.testing.assert_close(before[:, :10], after[:, :10], rtol=0, atol=1e-6)
    assert (before[:, 10:] - after[:, 10:]).abs().max() > 1e-2


def test_recomputed_activations_give_the_same_gradients():
    gradients = []
    for recompute in (False, True):
        network = randomised(SMALL).train()
        network.recompute = recompute
        network(some_ids(SMALL)).logits.square().mean().backward()
        gradients.append([weight.grad for weight in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


class TestTaps:
    def test_reading_everything_changes_no_bit(self):
        network, ids = randomised(SMALL), some_ids(SMALL)
        assert torch.equal(network(ids).logits, network(ids, taps=Taps("*")).logits)

    def test_every_site_is_reached_with_the_shape_it_claims(self):
        network, ids, taps = randomised(SMALL), some_ids(SMALL), Taps("*")
        network(ids, taps=taps)
        sizes = {
            "batch": 2,
            "seq": 20,
            "keys": 20,
            "d_model": 24,
            "heads": 4,
            "kv_heads": 2,
            "d_head": 6,
            "d_mlp": 40,
            "vocab": 50,
        }
        assert [site.name for site in network.sites()] == list(taps)
        for site in network.sites():
            assert list(taps[site.name].shape) == [sizes[name] for name in site.shape.split()], site

    def test_the_pattern_explains_the_mixture(self):
        network, taps = randomised(SMALL), Taps("blocks.1.attn.*")
        network(some_ids(SMALL), taps=taps)
        mixed = taps["blocks.1.attn.pattern"] @ taps["blocks.1.attn.v"].repeat_interleave(2, dim=1)
        torch.testing.assert_close(mixed, taps["blocks.1.attn.mixed"], rtol=1e-4, atol=1e-5)

    def test_residual_stream_is_the_sum_of_what_is_added(self):
        network, taps = randomised(SMALL), Taps("*")
        network(some_ids(SMALL), taps=taps)
        total = taps["embedding"] + sum(taps[f"blocks.{i}.{part}.out"] for i in range(2) for part in ("attn", "mlp"))
        torch.testing.assert_close(total, taps["blocks.1.after"], rtol=1e-5, atol=1e-5)

    def test_an_edit_takes_effect_and_is_what_is_captured(self):
        network, ids = randomised(SMALL), some_ids(SMALL)
        taps = Taps("blocks.0.mlp.out", edit={"blocks.0.mlp.out": torch.zeros_like})
        edited = network(ids, taps=taps).logits
        assert not torch.equal(edited, network(ids).logits)
        assert not taps["blocks.0.mlp.out"].any()

    def test_editing_a_pattern_to_attend_to_itself_gives_its_own_value(self):
        network = randomised(SMALL)
        identity = {"blocks.0.attn.pattern": lambda weights: torch.eye(weights.shape[-1]).expand_as(weights)}
        taps = Taps("blocks.0.attn.*", edit=identity)
        network(some_ids(SMALL), taps=taps)
        torch.testing.assert_close(taps["blocks.0.attn.mixed"], taps["blocks.0.attn.v"].repeat_interleave(2, dim=1))
        assert torch.equal(taps["blocks.0.attn.pattern"][0, 0], torch.eye(20))

    def test_a_tap_on_a_site_that_does_not_exist_is_an_error(self):
        with pytest.raises(ConfigError, match=r"'blocks.9.attn.q' is no site"):
            randomised(SMALL)(some_ids(SMALL), taps=Taps("blocks.9.attn.q"))


class TestBadFolders:
    @pytest.fixture
    def folder(self, tmp_path):
        save_network(randomised(SMALL), tmp_path)
        return tmp_path

    def test_no_config(self, tmp_path):
        with pytest.raises(ModelError, match=r"is not a model folder: it has no config.json"):
            load_network(tmp_path)

    def test_another_family(self, folder):
        change(folder, '"qwen3"', '"mamba"')
        with pytest.raises(ModelError, match="model_type 'mamba' is not supported; the families are bag-of-words, bert, "):
            load_network(folder)

    def test_a_feature_that_the_network_lacks_is_refused(self, folder):
        change(folder, '"use_sliding_window": false', '"use_sliding_window": true')
        with pytest.raises(ModelError, match="use_sliding_window = True is not supported"):
            read_config(folder)

    def test_weights_of_other_dimensions(self, folder):
        change(folder, '"intermediate_size": 40', '"intermediate_size": 41')
        with pytest.raises(
            ModelError, match=r"gate_proj.weight has shape \(40, 24\), but the configuration asks for \(41, 24\)"
        ):
            load_network(folder)

    def test_a_truncated_file(self, folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(ModelError, match="is not a whole safetensors file"):
            load_network(folder)

    def test_missing_tensors(self, folder):
        change(folder, '"num_hidden_layers": 2', '"num_hidden_layers": 3')
        with pytest.raises(
            ModelError, match=r"lacks 11 of 36 tensors: model.layers.2.*post_attention_layernorm.weight.*v_proj.weight$"
        ):
            load_network(folder)

    def test_surplus_tensors(self, folder):
        change(folder, '"num_hidden_layers": 2', '"num_hidden_layers": 1')
        with pytest.raises(ModelError, match=r"has 11 tensors that the configuration knows nothing of"):
            load_network(folder)


def change(folder, old, new):
    path = folder / "config.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
