"""What a task's data becomes: the tokens that are learnt and no others, one after another or packed; answers that end."""

import json

import numpy as np
import pytest
import torch
import transformers
from pupils import CHOICES, REVIEWS, TALKS, pupil, teach, write_rows

import pellucid
from pellucid.core.errors import ConfigError, CorpusError
from pellucid.core.progress import Silent
from pellucid.evaluation.predict import word_tags
from pellucid.generation.generate import generate
from pellucid.generation.settings import Sampling
from pellucid.loading import open_model
from pellucid.network.config import ModelConfig
from pellucid.text.batches import IGNORED
from pellucid.text.chat import ChatTemplate, encode_chat
from pellucid.training.answer_lesson import drawn
from pellucid.training.finetune_recipe import FinetuneRecipe
from pellucid.training.label_lesson import balanced
from pellucid.training.lesson import Start
from pellucid.training.lessons import check_kind, lesson

NOTHING_HELD_OUT = {"validation_fraction": 0.0, "test_fraction": 0.0}


def learn(model, rows, task="instruct", data=None, **training):
    """The lesson of some rows."""
    opened = open_model(model)
    start = Start(network=lambda: open_model(model).network, config=opened.network.config, tokenizer=opened.tokenizer)
    task = {"name": task} if isinstance(task, str) else task
    files = {"train": [str(rows)]} | (NOTHING_HELD_OUT if data is None else data)
    recipe = FinetuneRecipe.of({"task": task, "data": files, "training": training, "method": {"name": "full"}})
    return lesson(recipe, start, None, Silent())


@pytest.fixture
def talks(tmp_path):
    return write_rows(tmp_path / "talks.jsonl", [{"messages": talk} for talk in TALKS])


class TestConversations:
    def test_only_what_the_assistant_says_is_learnt_and_how_it_ends(self, tmp_path, talks):
        found = learn(pupil(tmp_path / "model"), talks, {"name": "instruct", "pack": False})
        learnt = []
        for example in found.batches.examples:
            parts, said = [], []
            for target in np.asarray(example.target):
                if target != IGNORED:
                    said.append(int(target))
                elif said:
                    parts.append(said)
                    said = []
            learnt.append([found.tokenizer.decode(part, special=True) for part in [*parts, *([said] if said else [])]])
        assert sorted(learnt) == sorted([["the rabbit<|im_end|>"], ["Alice<|im_end|>"], ["a cat<|im_end|>", "hers<|im_end|>"]])
        assert found.ends == {found.tokenizer.encode("<|im_end|>", special=True)[0]}

    @pytest.mark.parametrize("name", ["qwen3", "gpt2"])
    def test_packed_conversations_have_the_losses_and_gradients_of_single_ones(self, tmp_path, talks, name):
        model = pupil(tmp_path / "model", name, shaken=True)
        sums = []
        for pack in (True, False):
            found = learn(model, talks, {"name": "instruct", "pack": pack}, context_length=128)
            network = found.fit(open_model(model).network).requires_grad_(True).eval()
            batch = found.batches[0]
            assert len(batch.ids) == (2 if pack else 3)
            loss = found.objective.loss(network, batch)
            loss.backward()
            sums.append((loss.item(), found.objective.count(batch), {n: w.grad for n, w in network.named_parameters()}))
        assert sums[0][0] == pytest.approx(sums[1][0], rel=1e-5)
        assert sums[0][1] == sums[1][1]
        for at, gradient in sums[0][2].items():
            assert (gradient - sums[1][2][at]).abs().max() < 1e-4 * max(1.0, gradient.abs().max().item()), at

    def test_the_end_of_a_turn_is_learnt_and_stops_every_reader(self, tmp_path, talks):
        model = pupil(tmp_path / "model")
        run = teach(
            model,
            talks,
            tmp_path / "run",
            task="instruct",
            data=NOTHING_HELD_OUT,
            optimizer={"learning_rate": 1e-2},
            training={"steps": 80, "batch_size": 3, "dropout": 0.0},
        )
        opened = open_model(run.path)
        template, greedy = ChatTemplate.of(opened.tokenizer), Sampling(temperature=0.0)
        [end] = opened.tokenizer.encode("<|im_end|>", special=True)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(run.path / "model", dtype=torch.float32).eval()
        assert theirs.generation_config.eos_token_id in (end, [end], sorted([end, opened.tokenizer.end_of_text]))
        reader = transformers.AutoTokenizer.from_pretrained(run.path / "model")
        for talk in TALKS:
            for at, turn in enumerate(talk):
                if turn["role"] != "assistant":
                    continue
                ids = encode_chat(opened.tokenizer, template, talk[:at], add_generation_prompt=True)
                assert reader.apply_chat_template(talk[:at], add_generation_prompt=True)["input_ids"] == ids
                [answer] = generate(
                    opened.network, opened.tokenizer, [ids], max_tokens=20, sampling=greedy, ends=frozenset({end})
                )
                assert (answer.text, answer.finish_reason) == (turn["content"], "stop")
                mine = pellucid.load(run.path).generate(ids, max_tokens=20, temperature=0.0)
                assert (mine.text, mine.finish_reason) == (turn["content"], "stop")
                written = theirs.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids) :].tolist()
                assert written == [*opened.tokenizer.encode(turn["content"]), end]
        assert end in json.loads((run.path / "model" / "generation_config.json").read_text())["eos_token_id"]

    def test_an_lstm_learns_conversations_one_by_one(self, tmp_path, talks):
        model = pupil(tmp_path / "model", "lstm")
        found = learn(model, talks)
        assert all(example.documents is None for example in found.batches.examples)
        with pytest.raises(ConfigError) as caught:
            learn(model, talks, {"name": "instruct", "pack": True})
        assert str(caught.value) == "task.pack has no effect on a lstm model, which reads one text at a time; leave it out"


