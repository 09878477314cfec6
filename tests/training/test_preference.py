"""Direct preference optimisation: the published formula, with log-probabilities from transformers' own forward pass."""

import math

import numpy as np
import pytest
import torch
import transformers
from pupils import pupil
from tiny import SMALL, randomised

from pellucid.loading import open_model
from pellucid.network.adapters import LoRA, attach, disabled
from pellucid.text.batches import IGNORED
from pellucid.text.examples import Example, ExampleBatches, collate
from pellucid.training.finetune import parts_of
from pellucid.training.preference import Preference, logprobs, with_references
from pellucid.training.scores import pair_margins, score_pairs

BETA = 0.25


def pairs(count=3, seed=0):
    """Chosen and rejected answers to the same prompts, in turn."""
    chance, found = np.random.default_rng(seed), []
    for number in range(count):
        prompt = chance.integers(1, 50, 3 + number)
        for length in (2 + number, 4):
            ids = np.concatenate([prompt, chance.integers(1, 50, length)])
            target = np.where(np.arange(len(ids) - 1) >= len(prompt) - 1, ids[1:], IGNORED)
            found.append(Example(ids[:-1], target.astype(np.int64)))
    return found


def other(seed=5):
    """A network that has moved away from where it began."""
    return randomised(SMALL, seed)


def written_out(network, example):
    """The log-probability of an answer, token by token."""
    with torch.no_grad():
        logits = network(torch.from_numpy(example.ids)[None]).logits[0].double()
    found = logits.log_softmax(-1)
    return sum(float(found[at, token]) for at, token in enumerate(example.target) if token != IGNORED)


def test_the_loss_is_the_published_formula():
    examples, before, after = pairs(), randomised(), other()
    referenced = with_references(before, examples, pad=0, batch_tokens=20)
    batch = collate(referenced, 0)
    expected = 0.0
    for chosen, rejected in zip(examples[0::2], examples[1::2], strict=True):
        gain = written_out(after, chosen) - written_out(before, chosen)
        loss = written_out(after, rejected) - written_out(before, rejected)
        expected -= math.log(1 / (1 + math.exp(-BETA * (gain - loss))))
    objective = Preference(BETA)
    assert objective.loss(after, batch).item() == pytest.approx(expected, rel=1e-4)
    assert objective.count(batch) == 3
    score = score_pairs(after, objective, referenced, pad=0, batch_tokens=20)
    assert score.loss == pytest.approx(expected / 3, rel=1e-4)


def test_log_probabilities_are_those_of_transformers(tmp_path):
    model = pupil(tmp_path / "model", "qwen3", shaken=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    examples = pairs()
    found = logprobs(open_model(model).network, collate(examples, 0))
    for value, example in zip(found.tolist(), examples, strict=True):
        with torch.no_grad():
            logits = theirs(input_ids=torch.from_numpy(example.ids)[None]).logits
        wanted = torch.from_numpy(np.asarray(example.target))[None]
        loss = torch.nn.functional.cross_entropy(logits[0], wanted[0], reduction="sum", ignore_index=IGNORED)
        assert value == pytest.approx(-loss.item(), rel=1e-4)


def test_a_model_that_has_not_moved_has_no_margins_and_a_loss_of_log_2():
    network = randomised().train()
    referenced = with_references(network, pairs(), pad=0, batch_tokens=1000)
    assert network.training
    objective = Preference(BETA)
    assert objective.margins(network, collate(referenced, 0)).abs().max() < 1e-5
    score = score_pairs(network, objective, referenced, pad=0, batch_tokens=9)
    assert score.loss == pytest.approx(math.log(2), abs=1e-5)


def test_an_adapter_switched_off_is_the_reference():
    network = attach(randomised(), LoRA(rank=2), seed=0)
    referenced = with_references(network, pairs(), pad=0, batch_tokens=1000)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "lora_b" in name:
                weight.normal_(0, 0.3)
    batch, objective = collate(referenced, 0), Preference(BETA)
    assert objective.margins(network, batch).abs().max() > 1e-2
    with disabled(network):
        assert objective.margins(network, batch).abs().max() < 1e-5


@pytest.mark.parametrize("tokens", [1, 12, 20, 33, 500])
def test_any_cut_of_a_batch_gives_the_gradients_of_the_whole(tokens):
    network = other().train().requires_grad_(True)
    batch = ExampleBatches(
        with_references(randomised(), pairs(5), pad=0, batch_tokens=99), batch_size=10, seed=1, pad=0, group=2
    )[0]
    objective, found = Preference(BETA), []
    for pieces in ([slice(0, 10)], list(parts_of(batch, tokens, 2))):
        network.zero_grad()
        for rows in pieces:
            (objective.loss(network, batch.rows(rows)) / objective.count(batch)).backward()
        found.append({name: weight.grad.clone() for name, weight in network.named_parameters()})
    for name, gradient in found[0].items():
        assert (gradient - found[1][name]).abs().max() < 1e-5 * max(1.0, gradient.abs().max().item()), name


def test_pairs_stay_together_in_every_batch():
    batches = ExampleBatches(pairs(7), batch_size=4, seed=2, pad=0, group=2)
    for number in range(8):
        indices = batches.indices(number)
        assert all((a % 2, b) == (0, a + 1) for a, b in zip(indices[0::2], indices[1::2], strict=True))


def test_margins_keep_the_order_of_the_pairs():
    referenced, objective = with_references(randomised(), pairs(4), pad=0, batch_tokens=99), Preference(BETA)
    whole = pair_margins(other(), objective, referenced, pad=0, batch_tokens=10_000)
    assert torch.allclose(whole, pair_margins(other(), objective, referenced, pad=0, batch_tokens=1), atol=1e-5)
    assert len(set(whole.tolist())) == 4
