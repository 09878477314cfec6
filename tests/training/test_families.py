"""Every kind of network learns in the one loop: masked, by spans, with a state that is carried along, or as a bag of words."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import test_resume
import tiny
import torch
from test_resume import Crash, assert_same, when_step
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

import pellucid
from pellucid.core.device import Compute
from pellucid.core.errors import ConfigError, CorruptionError
from pellucid.core.progress import Silent
from pellucid.network import presets
from pellucid.network.families import FAMILIES
from pellucid.text.batches import IGNORED, Lanes
from pellucid.text.corpus import Corpus
from pellucid.text.tokenizer import Tokenizer
from pellucid.training import validation
from pellucid.training.decisions import fixed
from pellucid.training.job import Job
from pellucid.training.preparation import dimensions, make_tokenizer, prepare, settled
from pellucid.training.recipe import Recipe
from pellucid.training.running import Interrupted

NO_ATTENTION = {"d_model": 32, "layers": 1, "context_length": 16}
MODELS = {
    "bert": {},
    "roberta": {},
    "distilbert": {},
    "t5": {"context_length": 32},
    "lstm": NO_ATTENTION,
    "gpt2": {},
    "bag-of-words": NO_ATTENTION | {"layers": 2},
}
OBJECTIVES = {"bert": "mlm", "roberta": "mlm", "distilbert": "mlm", "t5": "spans"}
CPU = Compute(device="cpu", precision="fp32", threads=1)


def sections(family, **changes):
    """A tiny recipe for a family."""
    kept = NO_ATTENTION.keys() if MODELS[family].keys() >= NO_ATTENTION.keys() else tiny.SECTIONS["model"].keys()
    model = {name: value for name, value in tiny.SECTIONS["model"].items() if name in kept} | MODELS[family]
    found = tiny.sections(**changes)
    return found | {"model": model | {"family": family} | changes.get("model", {})}


def pretrain(out, family, *, steps=4, corpus=tiny.DOCUMENTS, resume=False, **changes):
    return pellucid.pretrain(Corpus.of(corpus), out=out, steps=steps, resume=resume, **sections(family, **changes))


def made(family, **changes):
    """What the loop of such a run would be given."""
    changes["training"] = {"micro_batch": 4} | changes.get("training", {})
    recipe, corpus = settled(Recipe.of(sections(family, **changes))), Corpus.of(tiny.DOCUMENTS)
    tokenizer = make_tokenizer(corpus, None, recipe.tokenizer, Silent(), recipe.objective.name)
    prepared = prepare(corpus, None, recipe.data.validation_fraction, tokenizer, Silent())
    return Job(recipe=recipe, prepared=prepared, config=dimensions(recipe.model, tokenizer.vocab_size), compute=CPU)


def weights(run):
    return (run.path / "model/model.safetensors").read_bytes()


def randomise(network, seed):
    """Weights that all matter: a fresh network starts with zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.3, generator=generator)


def losses(run, name="loss"):
    return [row[name] for row in run.metrics if name in row]


# ---- learning

