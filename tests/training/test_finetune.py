"""Fine-tuning: what moves and what stays, what is kept, and that a run which stops anywhere ends where it would have ended."""

import json
import math
import warnings
from dataclasses import replace

import peft
import pytest
import torch
import transformers
from pupils import CHOICES, GOOD, REVIEWS, TALKS, pupil, teach, write_rows
from safetensors.torch import load_file
from tiny import write_corpus

import pellucid
from pellucid.api import load
from pellucid.converting import merge_adapter
from pellucid.core.errors import DivergenceError, RunError
from pellucid.core.run import RunFolder
from pellucid.evaluation.predict import label_scores
from pellucid.loading import open_model
from pellucid.training.label_objective import LabelPrediction

TEXTS = [row["text"] for row in REVIEWS]
LABELS = [row["label"] for row in REVIEWS]
NOTHING_HELD_OUT = {"validation_fraction": 0.0, "test_fraction": 0.0}
NO_TEST = {"test_fraction": 0.0}


class Crash(Exception):
    """Stands for a power failure: nothing is tidied up."""


@pytest.fixture
def reviews(tmp_path):
    return write_rows(tmp_path / "reviews.jsonl")


def weights(folder):
    """What a folder holds, by name."""
    return load_file(folder / "model.safetensors")


def changed(before, after):
    """The names of the weights that are not bit for bit the same."""
    first, second = weights(before), weights(after)
    return {name for name in first.keys() & second.keys() if not torch.equal(first[name], second[name])}


def scores(model):
    opened = open_model(model)
    return torch.from_numpy(label_scores(opened.network, opened.tokenizer, TEXTS))


@torch.no_grad()
def said_by(theirs, ids):
    return theirs(input_ids=ids).logits


@torch.no_grad()
def said_here(network, ids):
    return network(ids).logits


