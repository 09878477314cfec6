"""Attributions against Captum and against the difference computed by hand, for every kind of model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from asked import TEXT, by_hand, cases, classifier, filler, of_answers, question, writer
from captum.attr import FeatureAblation, InputXGradient, IntegratedGradients, ShapleyValues, ShapleyValueSampling
from hypothesis import given
from hypothesis import strategies as st

from pellucid.core.errors import ConfigError, ModelError
from pellucid.core.precision import Holding
from pellucid.explanation.attribution import METHODS, attribute
from pellucid.explanation.faithfulness import MEASURES, Chance
from pellucid.explanation.flow import Flow
from pellucid.explanation.gradients import blank_vector, gradient_times_input, integrated_gradients
from pellucid.explanation.removal import Removal, leave_one_out
from pellucid.explanation.shapley import shapley
from pellucid.network.holding import hold
from pellucid.network.taps import Taps

CASES = cases()
KINDS = pytest.mark.parametrize("kind", CASES)


def kept_by_hand(asked, way="delete"):
    """For Captum: the difference as a function of which units stay, [sets units], one text after another."""

    def difference(kept):
        found = []
        for row in kept.bool():
            gone = {t for unit, stays in zip(asked.units, row, strict=True) if not stays for t in unit.tokens}
            if way == "mask":
                ids, at = [asked.tokenizer.mask if n in gone else id for n, id in enumerate(asked.ids)], asked.at
            else:
                stay = [n for n in range(len(asked.ids)) if n not in gone]
                ids = [asked.ids[n] for n in stay] or [asked.tokenizer.end_of_text]
                at = None if asked.at is None else stay.index(asked.at)
            found.append(by_hand(asked, ids, at))
        return torch.tensor(found, dtype=torch.float64)

    return difference


def vectors_by_hand(asked):
    """For Captum: the difference as a function of the vectors of the text's tokens, [texts tokens d_model]."""
    embedding = asked.network.embedding

    def difference(vectors):
        found = []
        for one in vectors:

            def look_up(ids, one=one):
                plain = torch.nn.functional.embedding(ids, embedding.weight)
                if asked.network.config.architecture == "encoder-decoder" and ids.shape[1] != len(one):
                    return plain  # the decoder's
                return torch.cat([one[None].to(plain), plain[:, len(one) :]], dim=1)

            embedding.forward = look_up
            try:
                found.append(of_answers(asked, lambda **given: asked.network(**given), torch.tensor([asked.ids])))
            finally:
                del embedding.forward
        return torch.stack(found)

    return difference


@KINDS
def test_the_difference_is_that_of_a_plain_call(kind):
    asked = CASES[kind]
    assert Removal(asked, "mean").whole == pytest.approx(by_hand(asked, asked.ids), abs=1e-4)


@KINDS
def test_gradient_times_input_equals_captum(kind):
    asked = CASES[kind]
    vectors = asked.network.embedding.weight[list(asked.ids)].detach()[None].requires_grad_()
    theirs = InputXGradient(vectors_by_hand(asked)).attribute(vectors).sum(dim=-1)[0]
    assert np.abs(gradient_times_input(asked) - theirs.detach().double().numpy()).max() < 1e-4


@KINDS
def test_integrated_gradients_equal_captum_and_their_gap_closes(kind, monkeypatch):
    monkeypatch.setattr("pellucid.explanation.gradients.MOST_POINTS", 2000)
    monkeypatch.setattr("pellucid.explanation.gradients.MOST_TOKENS", 50_000)
    asked = CASES[kind]
    vectors = asked.network.embedding.weight[list(asked.ids)].detach()[None]
    start = vectors.clone()
    start[0, [token for unit in asked.units for token in unit.tokens]] = blank_vector(asked)
    captum = IntegratedGradients(vectors_by_hand(asked))
    theirs = captum.attribute(vectors, start, n_steps=12, method="gausslegendre", internal_batch_size=4).sum(dim=-1)[0]
    ours = integrated_gradients(asked, steps=12)
    assert np.abs(ours.values - theirs.detach().double().numpy()).max() < 1e-4
    found = integrated_gradients(asked)
    assert found.converged
    assert abs(found.gap) <= found.missed <= max(0.05 * abs(found.total), 1e-4)


@KINDS
def test_occlusion_equals_captum(kind):
    asked = CASES[kind]
    removal = Removal(asked) if asked.network.config.head != "tag" else Removal(asked, "mean")
    if removal.way == "mean":  # by hand, since Captum's ground is deletion or a token here
        expected = []
        for unit in asked.units:
            vectors = asked.network.embedding.weight[list(asked.ids)].detach()[None].clone()
            vectors[0, list(unit.tokens)] = asked.network.embedding.weight.mean(dim=0)
            expected.append(removal.whole - float(vectors_by_hand(asked)(vectors)[0].detach()))
    else:
        ones = torch.ones(1, len(asked.units))
        expected = FeatureAblation(kept_by_hand(asked)).attribute(ones)[0].tolist()
    assert np.abs(leave_one_out(removal) - expected).max() < 1e-4


