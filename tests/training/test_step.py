"""One step of learning: the accumulated batch is the big batch, and the weights move as torch's own optimizers move them."""

import math

import pytest
import tiny
import torch
import torch.nn.functional as F

from pellucid.core.errors import DivergenceError
from pellucid.network.build import build
from pellucid.text.batches import IGNORED, Batches
from pellucid.training.loop import Step, TrainState
from pellucid.training.objectives import TokenPrediction
from pellucid.training.optimizers import Optimizers
from pellucid.training.recipe import Optimizer, Schedule


class Recorder(Optimizers):
    """Keeps the gradients that a step would use."""

    def step(self, factor: float) -> float:
        self.gradients = {name: weight.grad.clone() for weight, name in self.names.items() if weight.grad is not None}
        return super().step(factor)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return tiny.view(tmp_path_factory.mktemp("store"))


def padded(batches) -> int:
    """The number of a batch that has the text's last window, which is filled up, so that its rows have unlike counts."""
    return next(number for number in range(batches.windows) if (batches[number].targets == IGNORED).any())


def learn(text, micro_batch, *, steps=1, documents=False, first=None, settings=None):
    view, tokenizer = text
    batches = Batches(view, context=16, batch_size=6, seed=1, documents=documents)
    network = tiny.randomised(tiny.config(tokenizer.vocab_size)).train()
    optimizers = Recorder(network, settings or Optimizer())
    state = TrainState(network=network, optimizers=optimizers, step=padded(batches) if first is None else first)
    step = Step(objective=TokenPrediction(), batches=batches, schedule=Schedule(), steps=10_000, micro_batch=micro_batch)
    done = [step(state) for _ in range(steps)]
    return done, optimizers.gradients, dict(network.named_parameters()), batches


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("micro_batch", [1, 2, 4, 5])
def test_micro_batches_add_up_to_the_batch_though_their_token_counts_differ(text, micro_batch, documents):
    [(loss, norm)], gradients, weights, batches = learn(text, 6, documents=documents)
    counts = (batches[padded(batches)].targets != IGNORED).sum(axis=1)
    assert counts.min() < counts.max()  # else the weighting is not tested
    [(loss_2, norm_2)], gradients_2, weights_2, _ = learn(text, micro_batch, documents=documents)
    assert loss_2 == pytest.approx(loss, rel=1e-6)
    assert norm_2 == pytest.approx(norm, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_2[name], gradient, rtol=1e-4, atol=1e-6)
    for name, weight in weights.items():
        torch.testing.assert_close(weights_2[name], weight, rtol=1e-3, atol=1e-5)


def test_loss_and_gradients_are_the_mean_over_the_targets(text):
    [(loss, norm)], gradients, _, batches = learn(text, 2)
    batch, network = batches[padded(batches)], tiny.randomised(tiny.config(text[1].vocab_size))
    logits = network(torch.from_numpy(batch.ids)).logits
    expected = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.targets).flatten(), ignore_index=IGNORED)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for name, weight in network.named_parameters():
        torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-4, atol=1e-6)
    assert norm == pytest.approx(math.sqrt(sum(float(w.grad.square().sum()) for w in network.parameters())), rel=1e-5)