LENGTHS = {"bert": 450, "t5": 250, "lstm": 300, "gpt2": 200, "bag-of-words": 100}
WIDE = {"d_model": 64, "d_mlp": 128}


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A run that learnt something, for each family; nobody may change it."""
    done = {}

    def get(family):
        if family not in done:
            steps, model = LENGTHS[family], WIDE if family in ("bert", "t5") else {}
            training = {"batch_size": 32 if family == "bert" else 16, "evaluate_every": steps // 2}
            out = tmp_path_factory.mktemp("runs") / family
            done[family] = pretrain(out, family, steps=steps, model=model, training=training)
        return done[family]

    return get


def entropy():
    """Nats per character of guessing by how common each is."""
    counts = np.array(list(Counter("".join(tiny.DOCUMENTS)).values()))
    return float(-(counts / counts.sum() * np.log(counts / counts.sum())).sum())


@pytest.mark.parametrize(
    ("family", "below"), [("bert", 0.7), ("t5", 0.8), ("lstm", 0.95), ("gpt2", 0.7), ("bag-of-words", 1.05)]
)
def test_it_learns(learnt, family, below):
    run = learnt(family)
    found, uniform = losses(run), math.log(run.model.config.vocab_size)
    assert found[0] == pytest.approx(uniform, rel=0.05)
    assert max(losses(run, "validation_loss")) < uniform
    assert np.mean(found[-20:]) < below * entropy()
    assert run.model.config.family == family


@pytest.mark.parametrize("family", ["roberta", "distilbert"])
def test_the_other_encoders_learn_too(tmp_path, family):
    run = pretrain(tmp_path / "run", family, steps=40)
    assert losses(run)[-1] < losses(run)[0] - 0.5
    assert (run.model.config.family, Recipe.load(run.path / "recipe.toml").objective.name) == (family, "mlm")


# ---- micro-batches


class Still:
    """Keeps the gradients of each step and moves nothing."""

    def __init__(self, network):
        self.network, self.gradients = network, []

    def step(self, factor):
        self.gradients.append({n: w.grad.clone() for n, w in self.network.named_parameters() if w.grad is not None})
        self.network.zero_grad()
        return float(torch.stack([g.norm() for g in self.gradients[-1].values()]).norm())


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
@pytest.mark.parametrize("family", MODELS)
def test_micro_batches_add_up_to_the_batch(family, micro_batch):
    runs = []
    for size in (6, micro_batch):
        training = {"batch_size": 6, "micro_batch": size, "steps": 100}
        job = made(family, training=training, model={"layers": 2} if family == "lstm" else {})
        state = job.start()
        randomise(state.network, seed=3)
        state.optimizers = Still(state.network)
        step = job.step()
        state.step = (
            next(n for n in range(99) if (step.batches[n].targets == IGNORED).all(axis=1).any()) if family == "lstm" else 0
        )
        state.step = max(0, state.step - 2)  # the last of them has the end of the text
        runs.append(([step(state) for _ in range(4)], state))
    (whole, first), (parts, second) = runs
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    for gradients, others in zip(first.optimizers.gradients, second.optimizers.gradients, strict=True):
        assert gradients.keys() == others.keys()
        for name, gradient in gradients.items():
            assert (gradient - others[name]).norm() <= 1e-5 * max(1.0, gradient.norm()), name
    assert (first.memory is None) == (family != "lstm")
    for layer, other in zip(first.memory or [], second.memory or [], strict=True):
        torch.testing.assert_close(layer.hidden, other.hidden, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer.cell, other.cell, rtol=1e-5, atol=1e-5)
        assert layer.hidden.abs().max() > 0.01


def test_an_lstm_learns_from_what_it_has_read_before():
    """The loss of the second batch is that of the two read in one go, and not that of a network that begins anew."""
    job = made("lstm", training={"steps": 10})
    state, step = job.start(), job.step()
    randomise(state.network, seed=3)
    state.optimizers = Still(state.network)
    _, (loss, _) = step(state), step(state)
    first, second = step.batches[0], step.batches[1]
    both = torch.from_numpy(np.hstack([first.ids, second.ids]))
    logprobs = state.network.eval()(both).logits[:, first.ids.shape[1] :].log_softmax(-1)
    expected = -logprobs.gather(2, torch.from_numpy(second.targets)[..., None]).mean()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    anew = state.network(torch.from_numpy(second.ids)).logits.log_softmax(-1)
    assert abs(loss + anew.gather(2, torch.from_numpy(second.targets)[..., None]).mean().item()) > 1e-3


# ---- stopping and going on

FEW = tiny.DOCUMENTS[:8]  # 13 batches of an LSTM's epoch
RESUMED = {
    "bert": {"model": {"dropout": 0.1}},
    "t5": {"model": {"dropout": 0.1}},
    "lstm": {"model": {"dropout": 0.2, "layers": 2}, "training": {"micro_batch": 3}},
    "lstm in bf16": {"model": {"layers": 2}, "training": {"precision": "bf16"}},
    "gpt2": {"model": {"dropout": 0.1}, "optimizer": {"name": "adamw"}},
    "bag-of-words": {},
    "whole words": {"objective": {"whole_words": True, "rate": 0.3}},
}
STEPS = test_resume.STEPS


def interruptible(out, variant, **options):
    family = {"lstm in bf16": "lstm", "whole words": "bert"}.get(variant, variant)
    changes = RESUMED[variant]
    training = test_resume.EVERY | {"evaluate_windows": 4, "batch_size": 12} | changes.get("training", {})
    return pretrain(out, family, steps=STEPS, corpus=FEW, **options, **changes | {"training": training})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    done = {}

    def get(variant):
        if variant not in done:
            done[variant] = interruptible(tmp_path_factory.mktemp("whole") / "run", variant).path
        return done[variant]

    return get


@pytest.mark.parametrize("variant", RESUMED)
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, monkeypatch, uninterrupted, variant):
    when_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM), monkeypatch)
    with pytest.raises(Interrupted):
        interruptible(tmp_path / "run", variant)
    torch.manual_seed(99)  # whatever else the program draws
    interruptible(tmp_path / "run", variant, resume=True)
    assert_same(tmp_path / "run", uninterrupted(variant))
    remembered = uninterrupted(variant) / f"checkpoints/step-{STEPS:08d}/memory.safetensors"
    assert remembered.is_file() == variant.startswith("lstm")


@pytest.mark.parametrize("variant", ["bert", "lstm"])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, monkeypatch, uninterrupted, variant):
    def crash():
        raise Crash

    when_step(5, crash, monkeypatch)
    with pytest.raises(Crash):
        interruptible(tmp_path / "run", variant)
    interruptible(tmp_path / "run", variant, resume=True)
    assert_same(tmp_path / "run", uninterrupted(variant))


def test_these_runs_read_the_text_more_than_once(uninterrupted):
    """Else an LSTM's beginning anew would not be among what is resumed."""
    facts = json.loads((uninterrupted("lstm") / "run.json").read_text())["tokens"]
    assert facts["epochs"] > 1.5


