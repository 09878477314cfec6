"""Head cards and ablation against their definitions, written out one place at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from asked import classifier, filler, question, writer
from tiny import ALICE

from pellucid.core.errors import ConfigError, CorpusError, ModelError
from pellucid.core.precision import Holding
from pellucid.explanation.ablation import Ablator
from pellucid.explanation.gates import gates_of
from pellucid.explanation.heads import copying_scores, head_cards, induction_scores, is_delimiter, on_text
from pellucid.explanation.neurons import neuron_cards
from pellucid.explanation.windows import losses, repeated, windows_of
from pellucid.network.adapters import LoRA, attach, merge
from pellucid.network.holding import hold
from pellucid.network.taps import Taps

MODEL = writer("qwen3")
NETWORK, WORDS = MODEL.network, MODEL.tokenizer


def windows(count=4, length=40):
    return windows_of(NETWORK, WORDS, [ALICE], count=count, length=length)


def patterns(ids):
    taps = Taps("*.pattern")
    with torch.no_grad():
        NETWORK(ids, taps=taps)
    return torch.stack([taps[f"blocks.{layer}.attn.pattern"] for layer in range(2)]).numpy()  # layers windows heads seq keys


def test_windows_follow_one_another_behind_what_begins_a_text():
    ids = windows()
    assert ids.shape == (4, 40)
    assert (ids[:, 0] == WORDS.end_of_text).all()
    assert WORDS.decode(ids[:, 1:].flatten().tolist()) == ALICE[: 4 * 39]
    with pytest.raises(CorpusError, match="the text has 5 tokens, too few for two windows of 39; give more"):
        windows_of(NETWORK, WORDS, ["Alice"], count=4, length=40)


def test_without_a_text_the_model_writes_one():
    ids = windows_of(NETWORK, WORDS, None, count=3, length=20, seed=5)
    assert ids.shape == (3, 20)
    assert torch.equal(ids, windows_of(NETWORK, WORDS, None, count=3, length=20, seed=5))
    assert len({tuple(row) for row in ids.tolist()}) == 3
    assert (ids[:, 1:] != WORDS.end_of_text).all()
    with pytest.raises(ConfigError, match="1 windows of 20 tokens show nothing; take 2 or more, of 8 or more"):
        windows_of(NETWORK, WORDS, None, count=1, length=20)


def test_scores_of_text_by_their_definitions():
    ids = windows()
    found, weights, rows = on_text(NETWORK, WORDS, ids), patterns(ids), ids.tolist()
    for layer, head in ((0, 1), (1, 3)):
        a = weights[layer, :, head]
        places = [(w, i) for w in range(4) for i in range(1, 40)]
        assert found["previous_token"][layer, head] == pytest.approx(
            np.mean([a[w, i, i - 1] for w, i in places if i > 1]), abs=1e-6
        )
        again = [sum(a[w, i, j] for j in range(i) if rows[w][j] == rows[w][i]) for w, i in places if rows[w][i] in rows[w][:i]]
        assert found["duplicate"][layer, head] == pytest.approx(np.mean(again), abs=1e-6)
        assert found["first_token"][layer, head] == pytest.approx(np.mean([a[w, i, 0] for w, i in places]), abs=1e-6)
        marks = [sum(a[w, i, j] for j in range(1, 40) if is_delimiter(WORDS, rows[w][j])) for w, i in places]
        assert found["delimiter"][layer, head] == pytest.approx(np.mean(marks), abs=1e-6)
        same = [np.minimum(a[w, i, 1:], a[w - 1, i, 1:]).sum() for w in range(4) for i in range(20, 40)]
        assert found["positional"][layer, head] == pytest.approx(np.mean(same), abs=1e-6)


def test_delimiters():
    assert is_delimiter(WORDS, WORDS.encode(",")[0])
    assert is_delimiter(WORDS, WORDS.end_of_text)
    assert not is_delimiter(WORDS, WORDS.encode("a")[0])
    assert not is_delimiter(WORDS, WORDS.encode(" ")[0])


def test_induction_by_its_definition_and_its_null():
    found = induction_scores(NETWORK, WORDS, seed=3)
    for number, ids in enumerate(repeated(NETWORK, WORDS, count=24, length=32, seed=3)):
        weights = patterns(ids)
        for layer, head in ((0, 0), (1, 2)):
            a = weights[layer, :, head]
            expected = np.mean([[row[i, i - 32 + 1] for i in range(33, 65)] for row in a])
            assert found[layer, head][number].value == pytest.approx(expected, abs=1e-6)
            assert found[layer, head][number].low <= expected <= found[layer, head][number].high


def test_repeats_say_the_same_twice_and_their_null_does_not():
    twice, shuffled = repeated(NETWORK, WORDS, count=6, length=10, seed=1)
    assert torch.equal(twice[:, 1:11], twice[:, 11:])
    assert torch.equal(twice[:, :11], shuffled[:, :11])
    assert torch.equal(shuffled[:, 1:11].sort(dim=1).values, shuffled[:, 11:].sort(dim=1).values)
    assert not torch.equal(twice, shuffled)


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_copying_is_the_sum_of_the_circuits_eigenvalues_over_that_of_their_sizes(family):
    network = writer(family).network
    found, config = copying_scores(network), network.config
    block = network.blocks[1]

    def led(rows, norm):  # what reads behind a norm, held at one scale
        gained = rows * norm.weight
        return gained - gained.mean(dim=-1, keepdim=True) if config.norm == "layer" else gained

    for head in (0, 3):
        group = head // (config.heads // config.kv_heads)
        v = block.attn.v.weight[group * config.d_head : (group + 1) * config.d_head]
        o = block.attn.output.weight[:, head * config.d_head : (head + 1) * config.d_head]
        whole = led(network.head.weight, network.norm) @ o @ led(v, block.norm_attn) @ network.embedding.weight.T
        values = torch.linalg.eigvals(whole.double())
        assert found[1, head] == pytest.approx(float(values.real.sum() / values.abs().sum()), abs=1e-3)


@pytest.mark.parametrize("how", ["zero", "mean", "resample"])
@pytest.mark.parametrize("name", ["blocks.1.attn.head.2", "blocks.0.mlp.out", "blocks.1.after", "embedding", "blocks.1.attn.k"])
def test_ablation_is_the_loss_of_an_edited_model(name, how):
    ids = windows()
    found = Ablator(NETWORK, ids)(name, how)
    head = int(name.rpartition(".")[2]) if ".head." in name else None
    site = f"{name.rpartition('.head.')[0]}.mixed" if head is not None else name
    taps = Taps(site)
    plain = losses(NETWORK, ids, taps)
    value = taps[site]

    def edit(x):
        if how == "zero":
            new = torch.zeros_like(x)
        elif how == "mean":
            new = value.mean(dim=(0, 2) if value.ndim == 4 else (0, 1), keepdim=True).expand_as(x)
        else:
            new = torch.cat([value[-1:], value[:-1]])
        if head is None:
            return new.clone()
        x = x.clone()
        x[:, head] = new[:, head]
        return x

    expected = losses(NETWORK, ids, Taps(edit={site: edit}))
    assert found.loss == pytest.approx(float(expected.mean()), abs=1e-5)
    assert found.change.value == pytest.approx(float((expected - plain).mean()), abs=1e-5)
    assert found.change.low <= found.change.value <= found.change.high


def test_an_lstms_cell_is_ablated_too():
    model = writer("lstm")
    ids = windows_of(model.network, WORDS, [ALICE], count=3, length=20)
    found = Ablator(model.network, ids)("blocks.0.after", "zero")
    assert found.change.value != 0


def test_parts_that_there_are_not():
    ablator = Ablator(NETWORK, windows())
    with pytest.raises(ConfigError, match=r"'blocks.1.mlp.ou' is no site of this network; did you mean 'blocks.1.mlp.out'\?"):
        ablator("blocks.1.mlp.ou")
    with pytest.raises(ConfigError, match=r"there is no head 4 in blocks.1.attn.mixed, which has 4, from 0 on"):
        ablator("blocks.1.attn.head.4")
    with pytest.raises(ConfigError, match="ablate by zero, mean, resample, not 'half'"):
        ablator("blocks.1.mlp.out", "half")


def test_cards_hold_everything_about_each_head():
    cards = head_cards(NETWORK, WORDS, windows())
    assert [(card.layer, card.head) for card in cards] == [(layer, head) for layer in range(2) for head in range(4)]
    for card in cards:
        assert card.ablation.part == card.name
        assert len(card.examples) == 3
        assert card.examples[0].strength >= card.examples[-1].strength
        assert all(
            (one.before + one.token).removeprefix("<|endoftext|>") in ALICE and 0 < one.weight <= 1 for one in card.examples
        )
    assert len({card.ablation.change.value for card in cards}) == 8


def test_cards_of_a_quantised_model_know_no_copying():
    model = writer("llama", d_model=64, heads=2, kv_heads=1, d_head=32, d_mlp=128)
    hold(model.network, Holding(precision="int8"))
    cards = head_cards(model.network, WORDS, windows(3, 30), ablate=False)
    assert {card.copying for card in cards} == {None}


@pytest.mark.parametrize("model", [lambda: writer("lstm"), lambda: classifier("bert"), filler, lambda: writer("t5")])
def test_models_without_such_heads_say_so(model):
    made = model()
    with pytest.raises(ModelError, match="has no heads that continue a text, which cards are about; use a decoder"):
        head_cards(made.network, made.tokenizer, windows())


def test_copying_counts_what_an_adapter_adds():
    network = writer("gpt2").network
    plain = copying_scores(network)
    attach(network, LoRA(rank=4), seed=0)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith("lora_b"):
                weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    adapted = copying_scores(network)
    assert np.abs(adapted - plain).max() > 0.01
    assert np.allclose(adapted, copying_scores(merge(network)), atol=1e-4)


def test_a_neuron_raises_what_its_weights_lead_to():
    ids = windows()
    [card] = neuron_cards(NETWORK, WORDS, ids, [(1, 7)])
    direction = NETWORK.head.weight.float() @ (NETWORK.norm.weight * NETWORK.blocks[1].mlp.down.weight[:, 7])
    best = direction[: WORDS.vocab_size].topk(8)
    assert [value for _, value in card.raises] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert [token for token, _ in card.raises] == [WORDS.decode([id], special=True) for id in best.indices.tolist()]
    assert card.lowers[0][1] == pytest.approx(float(direction[: WORDS.vocab_size].min()), abs=1e-5)
    taps = Taps("blocks.1.mlp.neurons")
    with torch.no_grad():
        NETWORK(ids, taps=taps)
    values = taps["blocks.1.mlp.neurons"][..., 7]
    assert card.examples[0].activation == pytest.approx(float(values.max()))
    assert card.mean == pytest.approx(float(values.mean()), abs=1e-6)
    with pytest.raises(ConfigError, match="there is no neuron 99 in layer 1; layers are 0 to 1, neurons 0 to 47"):
        neuron_cards(NETWORK, WORDS, ids, [(1, 99)])


def test_an_lstms_gates_over_a_text():
    asked = question(writer("lstm"), target="a", foil="b")
    found = gates_of(asked)
    taps = Taps("*")
    with torch.no_grad():
        asked.network(torch.tensor([asked.ids]), taps=taps)
    assert found.values["blocks.0.forget_gate"] == pytest.approx(
        taps["blocks.0.forget_gate"][0].mean(dim=-1).tolist(), abs=1e-6
    )
    cells = taps["blocks.0.cell"][0].square().mean(dim=-1).sqrt()
    assert found.values["blocks.0.cell"] == pytest.approx(cells.tolist(), abs=1e-5)
    assert gates_of(question(writer("gpt2"), target="a", foil="b")) is None