@pytest.mark.parametrize(("name", "clip"), [("adamw", 1.0), ("adamw", 1e-3), ("muon", 1.0), ("muon", 1e3)])
def test_three_steps_are_those_of_a_loop_written_by_hand_with_torchs_optimizers(text, name, clip):
    view, tokenizer = text
    rates = {"learning_rate": 2e-3, "matrix_learning_rate": 0.01}
    settings = Optimizer(name=name, clip=clip, weight_decay=0.3, beta1=0.8, beta2=0.98, **rates)
    schedule, steps = Schedule(kind="cosine", warmup=0.2, floor=0.1), 10
    batches = Batches(view, context=16, batch_size=4, seed=5)
    config = tiny.config(tokenizer.vocab_size, tied=False)

    network = tiny.randomised(config).train()
    state = TrainState(network=network, optimizers=Optimizers(network, settings))
    step = Step(objective=TokenPrediction(), batches=batches, schedule=schedule, steps=steps, micro_batch=4)
    for _ in range(3):
        step(state)

    by_hand = tiny.randomised(config).train()
    named = dict(by_hand.named_parameters())
    matrices = [w for n, w in named.items() if w.ndim == 2 and n.startswith("blocks.")]
    others = [w for n, w in named.items() if w.ndim == 1 or not n.startswith("blocks.")]
    plain = {"betas": (0.8, 0.98), "foreach": False, "fused": False}
    made = [(torch.optim.AdamW(others, weight_decay=0.0, **plain), 2e-3)]
    if name == "muon":
        made.append((torch.optim.Muon(matrices, momentum=0.95, weight_decay=0.3), 0.01))
    else:
        made.append((torch.optim.AdamW(matrices, weight_decay=0.3, **plain), 0.01))
    for number, factor in enumerate([0.5, 1.0, 1.0]):  # two steps of warm-up, then the cosine's top
        batch = batches[number]
        logits = by_hand(torch.from_numpy(batch.ids)).logits
        loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.targets).flatten(), ignore_index=IGNORED)
        by_hand.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), clip)
        for optimizer, peak in made:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()

    fresh = dict(tiny.randomised(config).named_parameters())
    for weight_name, weight in network.named_parameters():
        # Muon's orthogonalisation runs in bf16, so rounding of the gradients shows a little; a step is 0.01 wide
        torch.testing.assert_close(weight, named[weight_name], rtol=1e-4, atol=1e-3 if name == "muon" else 2e-5)
        assert (weight - fresh[weight_name]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_optimizers_state_survives_a_file_bit_for_bit(text, name, tmp_path):
    from safetensors.torch import load_file, save_file

    view, tokenizer = text
    step = Step(
        objective=TokenPrediction(),
        batches=Batches(view, context=16, batch_size=4, seed=5),
        schedule=Schedule(),
        steps=20,
        micro_batch=4,
    )
    network = build(tiny.config(tokenizer.vocab_size), seed=3)
    state = TrainState(network=network, optimizers=Optimizers(network, Optimizer(name=name)))
    for _ in range(3):
        step(state)
    save_file(state.optimizers.state(), tmp_path / "state.safetensors")

    copy = build(tiny.config(tokenizer.vocab_size), seed=99)
    copy.load_state_dict(network.state_dict())
    again = TrainState(network=copy, optimizers=Optimizers(copy, Optimizer(name=name)), step=3)
    again.optimizers.load(load_file(tmp_path / "state.safetensors"))
    for _ in range(3):
        assert step(state) == step(again)
    assert state.optimizers.state().keys() == again.optimizers.state().keys()
    for key, value in state.optimizers.state().items():
        assert torch.equal(value, again.optimizers.state()[key]), key
    for weight_name, weight in network.named_parameters():
        assert torch.equal(weight, copy.get_parameter(weight_name)), weight_name


def test_every_weight_is_moved_by_exactly_one_optimizer():
    network = build(tiny.config(40, tied=False), seed=0)
    for name in ("adamw", "muon"):
        optimizers = Optimizers(network, Optimizer(name=name))
        held = [id(w) for part in optimizers.parts for group in part.param_groups for w in group["params"]]
        assert sorted(held) == sorted(id(w) for w in network.parameters())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_moves_nothing(text, bad):
    _, tokenizer = text
    network = build(tiny.config(tokenizer.vocab_size), seed=0)
    optimizers = Optimizers(network, Optimizer())
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    for weight in network.parameters():
        weight.grad = torch.full_like(weight, bad)
    assert not math.isfinite(optimizers.step(1.0))
    assert optimizers.state() == {}
    assert all(weight.grad is None for weight in network.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in network.named_parameters())


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_step(text, monkeypatch):
    monkeypatch.setattr(TokenPrediction, "loss", lambda self, network, batch, state: network.embedding.weight.sum() * math.nan)
    with pytest.raises(DivergenceError, match=r"^step 8: the loss is nan and the gradient's norm nan$"):
        learn(text, 2, first=7)


def test_state_of_another_network_is_refused(text):
    from pellucid.core.errors import CorruptionError

    network = build(tiny.config(30), seed=0)
    with pytest.raises(
        CorruptionError, match=r"state has blocks.7.attn.q.weight.exp_avg, but the network has no weight blocks.7"
    ):
        Optimizers(network, Optimizer()).load({"blocks.7.attn.q.weight.exp_avg": torch.zeros(2)})