def test_a_checkpoint_without_its_memory_is_damaged(tmp_path, monkeypatch):
    when_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM), monkeypatch)
    with pytest.raises(Interrupted):
        interruptible(tmp_path / "run", "lstm")
    path = tmp_path / "run/checkpoints/step-00000003/memory.safetensors"
    path.unlink()
    with pytest.raises(CorruptionError, match=r"memory\.safetensors"):
        interruptible(tmp_path / "run", "lstm", resume=True)


@pytest.mark.parametrize("variant", ["bert", "t5", "lstm"])
def test_the_recipe_of_a_run_repeats_it(tmp_path, uninterrupted, variant):
    first = uninterrupted(variant)
    again = pellucid.pretrain(Corpus.of(FEW), out=tmp_path / "again", recipe=first / "recipe.toml")
    assert (again.path / "recipe.toml").read_bytes() == (first / "recipe.toml").read_bytes()
    assert weights(again) == (first / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_another_seed_hides_other_tokens(family):
    batches = [made(family, training={"seed": seed}).batches()[0] for seed in (0, 1)]
    assert not np.array_equal(batches[0].targets, batches[1].targets)


@pytest.mark.parametrize("seed", [2**63 - 1, 10**18])
def test_any_seed_will_do_where_something_is_dropped(tmp_path, seed):
    runs = [
        pretrain(tmp_path / str(n), "gpt2", steps=2, training={"seed": seed}, model={"dropout": share})
        for n, share in enumerate((0.1, 0.1, 0.0))
    ]
    assert weights(runs[0]) == weights(runs[1]) != weights(runs[2])


# ---- losses written down (fp32, one thread, AdamW)

GOLDEN: dict[str, list[float]] = {
    "bert": [3.975806, 3.929422, 3.763317, 3.970131, 3.875777, 3.745640, 3.590603, 3.517295, 3.566910],
    "t5": [4.986995, 4.974597, 4.932161, 4.860520, 4.827310, 4.784816, 4.745919, 4.760665, 4.743118],
    "lstm": [3.951153, 3.950528, 3.949663, 3.947052, 3.943823, 3.937034, 3.934410, 3.926292, 3.929657],
}


@pytest.mark.parametrize("family", GOLDEN)
def test_losses_are_the_ones_written_down(tmp_path, family):
    run = pretrain(
        tmp_path / "run",
        family,
        steps=8,
        optimizer={"name": "adamw", "matrix_learning_rate": 0.003, "learning_rate": 3e-3},
        training={"evaluate_every": 8, "seed": 7, "micro_batch": 2},
    )
    assert [*losses(run), *losses(run, "validation_loss")] == pytest.approx(GOLDEN[family], rel=1e-5)


# ---- what is hidden


@pytest.mark.parametrize("rate", [0.15, 0.5])
def test_the_rate_is_that_of_masked_tokens(rate):
    batches = made("bert", objective={"rate": rate}, training={"batch_size": 64}).batches()
    targets = batches[0].targets
    assert (targets != IGNORED).mean() == pytest.approx(rate, abs=0.03)
    mask = made("bert").prepared.tokenizer.mask
    assert (batches[0].ids[targets != IGNORED] == mask).mean() == pytest.approx(0.8, abs=0.08)


def test_whole_words_are_masked_whole():
    job = made("bert", objective={"whole_words": True}, model={"context_length": 64}, training={"batch_size": 16})
    tokenizer, found = job.prepared.tokenizer, 0
    for row in job.batches()[0].targets:
        places = np.flatnonzero(row != IGNORED)
        for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1):
            text = tokenizer.decode(row[run])
            found += len(text) > 1
            assert run[0] in (0,) or not text[0].isalpha() or not text[:1].isspace(), text
    assert found > 10
    starts = tokenizer.word_starts()
    original = np.where(job.batches()[0].targets == IGNORED, job.batches()[0].ids, job.batches()[0].targets)
    hidden = job.batches()[0].targets != IGNORED
    inside = ~starts[original[:, 1:]]  # goes on with a word: hidden if and only if what is before it is
    assert inside.sum() > 100
    assert (hidden[:, 1:] == hidden[:, :-1])[inside].all()