def test_exact_shapley_values_equal_captum_and_sum_to_the_difference():
    asked = CASES["qwen3 writes"]
    removal = Removal(asked)
    theirs = ShapleyValues(kept_by_hand(asked)).attribute(torch.ones(1, len(asked.units)))[0]
    ours, errors = shapley(removal)
    assert np.abs(ours - theirs.numpy()).max() < 1e-4
    assert not errors.any()
    assert ours.sum() == pytest.approx(removal.whole - removal.nothing, abs=1e-6)


def test_sampled_shapley_values_lie_within_their_errors_of_the_exact_ones_and_of_captum():
    asked = question(writer("qwen3"), "Alice saw the rabbit run to a", target="b", foil="c")
    removal = Removal(asked)
    exact, _ = shapley(removal)
    ours, errors = shapley(removal, samples=200, seed=1)
    assert (errors > 0).all()
    assert (np.abs(ours - exact) < 4 * errors + 1e-4).all()
    torch.manual_seed(0)
    theirs = ShapleyValueSampling(kept_by_hand(asked)).attribute(torch.ones(1, len(asked.units)), n_samples=60)[0].numpy()
    assert np.abs(ours - theirs).max() < 8 * errors.max()


@pytest.mark.parametrize("way", ["delete", "mask", "mean"])
def test_removing_a_word_is_reading_the_text_without_it(way):
    asked = CASES["bert fills"]
    removal = Removal(asked, way)
    kept = np.array([[True, False, True, True], [False, True, True, True]])[:, : len(asked.units)]
    kept = np.ones((2, len(asked.units)), bool)
    kept[0, 1] = kept[1, 0] = False
    if way == "mean":
        vectors = asked.network.embedding.weight[list(asked.ids)].detach()[None].repeat(2, 1, 1)
        for row, unit in ((0, asked.units[1]), (1, asked.units[0])):
            vectors[row, list(unit.tokens)] = asked.network.embedding.weight.mean(dim=0)
        expected = vectors_by_hand(asked)(vectors).detach()
    else:
        expected = kept_by_hand(asked, way)(torch.from_numpy(kept))
    assert np.abs(removal(kept) - expected.numpy()).max() < 1e-4


def test_attention_is_the_last_layers_and_rollout_the_product_of_all():
    asked = CASES["gpt2 writes"]
    taps = Taps("*.pattern")
    asked.network(torch.tensor([asked.ids]), taps=taps)
    first, last = (taps[f"blocks.{layer}.attn.pattern"][0].mean(dim=0).detach() for layer in range(2))
    assert np.allclose(Flow(asked).attention, last[-1].numpy(), atol=1e-6)
    half = torch.eye(len(first)) / 2
    assert np.allclose(Flow(asked).rollout, ((half + last / 2) @ (half + first / 2))[-1].numpy(), atol=1e-6)


def test_attention_of_a_pooled_text_starts_where_it_is_pooled():
    asked = question(classifier("bert", pooling="first"), target="yes", foil="no")
    taps = Taps("*.pattern")
    asked.network(torch.tensor([asked.ids]), taps=taps)
    assert np.allclose(Flow(asked).attention, taps["blocks.1.attn.pattern"][0].mean(dim=0)[0].detach().numpy(), atol=1e-6)


def test_attention_of_an_encoder_decoder_crosses_over():
    asked = CASES["t5 writes"]
    taps = Taps("*.pattern")
    asked.network(torch.tensor([asked.ids]), taps=taps, decoder_ids=torch.tensor([[asked.network.config.start_token]]))
    assert np.allclose(
        Flow(asked).attention, taps["decoder.blocks.1.cross.pattern"][0].mean(dim=0)[0].detach().numpy(), atol=1e-6
    )
    assert Flow(asked).rollout.sum() == pytest.approx(1, abs=1e-5)