class TestOtherTasks:
    def test_an_encoder_decoder_learns_pairs_by_heart(self, tmp_path):
        pairs = [
            {"source": "Who fell?", "target": "Alice"},
            {"source": "Who ran?", "target": "the rabbit"},
            {"source": "Who sat?", "target": "her sister"},
            {"source": "Who is Dinah?", "target": "a cat"},
        ]
        run = teach(
            pupil(tmp_path / "model", "t5"),
            write_rows(tmp_path / "pairs.jsonl", pairs),
            tmp_path / "run",
            task="seq2seq",
            data=NOTHING_HELD_OUT,
            optimizer={"learning_rate": 1e-2},
            training={"steps": 150, "batch_size": 4, "dropout": 0.0},
        )
        model = pellucid.load(run.path)
        theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(run.path / "model", dtype=torch.float32).eval()
        for pair in pairs:
            ids = model.tokenizer.encode(pair["source"], framed=True)
            answer = model.generate(ids, max_tokens=20, temperature=0.0)
            assert (answer.text, answer.finish_reason) == (pair["target"], "stop")
            written = theirs.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0]
            assert model.tokenizer.decode(written.tolist()) == pair["target"]

    @pytest.mark.parametrize("name", ["bert", "qwen3"])
    def test_words_are_tagged(self, tmp_path, name):
        rows = [{"tokens": ["Alice", "saw", who, "run"], "tags": ["B-HERO", "O", tag, "O"]} for who, tag in WHO * 4]
        run = teach(
            pupil(tmp_path / "model", name),
            write_rows(tmp_path / "tags.jsonl", rows),
            tmp_path / "run",
            task="tag",
            data=NOTHING_HELD_OUT,
            optimizer={"learning_rate": 5e-3},
            training={"steps": 60, "batch_size": 6, "dropout": 0.0},
        )
        opened = open_model(run.path)
        assert opened.network.config.labels == ("O", "B-CAT", "I-CAT", "B-HERO", "I-HERO")
        found = learn(tmp_path / "model", tmp_path / "tags.jsonl", "tag")
        words = [row.words for row in found.rows["train"]]
        assert word_tags(opened.network, opened.tokenizer, words) == [list(row.label) for row in found.rows["train"]]
        theirs = transformers.AutoModelForTokenClassification
        if name == "bert":
            model = theirs.from_pretrained(run.path / "model", dtype=torch.float32).eval()
            ids = torch.tensor([opened.tokenizer.encode("Alice saw Dinah run")])
            with torch.no_grad():
                assert (model(input_ids=ids).logits - opened.network(ids).logits).abs().max() < 1e-4

    def test_choices_are_learnt(self, tmp_path):
        run = teach(
            pupil(tmp_path / "model", shaken=True),
            write_rows(tmp_path / "choices.jsonl", CHOICES),
            tmp_path / "run",
            task="prefer",
            data={"validation": [str(write_rows(tmp_path / "held.jsonl", CHOICES))], "test_fraction": 0.0},
            optimizer={"learning_rate": 1e-3},
            training={"steps": 12, "batch_size": 5},
        )
        scores = [row for row in run.metrics if "validation_loss" in row]
        assert run.metrics[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)  # it begins where its reference is
        assert scores[-1]["validation_loss"] < 0.3
        assert scores[-1]["accuracy"] == 1.0


WHO = (("Dinah", "B-CAT"), ("sister", "O"), ("cats", "B-CAT"))