def test_the_rate_and_mean_of_spans_reach_the_corruption():
    lengths = {
        (rate, mean): made("t5", objective={"rate": rate, "mean_span": mean}).corruption.lengths(32)
        for rate, mean in ((0.15, 3.0), (0.3, 3.0), (0.3, 5.0))
    }
    assert lengths == {(0.15, 3.0): (32 - 5 + 2 + 1, 5 + 2 + 2), (0.3, 3.0): (26, 15), (0.3, 5.0): (25, 14)}


# ---- validation


@pytest.mark.parametrize("family", ["bert", "t5", "lstm"])
def test_validation_is_the_same_every_time_whatever_the_micro_batch(family):
    found = []
    for micro in (4, 4, 1, 3):
        job = made(family, training={"micro_batch": micro, "seed": micro, "evaluate_windows": 6})
        state = job.start()
        randomise(state.network, seed=5)
        found += [job.evaluate(state), job.evaluate(state)]
        assert state.network.training
    assert found[0] == found[1] == found[2]
    assert [each.loss for each in found] == pytest.approx([found[0].loss] * len(found), rel=1e-6)
    assert found[0].whole == (family == "lstm")


@pytest.mark.parametrize("parts", [1, 3])
def test_an_lstm_is_validated_with_what_it_remembers(monkeypatch, parts):
    """Each part of the held-out text costs what it costs when it is read in one pass."""
    monkeypatch.setattr(validation, "PARTS", parts)
    job = made("lstm", data={"validation_fraction": 0.2}, training={"evaluate_windows": "all", "micro_batch": 2})
    state, view = job.start(), job.prepared.validation
    randomise(state.network, seed=5)
    stream = np.array([view.end_of_text, *view.read(0, view.tokens)])
    windows = -(-view.tokens // 16)
    assert windows > 3 * parts
    cuts, total = [16 * (windows * n // parts) for n in range(parts)] + [view.tokens], 0.0
    with torch.no_grad():
        for start, stop in pairwise(cuts):
            logprobs = state.network.eval()(torch.from_numpy(stream[None, start:stop])).logits[0].log_softmax(-1)
            total -= float(logprobs[range(stop - start), stream[start + 1 : stop + 1]].sum())
    found = job.evaluate(state)
    assert found.loss == pytest.approx(total / view.tokens, rel=1e-5)


def test_a_text_shorter_than_one_context_validates_an_lstm_too(tmp_path):
    run = pretrain(tmp_path / "run", "lstm", model={"context_length": 256}, training={"batch_size": 2})
    assert json.loads((run.path / "run.json").read_text())["tokens"]["validation"] < 256


# ---- refusals


def refusal(tmp_path, **fields):
    with pytest.raises(ConfigError) as caught:
        pellucid.pretrain(Corpus.of(tiny.DOCUMENTS), out=tmp_path / "run", steps=2, **fields)
    assert not (tmp_path / "run").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("family", "section", "field", "value"),
    [
        *((family, "training", "compile", "on") for family in ("lstm", "bag-of-words")),
        *((family, "training", "recompute", True) for family in ("lstm", "bag-of-words")),
        ("lstm", "data", "document_masks", True),
    ],
)
def test_what_needs_attention_is_refused_without(tmp_path, family, section, field, value):
    message = refusal(tmp_path, **sections(family, **{section: {field: value}}))
    assert message == f"{section}.{field} has no effect with {family}, which has no attention; leave it out"


def test_a_bag_of_words_can_keep_documents_apart(tmp_path):
    masked, plain = (
        pellucid.pretrain(
            Corpus.of(tiny.DOCUMENTS),
            out=tmp_path / str(masks),
            steps=2,
            **sections("bag-of-words", data={"document_masks": masks}, model={"context_length": 256}),
        )
        for masks in (True, False)
    )
    assert masked.metrics[-1]["validation_loss"] != plain.metrics[-1]["validation_loss"]


@pytest.mark.parametrize(
    ("objective", "family", "kind", "suited"),
    [
        ("mlm", "gpt2", "a decoder", "clm"),
        ("clm", "bert", "an encoder", "mlm"),
        ("spans", "lstm", "a recurrent", "clm"),
        ("mlm", "t5", "an encoder-decoder", "spans"),
        ("mlm", "bag-of-words", "a bag-of-words", "clm"),
    ],
)
def test_an_objective_that_does_not_suit_the_family(tmp_path, objective, family, kind, suited):
    message = refusal(tmp_path, model={"family": family}, objective={"name": objective})
    assert message == f"{family} is {kind} network, which learns with --objective {suited}, not with {objective}"


def test_a_size_of_another_family(tmp_path):
    message = refusal(tmp_path, model={"family": "bert", "size": "gpt2"})
    assert message == "size 'gpt2' is a gpt2 model, not a bert one; leave out one of the two"


def test_a_size_of_another_objective(tmp_path):
    message = refusal(tmp_path, model={"size": "gpt2"}, objective={"name": "mlm"})
    assert message == "gpt2 is a decoder network, which learns with --objective clm, not with mlm"


@pytest.mark.parametrize(
    ("family", "needs"),
    [
        ("bert", "objective mlm needs a tokenizer with a mask token such as [MASK]; use --tokenizer bpe or chars"),
        (
            "t5",
            "objective spans needs a tokenizer with sentinels <extra_id_0>, <extra_id_1> ...; use --tokenizer bpe or chars",
        ),
    ],
)
def test_a_tokenizer_that_cannot_hide_anything(tmp_path, family, needs):
    Tokenizer.train_chars(tiny.DOCUMENTS).save(tmp_path)
    assert refusal(tmp_path, **sections(family, tokenizer={"kind": str(tmp_path / "tokenizer.json")})) == needs


IDLE = [
    ("lstm", "model", {"heads": 2}, "heads has no effect with lstm, which has no attention"),
    ("lstm", "model", {"kv_heads": 2}, "kv_heads has no effect with lstm, which has no attention"),
    ("bag-of-words", "model", {"d_mlp": 64}, "d_mlp has no effect with bag-of-words, which has no attention"),
    ("bag-of-words", "model", {"dropout": 0.1}, "dropout has no effect with bag-of-words, which drops nothing"),
    ("lstm", "model", {"size": "2M"}, "size has no effect when d_model and layers are given"),
    ("bert", "objective", {"mean_span": 4.0}, "mean_span has no effect with objective mlm"),
    ("t5", "objective", {"whole_words": True}, "whole_words has no effect with objective spans"),
    ("gpt2", "objective", {"rate": 0.2}, "rate has no effect with objective clm"),
]


@pytest.mark.parametrize(("family", "section", "fields", "reason"), IDLE)
def test_an_option_without_effect(tmp_path, family, section, fields, reason):
    message = refusal(tmp_path, **sections(family, **{section: fields}))
    assert message.split(": ", 1)[1] == f"{reason}; leave it out"


@pytest.mark.parametrize(("family", "gap"), [("bert", "[MASK]"), ("t5", "<extra_id_0>")])
def test_a_prompt_for_samples_that_has_no_gap(tmp_path, family, gap):
    message = refusal(tmp_path, **sections(family, training={"prompt": "Alice was"}))
    assert message == f"training.prompt 'Alice was' has no {gap}, so there is nothing that {family} could fill; put one in it"


def test_samples_fill_the_gaps(tmp_path):
    run = pretrain(tmp_path / "bert", "bert", training={"prompt": "A[MASK]ice [MASK]"})
    samples = [row["sample"] for row in run.metrics if "sample" in row]
    assert all(sample.startswith("A") and "[MASK]" not in sample for sample in samples)
    run = pretrain(tmp_path / "t5", "t5", training={"prompt": "Alice <extra_id_0> was"})
    assert all(isinstance(row["sample"], str) for row in run.metrics if "sample" in row)
    run = pretrain(tmp_path / "lstm", "lstm", training={"prompt": "Alice"})
    assert all(row["sample"].startswith("Alice") for row in run.metrics if "sample" in row)


def test_the_longest_windows_of_spans_are_those_that_there_are_sentinels_for(tmp_path):
    message = refusal(tmp_path, **sections("t5", model={"context_length": 4096}, objective={"rate": 0.3}))
    assert message.startswith("windows of 4096 tokens need 411 sentinels, but there are 100; choose a smaller context")


# ---- published sizes


@pytest.mark.parametrize("size", ["bert-base", "gpt2", "t5-small", "t5-v1.1-small", "distilbert-base", "roberta-base"])
def test_a_published_size_is_written_out_and_read_again(size, tmp_path):
    recipe = settled(Recipe.of({"model": {"size": size}, "training": {"steps": 1}}))
    published = presets.preset(size)
    config = dimensions(recipe.model, 8192)
    assert config.family == published.family == recipe.model.family
    shape = ("d_model", "layers", "decoder_layers", "heads", "d_head", "d_mlp", "tied", "norm_eps", "activation", "head_scale")
    assert [getattr(config, name) for name in shape] == [getattr(published, name) for name in shape]
    (tmp_path / "recipe.toml").write_text(
        fixed(Job(recipe=recipe, prepared=None, config=config, compute=CPU), {}).recipe.to_toml()
    )
    again = Recipe.load(tmp_path / "recipe.toml")
    assert again.model.size == size
    assert dimensions(settled(again).model, 8192) == config


def test_a_run_of_a_published_size_is_resumed_as_it_was(tmp_path, monkeypatch):
    doll = FAMILIES["bert"].new(
        vocab_size=99, context_length=40, d_model=24, layers=2, heads=3, kv_heads=3, d_head=8, d_mlp=36, norm_eps=1e-12
    )
    monkeypatch.setitem(presets.MODELS, "bert-doll", doll)
    fields = {"tokenizer": {"kind": "chars"}, "model": {"size": "bert-doll", "context_length": 16}}
    fields["training"] = tiny.SECTIONS["training"]

    def run(name, **options):
        return pellucid.pretrain(Corpus.of(tiny.DOCUMENTS), out=tmp_path / name, steps=4, **fields, **options)

    whole = run("whole")
    when_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM), monkeypatch)
    with pytest.raises(Interrupted):
        run("run")
    again = run("run", resume=True)
    assert weights(again) == weights(whole)
    expected = dataclasses.replace(doll, vocab_size=again.model.config.vocab_size, context_length=16)
    assert again.model.config == expected
    assert 'size = "bert-doll"' in (again.path / "recipe.toml").read_text()