def test_faithfulness_by_its_definition():
    asked = question(writer("qwen3"), "Alice saw the rabbit run to a big hole in the bank", target="b", foil="c")
    removal, values = Removal(asked), np.array([3, 9, 1, 12, 5, 2, 8, 11, 4, 7, 6, 10], dtype=float)
    chance = Chance(removal)
    order = np.argsort(-values)
    value = kept_by_hand(asked)

    def curve(first):  # while units are taken away, or put back
        return {n: float(value(torch.from_numpy(((np.isin(np.arange(12), order[:n])) == first)[None]))[0]) for n in range(13)}

    away, back = curve(False), curve(True)
    early, counts = [1, 1, 2, 6], [0, 1, 2, 6, 10, 11, 12]

    def area(found):
        return np.trapezoid([found[n] for n in counts], np.array(counts) / 12)

    found = chance.judge([values])[0]
    assert found.comprehensiveness == pytest.approx(removal.whole - np.mean([away[n] for n in early]), abs=1e-4)
    assert found.sufficiency == pytest.approx(removal.whole - np.mean([back[n] for n in early]), abs=1e-4)
    assert found.deletion == pytest.approx(area(away), abs=1e-4)
    assert found.insertion == pytest.approx(area(back), abs=1e-4)
    assert found.score == pytest.approx(found.insertion - found.deletion, abs=1e-6)
    assert set(chance.intervals) == set(MEASURES)


def test_chance_of_few_units_is_counted_over_all_their_orders():
    removal = Removal(CASES["gpt2 writes"])
    chance = Chance(removal)
    assert chance.exact
    assert chance.orders == 24
    scores = chance.figures[:, -1]
    assert scores.mean() == pytest.approx(0, abs=1e-6)  # an order and its reverse cancel out
    best = chance.judge([np.array([4.0, 3.0, 2.0, 1.0])])[0]
    assert best.probability == pytest.approx((scores >= best.score - 1e-6).mean())


def test_random_attributions_beat_chance_as_seldom_as_they_should():
    asked = question(writer("qwen3"), "Alice saw the rabbit run to a big hole in the bank", target="b", foil="c")
    removal = Removal(asked)
    chance, random = Chance(removal), np.random.default_rng(3)
    lucky = sum(chance.judge([random.permutation(12).astype(float)])[0].beats_chance for _ in range(200))
    assert 1 <= lucky <= 22  # 10 expected


@KINDS
def test_every_method_that_can_be_had_is_there_and_the_most_faithful_leads(kind):
    found = attribute(CASES[kind])
    assert {one.method for one in found.found} | found.left_out.keys() == set(METHODS)
    scores = [one.faithfulness.score for one in found.found]
    assert scores == sorted(scores, reverse=True)
    assert all(len(one.values) == len(CASES[kind].units) for one in found.found)
    assert found.leading.method in found.verdict


def test_a_quantised_model_is_explained_as_it_is_but_for_gradients():
    model = writer("llama", d_model=64, heads=2, kv_heads=1, d_head=32, d_mlp=128)
    hold(model.network, Holding(precision="int8"))
    asked = question(model, target="a", foil="b")
    found = attribute(asked)
    assert set(found.left_out) == {"integrated gradients", "gradient x input"}
    assert "int8" in found.left_out["integrated gradients"]
    assert found.chance.removal.whole == pytest.approx(by_hand(asked, asked.ids), abs=1e-4)
    with pytest.raises(ConfigError, match=r"integrated gradients cannot be had: the model is held in int8"):
        attribute(asked, methods=["integrated gradients"])
    with pytest.raises(ModelError, match="held in int8"):
        gradient_times_input(asked)


@pytest.mark.parametrize("family", ["lstm", "bag-of-words"])
def test_networks_without_attention_say_so(family):
    left_out = attribute(CASES[f"{family} writes"]).left_out
    assert left_out == dict.fromkeys(("attention rollout", "attention"), f"a {family} network has no attention")


def test_long_texts_are_computed_again_in_the_backward_pass_with_the_same_gradients(monkeypatch):
    asked = CASES["qwen3 writes"]
    before = gradient_times_input(asked)
    monkeypatch.setattr("pellucid.explanation.gradients.LONG", 2)
    assert np.allclose(gradient_times_input(asked), before, atol=1e-6)
    assert not asked.network.recompute


@given(st.integers(0, 2**16))
def test_what_is_read_is_remembered_and_each_row_is_its_own(seed):
    asked = CASES["qwen3 writes several"]
    random = np.random.default_rng(seed)
    kept = random.random((5, len(asked.units))) < 0.5
    removal = Removal(asked)
    together = removal(kept)
    alone = np.array([Removal(asked)(row[None])[0] for row in kept])
    assert np.allclose(together, alone, atol=1e-4)
    assert np.array_equal(removal(kept[::-1]), together[::-1])


def test_explaining_changes_nothing():
    model = classifier("bert")
    before = model.predict([TEXT])
    attribute(question(model, target="yes", foil="no"))
    assert model.predict([TEXT]) == before


def test_a_masked_models_mask_stays():
    asked = CASES["bert fills"]
    assert asked.ids[asked.at] == asked.tokenizer.mask
    assert all(asked.at not in unit.tokens for unit in asked.units)
    assert filler().tokenizer.mask is not None
