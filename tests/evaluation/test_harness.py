"""lm-evaluation-harness asks our network and transformers' the same questions, and must get the same answers."""

import random
import sys
from pathlib import Path

import lm_eval
import pytest
import tiny
import torch
from lm_eval.tasks import TaskManager

import pellucid
from pellucid.core.errors import ConfigError, CorpusError, MissingExtraError, ModelError
from pellucid.core.progress import Silent
from pellucid.evaluation import harness
from pellucid.evaluation.harness import run_tasks
from pellucid.evaluation.harness_model import adapter
from pellucid.evaluation.likelihood import likelihoods
from pellucid.network.families import FAMILIES
from pellucid.text.tokenizer import Tokenizer

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {file}
output_type: {kind}
validation_split: train
doc_to_text: "{text}"
doc_to_target: {target}
{more}
"""
BLIMP = """
doc_to_choice: "{{[sentence_good, sentence_bad]}}"
num_fewshot: 0
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
ROLLING = """
metric_list:
  - metric: bits_per_byte
"""
ANSWERS = """
generation_kwargs:
  until: ["."]
  max_gen_toks: 12
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


def write_task(folder, name, file, *, kind="multiple_choice", text="", target=0, more=BLIMP):
    """A task file, as lm-eval's own of BLiMP, that reads a local file."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, file=file, kind=kind, text=text, target=target, more=more))
    return folder


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture(scope="module")
def index():
    """A few of lm-eval's own tasks: to list all thousands of them takes ten seconds."""
    folder = Path(lm_eval.tasks.__file__).parent
    return TaskManager(include_defaults=False, include_path=[folder / name for name in ("blimp", "hellaswag", "humaneval")])


@pytest.fixture
def indexed(index, monkeypatch):
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **options: index)


@pytest.fixture(scope="module")
def stories(data, tmp_path_factory):
    """stories260K, and lm-eval's own backend on the same weights; nobody may change them."""
    from lm_eval.models.huggingface import HFLM

    model = pellucid.load(data / "weights/stories260K/stories260K.bin")
    folder = tmp_path_factory.mktemp("stories") / "hf"
    pellucid.convert(data / "weights/stories260K/stories260K.bin", folder, to="hf")
    theirs = HFLM(pretrained=str(folder), backend="causal", dtype="float32", device="cpu", batch_size=4)
    return model, theirs


def ask(model, **options):
    settings = {"ends": frozenset(), "batch_tokens": 1000, "progress": Silent()} | options
    return adapter(model.network, model.tokenizer, **settings)


def requests(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=given, idx=n) for n, given in enumerate(arguments)]


PAIRS = [
    ("Once upon a time", ", there was a little girl"),
    ("", "Once upon a time"),
    ("Lily said ", "hello"),
    ("Lily said   ", "hello"),
    ("Tom was", " happy"),
    ("Tom was", " sad"),
    ("Tom was", " x"),
    ("<s>Tom was", " happy"),
    ("<s>", "Tom"),
    ("naïve café 天地 😀", " 1234"),
    ("Lily and Tom went to the park. " * 100, "They saw a dog."),  # far beyond the context of 512
    ("a", " Lily and Tom went to the park." * 20),
]


def test_log_likelihoods_are_those_of_its_own_backend(stories):
    model, theirs = stories
    asked = ask(model)
    expected = theirs.loglikelihood(requests("loglikelihood", *PAIRS), disable_tqdm=True)
    found = asked.loglikelihood(requests("loglikelihood", *PAIRS))
    for pair, one, other in zip(PAIRS, found, expected, strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-3), pair
        assert one[1] == other[1], pair
    assert any(greedy for _, greedy in found)
    assert not all(greedy for _, greedy in found)
    assert asked.shortened == 1


def test_rolling_log_likelihoods_are_those_of_its_own_backend(stories):
    model, theirs = stories
    texts = [("Once upon a time",), ("",), ("Lily and Tom went to the park. " * 120,), ("x",)]
    expected = theirs.loglikelihood_rolling(requests("loglikelihood_rolling", *texts), disable_tqdm=True)
    found = ask(model).loglikelihood_rolling(requests("loglikelihood_rolling", *texts))
    assert found == pytest.approx(expected, abs=2e-3)