@pytest.mark.parametrize("family", ["bert", "t5", "lstm", "gpt2", "bag-of-words"])
@pytest.mark.parametrize("size", ["1M", "5M", "25M"])
def test_a_number_of_parameters_is_about_what_one_gets(family, size):
    from pellucid.network.build import parameters

    recipe = settled(Recipe.of({"model": {"family": family, "size": size}}))
    assert parameters(dimensions(recipe.model, 8192)) == pytest.approx(float(size[:-1]) * 1e6, rel=0.12)


@pytest.mark.parametrize("family", ["bert", "lstm", "bag-of-words"])
def test_a_size_smaller_than_the_vocabulary(tmp_path, family):
    message = refusal(tmp_path, model={"family": family, "size": "300"}, tokenizer={"kind": "chars"})
    assert message.startswith("a size of 300 parameters is too small for a vocabulary of 5")
    assert message.endswith("; choose a larger --size or a smaller --vocab-size")


# ---- other people's tools


def test_a_bert_opens_in_transformers_and_fills_the_same(learnt):
    model, folder = learnt("bert").model, learnt("bert").path / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = AutoModelForMaskedLM.from_pretrained(folder)
    assert tokenizer.mask_token == "[MASK]"
    ids = tokenizer("Ali[MASK]e was")["input_ids"]
    assert ids == model.tokenizer.encode("Ali[MASK]e was", special=True, framed=True)
    assert ids[0] == ids[-1] == model.tokenizer.end_of_text
    with torch.no_grad():
        assert (theirs(torch.tensor([ids])).logits - model(torch.tensor([ids])).logits).abs().max() < 1e-4
    for text in ("Ali[MASK]e was", "t[MASK]e", "the rabbi[MASK]"):
        found = pipeline("fill-mask", model=theirs, tokenizer=tokenizer, top_k=5)(text)
        [mine] = model.fill(text, top=5)
        assert [filling.id for filling in mine] == [each["token"] for each in found]
        assert [filling.probability for filling in mine] == pytest.approx([each["score"] for each in found], rel=1e-4)