FAMILIES = {
    "bert": 5e-3,
    "roberta": 5e-3,
    "distilbert": 5e-3,
    "gpt2": 5e-3,
    "llama": 5e-3,
    "qwen3": 5e-3,
    "lstm": 2e-2,
    "bag-of-words": 5e-2,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_learns_what_is_easy(tmp_path, reviews, name):
    run = teach(
        pupil(tmp_path / "model", name),
        reviews,
        tmp_path / "run",
        data=NOTHING_HELD_OUT,
        optimizer={"learning_rate": FAMILIES[name]},
        training={"steps": 40, "batch_size": 10, "dropout": 0.0},
    )
    labels = open_model(run.path).network.config.labels
    assert labels == ("fine", "poor")
    assert [labels[at] for at in scores(run.path).argmax(dim=1).tolist()] == LABELS


POOLED = {"bert": "first", "roberta": "first", "gpt2": "last", "qwen3": "last"}


@pytest.mark.parametrize("name", POOLED)
def test_a_classifier_opens_in_transformers_with_the_same_scores(tmp_path, reviews, name):
    run = teach(
        pupil(tmp_path / "model", name, shaken=True),
        reviews,
        tmp_path / "run",
        task={"name": "classify", "pooling": POOLED[name]},
        data=NOTHING_HELD_OUT,
        training={"steps": 3},
    )
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(run.path / "model", dtype=torch.float32).eval()
    assert theirs.config.id2label == {0: "fine", 1: "poor"}
    opened = open_model(run.path)
    for text in TEXTS[:4]:
        ids = torch.tensor([opened.tokenizer.encode(text, framed=True)])
        assert (said_by(theirs, ids) - said_here(opened.network, ids)).abs().max() < 1e-4


class TestMethods:
    def lora(self, tmp_path, reviews, name="qwen3", **method):
        model = pupil(tmp_path / "model", name, shaken=True)
        run = teach(
            model,
            reviews,
            tmp_path / "run",
            method={"name": "lora", "rank": 3, **method},
            task={"name": "classify", "pooling": "first" if name == "bert" else "last"},
            data=NOTHING_HELD_OUT,
            optimizer={"learning_rate": 1e-2},
            training={"steps": 4},
        )
        return model, run

    @pytest.mark.parametrize("name", ["qwen3", "gpt2", "bert"])
    def test_an_adapter_opens_in_peft_and_says_the_same_loaded_merged_and_there(self, tmp_path, reviews, name):
        model, run = self.lora(tmp_path, reviews, name)
        before = weights(model)
        assert not (run.path / "model" / "model.safetensors").exists()
        opened = open_model(run.path)
        held = opened.network.state_dict()
        base = open_model(model).network.state_dict()
        assert all(torch.equal(held[key], base[key]) for key in base if key in held and not key.startswith("head."))
        kind = transformers.AutoModelForSequenceClassification
        theirs = kind.from_pretrained(model, num_labels=2, dtype=torch.float32)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Unexpected keyword arguments")  # there is nothing peft does not know
            theirs = peft.PeftModel.from_pretrained(theirs, run.path / "model").eval()
        merged = open_model(merge_adapter(run.path, tmp_path / "merged"))
        for text in TEXTS[:3]:
            ids = torch.tensor([opened.tokenizer.encode(text, framed=True)])
            ours = said_here(opened.network, ids)
            assert (said_by(theirs, ids) - ours).abs().max() < 1e-4
            assert (said_here(merged.network, ids) - ours).abs().max() < 1e-4
        assert all(torch.equal(before[key], value) for key, value in weights(model).items())

    def test_an_adapter_in_bf16_still_belongs_to_its_base(self, tmp_path, reviews):
        model = pupil(tmp_path / "model", shaken=True)
        run = teach(
            model, reviews, tmp_path / "run", method={"name": "lora"}, data=NO_TEST, training={"steps": 2, "precision": "bf16"}
        )
        assert scores(run.path).isfinite().all()

    def test_only_the_targets_are_adapted(self, tmp_path, reviews):
        _, run = self.lora(tmp_path, reviews, targets=["attn.q", "mlp.up"])
        kept = load_file(run.path / "model" / "adapter_model.safetensors")
        assert {name.split(".")[-3] for name in kept if "lora" in name} == {"q_proj", "up_proj"}

    @pytest.mark.parametrize(("name", "moved"), [("qwen3", {"score"}), ("bert", {"classifier", "bert.pooler.dense"})])
    def test_the_head_alone_moves(self, tmp_path, reviews, name, moved):
        model = pupil(tmp_path / "model", name)
        options = {"task": {"name": "classify", "pooling": "first" if name == "bert" else "last"}, "data": NOTHING_HELD_OUT}
        runs = [
            teach(model, reviews, tmp_path / f"run-{steps}", method={"name": "head"}, training={"steps": steps}, **options)
            for steps in (1, 6)
        ]
        found = changed(runs[0].path / "model", runs[1].path / "model")
        assert {key.rpartition(".")[0] for key in found} == moved
        assert runs[0].path != runs[1].path

    def test_frozen_blocks_and_the_embedding_stay(self, tmp_path, reviews):
        model = pupil(tmp_path / "model", "gpt2")
        run = teach(model, reviews, tmp_path / "run", method={"freeze": 1}, data=NOTHING_HELD_OUT, training={"steps": 3})
        found = changed(model, run.path / "model")
        assert found
        assert all(name.startswith(("transformer.h.1.", "transformer.ln_f.")) for name in found)
        assert "transformer.h.1.attn.c_attn.weight" in found

    def test_deeper_layers_learn_slower(self, tmp_path, reviews):
        from pellucid.core.device import Compute
        from pellucid.training.finetune import FinetuneJob
        from pellucid.training.finetune_recipe import FinetuneRecipe
        from pellucid.training.lesson import Lesson

        recipe = FinetuneRecipe.of(
            {"method": {"name": "full", "layer_decay": 0.5}, "optimizer": {"learning_rate": 0.1, "head_learning_rate": 0.3}}
        )
        network = open_model(pupil(tmp_path / "model", "bert")).network
        config = replace(network.config, head="classify", labels=("a", "b"), pooling="first", pooler=True)
        job = FinetuneJob(
            recipe=recipe,
            lesson=Lesson(tokenizer=None, objective=None, batches=None, batches_per_epoch=1, validate=None),
            base=lambda: network,
            name="",
            ids={},
            compute=Compute(device="cpu", precision="fp32", threads=1),
        )
        share = job.share(config)
        names = {"embedding.weight": 0.125, "blocks.0.attn.q.weight": 0.25, "blocks.1.mlp.up.bias": 0.5, "norm.weight": 1.0}
        assert {name: share(name) for name in names} == names
        assert share("head.weight") == share("pooler.weight") == pytest.approx(3.0)
        moved = [name for name, _ in network.named_parameters() if share(name) == 0.125]
        assert {name.split(".")[0] for name in moved} >= {"embedding", "positions"}

    def test_fresh_weights_owe_nothing_to_the_model(self, tmp_path, reviews):
        runs = [
            teach(
                pupil(tmp_path / f"model-{seed}", seed=seed),
                reviews,
                tmp_path / f"run-{seed}",
                method={"fresh": True},
                data=NOTHING_HELD_OUT,
                training={"steps": 2},
            )
            for seed in (1, 2)
        ]
        assert not changed(runs[0].path / "model", runs[1].path / "model")

    def test_dropout_is_that_which_was_asked_for(self, tmp_path, reviews):
        model = pupil(tmp_path / "model", "gpt2", shaken=True)
        losses = []
        for dropout in (0.0, 0.9):
            options = {"data": NOTHING_HELD_OUT, "training": {"steps": 2, "dropout": dropout}}
            run = teach(model, reviews, tmp_path / f"run-{dropout}", **options)
            losses.append(run.metrics[1]["loss"])
        assert losses[0] != losses[1]


class TestNumbers:
    def regress(self, tmp_path, out, scale, offset, **method):
        rows = [{"text": row["text"], "label": (at % 7 - 3) * scale + offset} for at, row in enumerate(REVIEWS)]
        return teach(
            pupil(tmp_path / f"model-{out}"),
            write_rows(tmp_path / f"{out}.jsonl", rows),
            tmp_path / out,
            task="regress",
            method=method,
            data=NO_TEST,
            training={"steps": 6},
            optimizer={"learning_rate": 1e-2},
        )

    @pytest.mark.parametrize("method", [{}, {"fresh": True}, {"name": "lora", "rank": 2}], ids=str)
    def test_the_unit_of_numbers_changes_nothing(self, tmp_path, method):
        plain, scaled = self.regress(tmp_path, "plain", 1, 0, **method), self.regress(tmp_path, "scaled", 1000, 5000, **method)
        for first, second in zip(plain.metrics, scaled.metrics, strict=True):
            for name in ("loss", "validation_loss", "gradient_norm"):
                if name in first:
                    assert second[name] == pytest.approx(first[name], rel=2e-3), (first["step"], name)
        assert (scores(plain.path) * 1000 + 5000 - scores(scaled.path)).abs().max() < 5
        assert plain.metrics[0]["loss"] < 1.5  # it begins with the mean

    def test_a_head_that_regresses_already_is_kept(self, tmp_path):
        first = self.regress(tmp_path, "first", 1, 0)
        again = teach(
            first.path,
            tmp_path / "first.jsonl",
            tmp_path / "again",
            task="regress",
            data=NO_TEST,
            training={"steps": 1},
            optimizer={"learning_rate": 1e-9},
        )
        assert (scores(first.path) - scores(again.path)).abs().max() < 1e-4


class TestPace:
    def rising(self, monkeypatch, losses):
        """Make evaluations find these losses."""
        from pellucid.training import label_lesson
        from pellucid.training.scores import TaskScore

        found = iter(losses)
        monkeypatch.setattr(label_lesson, "score_examples", lambda *_, **__: TaskScore(loss=next(found)))

    def test_the_best_checkpoint_is_the_model(self, tmp_path, reviews, monkeypatch):
        self.rising(monkeypatch, [0.5, 0.2, 0.7, 0.9])
        run = teach(
            pupil(tmp_path / "model"), reviews, tmp_path / "run", data=NO_TEST, training={"steps": 8, "evaluate_every": 2}
        )
        kept = {path.name: path for path in (run.path / "checkpoints").glob("step-*")}
        assert set(kept) == {"step-00000004", "step-00000008"}
        assert not changed(run.path / "model", kept["step-00000004"])
        assert changed(run.path / "model", kept["step-00000008"])

    def test_patience_ends_a_run_and_survives_a_stop(self, tmp_path, reviews, monkeypatch):
        model = pupil(tmp_path / "model")
        options = {"data": NO_TEST, "training": {"steps": 20, "evaluate_every": 2, "patience": 3}}
        losses = [0.5, 0.4, 0.6, 0.4, 0.5, 0.1]  # an equal loss is not lower
        self.rising(monkeypatch, losses)
        whole = teach(model, reviews, tmp_path / "whole", **options)
        assert whole.metrics[-1]["step"] == 10
        self.rising(monkeypatch, losses)
        crash_after(7, monkeypatch)
        with pytest.raises(Crash):
            teach(model, reviews, tmp_path / "run", **options)
        self.rising(monkeypatch, losses[3:])
        run = teach(model, reviews, tmp_path / "run", **options, resume=True)
        assert values(run) == values(whole)
        again = teach(model, reviews, tmp_path / "run", **options, resume=True)  # it has ended, and stays so
        assert values(again) == values(whole)

    def test_a_target_loss_ends_a_run(self, tmp_path, reviews, monkeypatch):
        self.rising(monkeypatch, [0.5, 0.3, 0.1])
        options = {"data": NO_TEST, "training": {"steps": 20, "evaluate_every": 2, "target_loss": 0.3}}
        assert teach(pupil(tmp_path / "model"), reviews, tmp_path / "run", **options).metrics[-1]["step"] == 4

    def test_a_loss_that_is_no_number_ends_a_run_without_a_model(self, tmp_path, reviews, monkeypatch):
        monkeypatch.setattr(LabelPrediction, "loss_of", lambda self, logits, targets: logits.sum() * math.nan)
        with pytest.raises(DivergenceError) as caught:
            teach(pupil(tmp_path / "model"), reviews, tmp_path / "run", data=NO_TEST, training={"steps": 2})
        expected = "step 1: the loss is nan and the gradient's norm nan; there is no checkpoint yet; "
        assert str(caught.value) == expected + "start anew with a lower --learning-rate"
        assert not (tmp_path / "run" / "model").exists()
        assert not list((tmp_path / "run").glob("checkpoints/*"))


def crash_after(step, monkeypatch):
    """End everything right after a step has written its line of metrics, once."""
    append = RunFolder.append_metrics

    def appended(self, row):
        append(self, row)
        if row["step"] == step and "loss" in row:
            monkeypatch.setattr(RunFolder, "append_metrics", append)
            raise Crash

    monkeypatch.setattr(RunFolder, "append_metrics", appended)


def values(run):
    """Every line of the metrics, less the times."""
    return [{name: value for name, value in row.items() if name not in ("seconds", "tokens_per_second")} for row in run.metrics]


DROPPING = {"name": "lora", "rank": 3, "adapter_dropout": 0.3}
RESUMED = {  # the model, its data, options
    "full": ("gpt2", "reviews", {"training": {"dropout": 0.2}}),
    "muon, decay": ("qwen3", "reviews", {"optimizer": {"name": "muon"}, "method": {"layer_decay": 0.7}}),
    "lora": ("gpt2", "reviews", {"method": DROPPING, "training": {"dropout": 0.1}}),
    "head": ("bert", "reviews", {"method": {"name": "head"}, "task": {"name": "classify", "pooling": "first"}}),
    "lstm": ("lstm", "reviews", {}),
    "regress": ("qwen3", "numbers", {"task": "regress"}),
    "instruct": ("qwen3", "talks", {"task": "instruct", "training": {"dropout": 0.1}}),
    "instruct, lora": ("llama", "talks", {"task": "instruct", "method": DROPPING}),
    "prefer": ("qwen3", "choices", {"task": "prefer"}),
    "prefer, lora": ("gpt2", "choices", {"task": "prefer", "method": DROPPING}),
    "continue": ("qwen3", "text", {"task": "continue", "data": {}}),
    "continue, lstm": ("lstm", "text", {"task": "continue", "data": {}, "training": {"context_length": 16}}),
    "seq2seq": ("t5", "pairs", {"task": "seq2seq"}),
}


FAST = ("full", "lora", "instruct", "prefer")


def write_data(folder, kind):
    rows = {
        "reviews": REVIEWS,
        "numbers": [{"text": row["text"], "label": at % 5 / 2} for at, row in enumerate(REVIEWS)],
        "talks": [{"messages": talk} for talk in TALKS * 3],
        "choices": CHOICES,
        "pairs": [{"source": text, "target": text[:9]} for text in GOOD],
    }
    return write_corpus(folder / kind) if kind == "text" else write_rows(folder / f"{kind}.jsonl", rows[kind])


@pytest.mark.parametrize("kind", [kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in RESUMED])
def test_a_run_that_stops_anywhere_ends_with_the_same_bits(tmp_path, monkeypatch, kind):
    name, data, options = RESUMED[kind]
    model, rows = pupil(tmp_path / "model", name, shaken=name != "lstm"), write_data(tmp_path, data)
    held = {"validation_fraction": 0.34, "test_fraction": 0.0}
    options = {"data": held, "optimizer": {"learning_rate": 1e-3}} | options
    pace = {"steps": 6, "evaluate_every": 3, "checkpoint_every": 2, "batch_size": 3} | options.pop("training", {})
    whole = teach(model, rows, tmp_path / "whole", training=pace, **options)
    for step in (1, 5):
        crash_after(step, monkeypatch)
        with pytest.raises(Crash):
            teach(model, rows, tmp_path / "run", training=pace, resume=(tmp_path / "run").exists(), **options)
    run = teach(model, rows, tmp_path / "run", training=pace, resume=True, **options)
    assert values(run) == values(whole)
    files = [path.relative_to(whole.path) for path in whole.path.rglob("*.safetensors")]
    assert any(path.name in ("model.safetensors", "adapter_model.safetensors") for path in files)
    for path in files:
        assert (run.path / path).read_bytes() == (whole.path / path).read_bytes(), path


def test_a_changed_model_label_or_option_is_not_gone_on_with(tmp_path, reviews):
    model, out = pupil(tmp_path / "model"), tmp_path / "run"
    options = {"data": NO_TEST, "training": {"steps": 2}}
    teach(model, reviews, out, **options)
    with pytest.raises(RunError, match=r"^the model to begin with is not the one this run began with"):
        teach(pupil(tmp_path / "other", shaken=True), reviews, out, resume=True, **options)
    with pytest.raises(RunError, match=r"^method.name was 'full' when this run began and is 'lora' now; a resumed run goes on"):
        teach(model, reviews, out, resume=True, method={"name": "lora"}, **options)
    write_rows(reviews, [{**row, "label": row["label"].upper()} for row in REVIEWS])
    with pytest.raises(RunError, match=r"^the labelled data is not the one this run began with .*; put it back, or start anew"):
        teach(model, reviews, out, resume=True, **options)


GOLDEN = [
    0.693147,
    0.684425,
    0.700782,
    0.759137,
    0.729113,
    0.684753,
    0.713248,
    0.637117,
    0.782397,
    0.760340,
    0.686059,
    0.697614,
]  # the last two: validation


def test_losses_are_the_ones_written_down(tmp_path, reviews):
    run = teach(
        pupil(tmp_path / "model", "qwen3", seed=3),
        reviews,
        tmp_path / "run",
        data=NO_TEST,
        optimizer={"learning_rate": 3e-3, "head_learning_rate": 3e-3, "weight_decay": 0.01, "clip": 1.0},
        schedule={"kind": "wsd", "warmup": 0.1, "decay": 0.9},
        training={"steps": 10, "batch_size": 8, "seed": 7, "evaluate_every": 5, "micro_tokens": 128, "dropout": 0.0},
    )
    losses = [row["loss"] for row in run.metrics if "loss" in row]
    losses += [row["validation_loss"] for row in run.metrics if "validation_loss" in row]
    assert losses == pytest.approx(GOLDEN, rel=1e-5)


def test_a_written_recipe_begins_the_same_run(tmp_path, reviews):
    model = pupil(tmp_path / "model")
    first = teach(model, reviews, tmp_path / "first", data=NO_TEST, training={"steps": 3})
    second = pellucid.finetune(model, recipe=first.path / "recipe.toml", out=tmp_path / "second")
    assert values(first) == values(second)
    assert not changed(first.path / "model", second.path / "model")


def test_memory_is_no_part_of_the_result(tmp_path, reviews):
    model = pupil(tmp_path / "model", "bert")
    losses = []
    for tokens in (30, 5000):
        training = {"steps": 3, "micro_tokens": tokens, "dropout": 0.0}
        run = teach(model, reviews, tmp_path / f"run-{tokens}", data=NO_TEST, training=training)
        losses.append([row["loss"] for row in run.metrics if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_run_json_tells_what_a_reader_needs(tmp_path, reviews):
    run = teach(pupil(tmp_path / "model"), reviews, tmp_path / "run", data=NO_TEST, training={"epochs": 2.0, "batch_size": 6})
    info = json.loads((run.path / "run.json").read_text())
    assert (info["verb"], info["task"], info["labels"]) == ("finetune", "classify", ["fine", "poor"])
    assert info["rows"] == {"train": 36, "validation": 4, "test": 0}
    assert info["epochs"] == 2.0
    assert run.metrics[-1]["step"] == 12
    assert load(run.path).config.labels == ("fine", "poor")