def test_answers_are_those_of_its_own_backend(stories):
    model, theirs = stories
    limits = {"until": ["."], "max_gen_toks": 20}
    prompts = ["Once upon a time", "Lily", "Tom was", "The big dog " * 300]
    asked = [(prompt, options) for options in (limits, {"max_gen_toks": 5}) for prompt in prompts]
    for given in asked:  # one by one: its backend fills up on the left, and cuts that with the rest
        expected = theirs.generate_until(requests("generate_until", given), disable_tqdm=True)
        assert ask(model).generate_until(requests("generate_until", given)) == expected, given
    together = ask(model).generate_until(requests("generate_until", *asked))
    assert together == [ask(model).generate_until(requests("generate_until", given))[0] for given in asked]
    assert all("." not in text for text in together[:4])


def test_an_answer_that_is_drawn_again_is_another(stories):
    drawn = ("Once upon", {"max_gen_toks": 12, "do_sample": True, "temperature": 1.0, "until": []})
    found = ask(stories[0]).generate_until(requests("generate_until", drawn, drawn, drawn))
    assert len(set(found)) == 3
    assert ask(stories[0]).generate_until(requests("generate_until", drawn, drawn, drawn)) == found


def test_accuracy_on_blimp_is_that_of_its_own_backend(stories, data, tmp_path):
    (model, theirs), paradigm = stories, "principle_A_c_command"
    folder = write_task(tmp_path / "tasks", f"local_{paradigm}", data / f"blimp/{paradigm}.jsonl")
    found = run_tasks(model.network, model.tokenizer, [f"local_{paradigm}"], limit=60, include_path=folder)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    judged = lm_eval.simple_evaluate(theirs, tasks=[f"local_{paradigm}"], limit=60, task_manager=manager)
    expected = judged["results"][f"local_{paradigm}"]
    [score] = found.scores
    assert (score.task, score.metric, score.samples, score.shots) == (f"local_{paradigm}", "acc", 60, 0)
    assert score.value == expected["acc,none"]
    assert score.stderr == pytest.approx(expected["acc_stderr,none"])
    assert 0 < score.value < 1


def test_every_kind_of_task_runs(stories, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"q": "Once upon a", "a": " time"}\n{"q": "Tom was very", "a": " happy"}\n' * 3)
    file, folder = tmp_path / "rows.jsonl", tmp_path / "tasks"
    write_task(folder, "local_answers", file, kind="generate_until", text="{{q}}", target='"{{a}}"', more=ANSWERS)
    write_task(folder, "local_rolling", file, kind="loglikelihood_rolling", target='"{{q}}"', more=ROLLING)
    model, state = stories[0], random.getstate()
    found = run_tasks(
        model.network, model.tokenizer, ["local_answers", "local_rolling"], include_path=folder, limit=4, num_fewshot=1
    )
    assert {(score.task, score.metric) for score in found.scores} == {
        ("local_answers", "exact_match"),
        ("local_rolling", "bits_per_byte"),
    }
    assert {score.shots for score in found.scores} == {1}
    assert {score.samples for score in found.scores} == {4}
    assert random.getstate() == state  # nobody else's dice are thrown


def test_equal_inputs_are_read_once():
    network = tiny.randomised()
    read = []
    network.embedding.register_forward_hook(lambda module, args, out: read.append(tuple(args[0].shape)))
    choices = [([1, 2, 3], [choice]) for choice in range(10, 14)]
    found = likelihoods(network, [*choices, ([1, 2, 3, 10], [5, 6])])
    assert sum(rows for rows, _ in read) == 2
    apart = [likelihoods(network, [pair])[0] for pair in [*choices, ([1, 2, 3, 10], [5, 6])]]
    for one, other in zip(found, apart, strict=True):
        assert one.logprob == pytest.approx(other.logprob, rel=1e-5)
        assert one.greedy == other.greedy
    with torch.no_grad():
        logprobs = network(torch.tensor([[1, 2, 3]])).logits[0, -1].log_softmax(dim=-1)
    assert [one.logprob for one in found[:4]] == pytest.approx(logprobs[10:14].tolist(), rel=1e-5)