def test_a_t5_opens_in_transformers(learnt):
    model, folder = learnt("t5").model, learnt("t5").path / "model"
    theirs, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer("Alice <extra_id_0>s beg")["input_ids"]])
    assert ids[0].tolist() == model.tokenizer.encode("Alice <extra_id_0>s beg", special=True, framed=True)
    after = torch.tensor([[model.config.start_token, *model.tokenizer.sentinels[:1], *model.tokenizer.encode("was")]])
    with torch.no_grad():
        expected = theirs(ids, decoder_input_ids=after).logits
        assert (model(ids, decoder_ids=after).logits - expected).abs().max() < 1e-4
    written = theirs.generate(ids, do_sample=False, max_new_tokens=12)[0, 1:].tolist()
    mine = model.generate(ids[0], temperature=0, max_tokens=12)
    assert mine.tokens == [token for token in written if token != model.tokenizer.end_of_text]
    assert mine.tokens[0] == model.tokenizer.sentinels[0]  # it has learnt how an answer begins


def test_a_gpt2_opens_in_transformers(learnt):
    model, folder = learnt("gpt2").model, learnt("gpt2").path / "model"
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer("Alice was b")["input_ids"]])
    with torch.no_grad():
        assert (model(ids).logits - theirs(ids).logits).abs().max() < 1e-4