class TestRows:
    def test_the_rows_held_out_depend_on_nothing_but_the_split_seed(self, tmp_path):
        model, rows = pupil(tmp_path / "model"), write_rows(tmp_path / "reviews.jsonl")
        shares = {"validation_fraction": 0.2, "test_fraction": 0.2}

        def parts(**changes):
            found = learn(model, rows, "classify", shares | changes.pop("data", {}), **changes)
            return {part: sorted(row.text for row in members) for part, members in found.rows.items()}

        assert parts(seed=1) == parts(seed=2)
        assert parts(data={"split_seed": 1}) != parts(data={"split_seed": 2})

    def test_copies_of_conversations_stay_together(self, tmp_path):
        rows = learn(pupil(tmp_path / "model"), write_rows(tmp_path / "c.jsonl", [{"messages": t} for t in TALKS * 4])).rows
        found = drawn(rows["train"], {}, {"validation": 0.34, "test": 0.34}, 0)
        said = {part: {str(row.messages) for row in members} for part, members in found.items()}
        assert [len(members) for members in found.values()] == [4, 4, 4]
        assert not said["train"] & said["validation"]
        assert not said["train"] & said["test"]

    def test_too_few_rows_to_hold_some_out(self, tmp_path):
        with pytest.raises(CorpusError) as caught:
            drawn([], {}, {"validation": 0.1}, 0)
        assert str(caught.value).startswith("0.1 of 0 rows leaves none for validation, or none to learn from; give more rows")

    def test_balanced_weights_are_those_of_scikit_learn(self):
        from sklearn.utils.class_weight import compute_class_weight

        from pellucid.text.examples import Example

        targets = [0, 0, 0, 1, 2, 2]
        found = balanced([Example(np.ones(2, np.int64), target) for target in targets], 3, "single")
        assert found.tolist() == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=targets).tolist())

    def test_long_test_rows_are_met_before_learning_begins(self, tmp_path, talks):
        long = [{"role": "user", "content": "Who? " * 60}, {"role": "assistant", "content": "Alice"}]
        test = write_rows(tmp_path / "test.jsonl", [{"messages": long}])
        with pytest.raises(CorpusError, match=r"^1 row has more than the 128 tokens that the model takes"):
            learn(pupil(tmp_path / "model"), talks, "instruct", {"validation_fraction": 0.0, "test": [str(test)]})

    @pytest.mark.parametrize(
        ("labels", "said"),
        [
            ([1e30 * n for n in range(8)], "go up to 7e+30 and differ by 2.29129e+30"),
            ([1e12 + n for n in range(8)], "go up to 1e+12 and differ by 2.29129"),
            ([1e-300 * n for n in range(8)], "go up to 7e-300 and differ by 0"),
        ],
    )
    def test_numbers_that_single_precision_cannot_tell_apart(self, tmp_path, labels, said):
        rows = write_rows(tmp_path / "n.jsonl", [{"text": f"a{n}", "label": value} for n, value in enumerate(labels)])
        with pytest.raises(CorpusError) as caught:
            learn(pupil(tmp_path / "model"), rows, "regress")
        assert str(caught.value) == (
            f"the numbers of column 'label' {said} (standard deviation), which single precision cannot work with; "
            "subtract a number from all of them, or divide them by one"
        )

    def test_a_batch_is_no_larger_than_the_data(self, tmp_path):
        found = learn(pupil(tmp_path / "model"), write_rows(tmp_path / "r.jsonl"), "classify", batch_size=10**9)
        assert (found.batches.batch_size, found.batches_per_epoch) == (len(REVIEWS), 1)


KINDS = {
    ("classify", "t5"): "a t5 model writes texts: teach it labels with --task seq2seq, the label as the target",
    ("tag", "bag-of-words"): "a bag of words knows no order, so it cannot tag words; use another model for --task tag",
    ("seq2seq", "qwen3"): "--task seq2seq is for an encoder-decoder such as T5; a qwen3 model learns with --task instruct",
    ("instruct", "t5"): "this t5 model has a head that writes no texts, so it cannot learn --task instruct; use --task seq2seq",
    ("prefer", "bert"): (
        "this bert model has a head that writes no texts, so it cannot learn --task prefer; use --task classify, --task tag "
        "or --task regress"
    ),
}


@pytest.mark.parametrize(("task", "name"), KINDS, ids=" ".join)
def test_a_task_that_a_network_cannot_learn(tmp_path, task, name):
    config: ModelConfig = open_model(pupil(tmp_path / "model", name)).network.config
    with pytest.raises(ConfigError) as caught:
        check_kind(task, config)
    assert str(caught.value) == KINDS[task, name]