TOKENIZER = Tokenizer.train_chars(tiny.DOCUMENTS)
SHAPE = {"vocab_size": TOKENIZER.vocab_size, "context_length": 64, "d_model": 24, "layers": 2}
MODEL = pellucid.Model(tiny.randomised(FAMILIES["lstm"].new(**SHAPE)), TOKENIZER)


def message(error, tasks, model=MODEL, **options):
    with pytest.raises(error) as caught:
        run_tasks(model.network, model.tokenizer, tasks, **options)
    return str(caught.value)


def test_an_lstm_is_asked_too():
    found = ask(MODEL).loglikelihood(requests("loglikelihood", ("Alice", " was"), ("Alice", " ran")))
    ids = TOKENIZER.encode("Alice was")
    with torch.no_grad():
        logprobs = MODEL.network(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
    expected = sum(float(logprobs[at - 1, ids[at]]) for at in range(5, 9))
    assert found[0][0] == pytest.approx(expected, rel=1e-5)


class TestRefusals:
    def test_without_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "lm_eval", None)
        expected = "evaluating on tasks needs the extra `eval`, which is not installed; run: pip install 'pellucid[eval]'"
        assert message(MissingExtraError, ["blimp"]) == expected

    def test_a_task_that_there_is_not(self, indexed):
        text = message(ConfigError, ["helaswag"])
        assert text.startswith("lm-eval has no task 'helaswag'; did you mean ")
        assert "hellaswag" in text
        assert message(ConfigError, ["zzzz*qqqq"]) == "lm-eval has no task 'zzzz*qqqq'; `lm-eval ls tasks` lists them"

    def test_no_task(self):
        assert message(ConfigError, []) == "no task was given; name one of lm-eval's, such as --tasks blimp"

    def test_data_that_cannot_be_fetched(self, indexed, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        text = message(CorpusError, ["blimp_adjunct_island"])
        assert text.startswith("the data of task blimp_adjunct_island cannot be fetched (")
        assert text.endswith("describe local files in a task file of your own and give its folder: --include-path FOLDER")

    def test_local_data_that_is_not_there(self, tmp_path):
        folder = write_task(tmp_path / "tasks", "local_gone", tmp_path / "gone.jsonl")
        assert message(CorpusError, ["local_gone"], include_path=folder).startswith("the data of task local_gone cannot be")

    def test_a_task_that_runs_what_the_model_writes(self, indexed):
        text = message(ConfigError, ["humaneval"])
        assert text == "task humaneval runs code that the model writes, which is never done here; leave it out"

    def test_code_beside_data_does_not_run(self, tmp_path):
        (tmp_path / "set").mkdir()
        proof = tmp_path / "ran"
        (tmp_path / "set/set.py").write_text(f"open({str(proof)!r}, 'w').close()\n")
        folder = write_task(tmp_path / "tasks", "local_code", "unused.jsonl")
        file = folder / "local_code.yaml"
        file.write_text(
            file.read_text()
            .replace("dataset_path: json", f"dataset_path: {tmp_path / 'set/set.py'}")
            .replace("  data_files: unused.jsonl", "  trust_remote_code: true")
        )
        text = message((ConfigError, CorpusError), ["local_code"], include_path=folder)
        assert "local_code" in text
        assert not proof.exists()

    def test_a_folder_without_task_files(self, tmp_path):
        for folder in (tmp_path, tmp_path / "gone"):
            text = message(ConfigError, ["blimp"], include_path=folder)
            assert text == f"{folder} holds no task files (.yaml); give --include-path a folder of lm-eval's task files"

    def test_a_task_file_that_makes_no_sense(self, tmp_path):
        (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
        more = BLIMP.replace("metric: acc", "metric: no_such_metric_anywhere")
        folder = write_task(tmp_path / "tasks", "local_bad", tmp_path / "rows.jsonl", more=more)
        assert "local_bad" in message((ConfigError, CorpusError), ["local_bad"], include_path=folder)

    def test_a_task_that_is_asked_for_twice(self, tmp_path, monkeypatch):
        monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **options: TaskManager(**options | {"include_defaults": False}))
        (tmp_path / "rows.jsonl").write_text('{"sentence_good": "Alice was", "sentence_bad": "was Alice"}\n')
        folder = write_task(tmp_path / "tasks", "local_one", tmp_path / "rows.jsonl", more=BLIMP + "\ntag: local_tag\n")
        text = message(ConfigError, ["local_one", "local_tag"], include_path=folder)
        assert text == "task local_one is asked for twice, by local_one and by local_tag; leave one of them out"
        assert run_tasks(MODEL.network, TOKENIZER, ["local_tag", "local_tag"], include_path=folder).scores[0].samples == 1

    def test_examples_for_a_task_that_has_none(self, tmp_path):
        (tmp_path / "rows.jsonl").write_text('{"sentence_good": "Alice was", "sentence_bad": "was Alice"}\n')
        folder = write_task(tmp_path / "tasks", "local_one", tmp_path / "rows.jsonl")
        text = message(ConfigError, ["local_one"], include_path=folder, num_fewshot=3)
        assert text == "num_fewshot 3 has no effect on local_one, which has no examples; leave it out"

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"limit": 0}, "limit must be at least 1, not 0"),
            ({"num_fewshot": -1}, "num_fewshot must be at least 0, not -1"),
            ({"batch_tokens": 0}, "batch_tokens must be at least 1, not 0"),
        ],
    )
    def test_numbers_that_make_no_sense(self, options, expected):
        assert message(ConfigError, ["blimp"], **options) == expected

    def test_masked_models_and_those_that_answer(self):
        shape = SHAPE | {"heads": 2, "kv_heads": 2, "d_head": 12, "d_mlp": 40}
        bert = pellucid.Model(tiny.randomised(FAMILIES["bert"].new(**shape)), TOKENIZER)
        assert message(ModelError, ["blimp"], bert).startswith("this bert model does not continue texts")
        t5 = pellucid.Model(tiny.randomised(FAMILIES["t5"].new(**shape, decoder_layers=1)), TOKENIZER)
        assert message(ModelError, ["blimp"], t5).startswith("this t5 model answers a text instead of continuing it")

    def test_answers_that_exceed_the_context(self):
        with pytest.raises(ModelError) as caught:
            ask(MODEL).generate_until(requests("generate_until", ("Alice", {"max_gen_toks": 64})))
        assert str(caught.value) == (
            "a task asks for answers of 64 tokens, which with its questions exceed the model's context of 64; "
            "leave that task out, or evaluate a model with a longer context"
        )

    def test_a_continuation_that_exceeds_the_context(self):
        with pytest.raises(ModelError) as caught:
            ask(MODEL).loglikelihood(requests("loglikelihood", ("Alice", " was" * 30)))
        assert str(caught.value) == (
            "a continuation of 120 tokens exceeds the model's context of 64; evaluate a model with a longer one"
        )

    def test_a_setting_of_generation_that_is_not_known(self):
        with pytest.raises(ConfigError, match=r"^a task asks generation for num_beams, which there is not here; leave it out$"):
            ask(MODEL).generate_until(requests("generate_until", ("Alice", {"max_gen_toks": 4, "num_beams": 3})))


def test_groups_are_taken_apart_before_anything_is_loaded(monkeypatch):
    class Entry:
        def __init__(self, kind, cfg=None, tags=()):
            self.kind, self.cfg, self.tags = type("Kind", (), {"name": kind}), cfg, set(tags)

    index = {
        "a": Entry("TASK"),
        "b": Entry("TASK"),
        "c": Entry("PY_TASK"),
        "tag": Entry("TAG", tags=["a"]),
        "inner": Entry("GROUP", {"group": "inner", "task": ["b", {"task": "c", "alias": "C"}]}),
        "outer": Entry("GROUP", {"task": ["tag", {"group": "x", "task": ["inner", {"task": "gone"}]}]}),
    }
    assert harness.members(index, "outer") == {"a", "b", "c"}
    assert harness.members(index, "inner") == {"b", "c"}