def test_an_lstm_is_torchs_lstm(learnt):
    """No tool opens the folder of an LSTM; its tensors have torch.nn.LSTM's names."""
    from safetensors.torch import load_file

    model = learnt("lstm").model
    stored = load_file(learnt("lstm").path / "model/model.safetensors")
    lstm = torch.nn.LSTM(32, 32, batch_first=True)
    lstm.load_state_dict({name.removeprefix("lstm."): w for name, w in stored.items() if name.startswith("lstm.")})
    ids = torch.tensor([model.tokenizer.encode("Alice was b")])
    with torch.no_grad():
        hidden, _ = lstm(stored["embedding.weight"][ids])
        assert (model(ids).logits - hidden @ stored["embedding.weight"].T).abs().max() < 1e-4


def test_lanes_are_what_an_lstm_reads():
    assert isinstance(made("lstm").batches(), Lanes)
    assert not isinstance(made("bag-of-words").batches(), Lanes)


# ---- memory

MEASURED = """
import json, sys, torch, numpy as np
from pellucid.core.device import Compute
from pellucid.core.machine import peak_memory
from pellucid.network.build import build
from pellucid.text.batches import Batch
from pellucid.text.masking import Masking
from pellucid.text.spans import SpanCorruption
from pellucid.training.memory import estimate
from pellucid.training.objectives import TokenPrediction
from pellucid.training.optimizers import Optimizers
from pellucid.training.preparation import dimensions
from pellucid.training.recipe import Model, Optimizer

torch.set_num_threads(1)
family, size, context, rows = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
config = dimensions(Model(family=family, size=size, context_length=context), 8192)
network = build(config, seed=0).train()
optimizers = Optimizers(network, Optimizer())
ids = np.random.default_rng(0).integers(200, 8192, (rows, context + 1))
windows = ids[:, :-1], np.ones((rows, context), bool), np.arange(2 * rows, dtype=np.uint64).reshape(rows, 2)
options, batch = {}, Batch(ids[:, :-1].copy(), ids[:, 1:].copy())
if family == "bert":
    options, batch = {"scored": 0.15}, Masking(mask=3, special=[0, 1, 2], vocab=8192)(*windows)
if family == "t5":
    batch = SpanCorruption(sentinels=range(3, 103), start=0, end_of_text=0)(*windows)
    options = {"lengths": (batch.ids.shape[1], batch.targets.shape[1])}
for _ in range(2):
    state = network.state(rows) if family == "lstm" else None
    (TokenPrediction().loss(network, batch, state) / (rows * context)).backward()
    optimizers.step(1.0)
compute = Compute(device="cpu", precision="fp32", threads=1)
said = estimate(config, micro_batch=rows, context=context, compute=compute, optimizer="muon", recompute=False, **options)
print(json.dumps([said.total, peak_memory()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("size", "context", "rows"), [("1M", 128, 16), ("5M", 128, 64), ("5M", 512, 16)])
@pytest.mark.parametrize("family", ["bert", "t5", "lstm", "bag-of-words", "qwen3"])
def test_the_memory_that_is_said_is_the_memory_that_is_used(family, size, context, rows):
    words = [sys.executable, "-c", MEASURED, family, size, str(context), str(rows)]
    said, used = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, timeout=120).stdout)
    assert said == pytest.approx(used, rel=0.15)


def test_a_run_asks_for_the_memory_of_what_it_scores(monkeypatch):
    from pellucid.training import decisions

    asked = {}

    def record(config, **options):
        asked[config.family] = options
        return estimate(config, **options)

    estimate = decisions.estimate
    monkeypatch.setattr(decisions, "estimate", record)
    for family in ("bert", "t5", "gpt2"):
        decisions.fitting_micro_batch(made(family))
    assert asked["bert"]["scored"] == 0.15
    assert asked["t5"]["lengths"] == (30, 9)
    assert not {"scored", "lengths"} & asked["gpt2"].keys()
