"""`pellucid finetune`: what a user types wrong is one sentence, exit code 2, and no folder; what is right makes a run."""

import dataclasses
import inspect
import json
import re

import pytest
from pupils import CHOICES, REVIEWS, TALKS, pupil, teach, write_rows
from tiny import write_corpus

from pellucid.cli_finetune import finetune
from pellucid.training.finetune_recipe import FinetuneRecipe

SETTINGS = ("--training.threads", 1, "--training.precision", "fp32")
ALL = ("--data.validation-fraction", 0, "--data.test-fraction", 0)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a model of each kind; nobody may change them."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("qwen3", "bert", "t5", "lstm", "bag-of-words", "gpt2"):
        pupil(folder / name, name)
    return folder


@pytest.fixture
def refused(cli, models, tmp_path):
    """The one sentence that a wrong command is answered with."""

    def call(*words, model="qwen3", rows=None, data=None, out=("--out", tmp_path / "run")):
        if data is None:
            data = write_rows(tmp_path / "data.jsonl", REVIEWS if rows is None else rows)
        source = models / model if (models / model).exists() else model
        given = ["finetune", source, "--data", data, *out, *words, *SETTINGS, "--quiet"]
        result = cli(*given)
        assert (result[0], result[1]) == (2, ""), result
        assert result[2].startswith("pellucid: ")
        assert result[2].count("\n") == 1
        assert "Traceback" not in result[2]
        assert not (tmp_path / "run").exists()
        assert not list(tmp_path.glob(".run*"))
        return result[2].removeprefix("pellucid: ").rstrip("\n").replace(str(tmp_path), "~").replace(str(models), "models")

    return call


def labelled(*labels):
    return [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]


def talk(*turns):
    return [{"messages": [{"role": role, "content": content} for role, content in turns]}]


LONG = [{"text": "long " * 50, "label": "x"}, {"text": "short", "label": "y"}]
ROWS = {  # rows, options, what is said
    "no label": (
        [{"text": "a", "label": "x"}, {"text": "b"}],
        (),
        "~/data.jsonl:2: no column 'label' (it has 'text'); correct or remove the row",
    ),
    "an empty label": (
        labelled("x", ""),
        (),
        "~/data.jsonl:2: the label is empty (column 'label'); give it one, or remove the row",
    ),
    "a label that is no number": (
        labelled(1.5, float("nan")),
        ("--task", "regress"),
        "~/data.jsonl:2: the label is NaN (column 'label'); give it one, or remove the row",
    ),
    "one class": (
        labelled(*"x" * 40),
        ALL,
        "all 40 rows to learn from have the label 'x'; there is nothing to learn: add rows of another",
    ),
    "one number": (
        labelled(*[1.5] * 40),
        (*ALL, "--task", "regress"),
        "all 40 rows to learn from have the number 1.5; there is nothing to learn",
    ),
    "too many labels": (
        labelled(*map(str, range(10_000))),
        (),
        "column 'label' has 10,000 distinct values in 10,000 rows, so it is probably not the label; name another with "
        "--label-column, or pass --max-labels 10000",
    ),
    "numbers for classes": (
        labelled(*[n + 0.5 for n in range(40)]),
        (),
        "column 'label' has 40 distinct numbers, such as 0.5; did you mean --task regress?",
    ),
    "an empty text": (
        [{"text": "", "label": "x"}, {"text": "b", "label": "y"}],
        (),
        "~/data.jsonl:1: the text is empty; give it text, or pass --on-empty drop",
    ),
    "a long text": (
        LONG,
        ALL,
        "1 text has more than the 128 tokens that the model takes, of 2 (the longest, ~/data.jsonl:1, has 250); pass --long "
        "cut to leave out what is beyond, or --long split to read such a text in parts",
    ),
    "a column that is not there": (
        REVIEWS,
        ("--label-column", "labal"),
        "~/data.jsonl has no column 'labal' (it has 'text', 'label'); did you mean 'label'?",
    ),
    "nobody answers": (
        talk(("user", "hi")),
        ("--task", "instruct"),
        "~/data.jsonl:1 has no turn of the assistant, so there is nothing to learn; add one, or remove it",
    ),
    "roles out of order": (
        talk(("assistant", "hi"), ("user", "hi")),
        ("--task", "instruct"),
        "~/data.jsonl:1, message 1: assistant at the beginning, where user must be; a conversation is: perhaps a system "
        "message, then the user and the assistant in turn, the assistant last",
    ),
    "nothing to learn": (
        talk(("user", "hi " * 99), ("assistant", "hi")),
        ("--task", "instruct", "--long", "cut", *ALL),
        "~/data.jsonl:1 has nothing of the assistant's to learn within its first 128 tokens; pass --long drop, or remove it",
    ),
    "rows for another task": (
        REVIEWS,
        ("--task", "tag"),
        "~/data.jsonl has no column that is known to be the spans (it has 'text', 'label'); name it with --label-column",
    ),
    "tags of other words": (
        [{"tokens": ["a", "b"], "tags": ["O"]}],
        ("--task", "tag"),
        "~/data.jsonl:1: 2 words, but 1 tags; give each word one",
    ),
    "a text that is a number": (
        [{"text": 7, "label": "x"}],
        (),
        "~/data.jsonl:1: field 'text' holds a number, not text; correct or remove the row",
    ),
    "a label that is an object": (
        [{"text": "a", "label": {"x": 1}}],
        (),
        "~/data.jsonl:1: the label holds an object (column 'label'); it must be a text or a number",
    ),
    "a label that moves the cursor": (labelled(*["a\nb", "c"] * 20), ALL, "labels must be names, not 'a\\nb'"),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows_that_cannot_be_learnt(refused, case):
    rows, words, said = ROWS[case]
    assert refused(*words, rows=rows) == said


OPTIONS = {
    ("--learning-rate", "1e30"): "options: optimizer.learning_rate = 1e+30 will not do: it must be less than or equal to 100",
    ("--learning-rate", "nan"): "options: optimizer.learning_rate = nan will not do: it must be a finite number",
    ("--learning-rate", "fast"): 'Invalid value for --learning-rate: unable to convert "fast" into float.',
    ("--lerning-rate", "1"): "Unknown option: --lerning-rate. Did you mean --learning-rate?",
    ("--seeds", 0): "--seeds is 0; it must be at least 1",
    ("--seeds", "-3"): "--seeds is -3; it must be at least 1",
    ("--epochs", 0): "options: training.epochs = 0.0 will not do: it must be greater than 0",
    ("--epochs", 2, "--steps", 3): "--epochs and --steps are both given; the length of a run is one of them",
    ("--steps", 3, "--training.steps", 4): "training.steps is given twice, by its short and by its dotted name; leave one out",
    ("--batch-size", 0): "options: training.batch_size = 0 will not do: it must be greater than or equal to 1",
    ("--task", "translate"): (
        'Invalid value "translate" for --task. Choose from: "classify", "tag", "regress", "continue", "instruct", "seq2seq", '
        '"prefer".'
    ),
    ("--task.beta", 0.2): "options: beta has no effect with task classify; leave it out",
    (
        "--task",
        "instruct",
        "--class-weights",
        "balanced",
    ): "options: class_weights has no effect with task instruct; leave it out",
    ("--task", "instruct", "--text-column", "x"): "data.text_column has no effect with task instruct; leave it out",
    ("--task", "prefer", "--split-column", "x"): "data.split_column has no effect with task prefer; leave it out",
    ("--task", "continue", "--long", "cut"): "data.long has no effect with task continue; leave it out",
    ("--task", "regress", "--max-labels", 9): "data.max_labels has no effect with task regress; leave it out",
    ("--task", "prefer", "--method.fresh"): (
        "method.fresh makes no sense with task prefer, which begins with a model's own answers; leave it out"
    ),
    ("--task", "instruct", "--method", "head"): (
        "method head needs a head for labels, which task instruct has not; use full or lora"
    ),
    ("--method.rank", 3, "--method", "full"): "options: rank has no effect with method full; leave it out",
    ("--method", "lora", "--method.freeze", 1): "options: freeze has no effect with method lora; leave it out",
    ("--method", "head", "--optimizer.name", "muon"): "optimizer.name has no effect with method head; leave it out",
    ("--method", "lora", "--method.targets", "q_proj"): (
        "no layer is called q_proj; those that take an adapter are attn.k, attn.output, attn.q, attn.v, mlp.down, mlp.gate, "
        "mlp.up, or all"
    ),
    ("--method.freeze", 9): "method.freeze is 9, but the model has 2 blocks; freeze fewer",
    ("--task.smoothing", 0.1, "--multi-separator", "|"): (
        "task.smoothing has no effect on texts that can have several labels; leave it out"
    ),
    ("--training.prompt", "Hi"): "training.prompt has no effect with task classify, which writes no text; leave it out",
    ("--training.context-length", 4096): (
        "training.context_length is 4,096, but the model reads at most 128 tokens; make it smaller"
    ),
    ("--data.validation-fraction", 0, "--patience", 2): (
        "training.patience has no effect without validation data; leave it out, or hold some out"
    ),
    ("--data.validation-fraction", 0, "--training.target-loss", 1): (
        "training.target_loss has no effect without validation data; leave it out, or hold some out"
    ),
    ("--training.device", "cuda"): None,
    ("--optimizer.momentum", 0.5): "options: momentum has no effect with adamw; leave it out",
    ("--recipe", "nothing.toml"): "nothing.toml does not exist; give --recipe the path of a TOML file",
    ("--resume",): "~/run holds no run to resume; leave out --resume to start one",
    ("--resume", "--force"): (
        "--resume and --force contradict each other: one goes on with the run, the other deletes it; leave one out"
    ),
}


@pytest.mark.parametrize("words", OPTIONS, ids=lambda words: " ".join(map(str, words)))
def test_options_that_make_no_sense(refused, monkeypatch, words):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # as on a machine without a GPU
    said = OPTIONS[words]
    if said is None:
        said = f"device 'cuda' was asked for, but torch {torch.__version__} sees no GPU; use --training.device cpu"
    assert refused(*words) == said


MODELS = {
    ("t5", "classify"): "a t5 model writes texts: teach it labels with --task seq2seq, the label as the target",
    ("bert", "instruct"): (
        "this bert model has a head that writes no texts, so it cannot learn --task instruct; use --task classify, "
        "--task tag or --task regress"
    ),
    ("qwen3", "seq2seq"): "--task seq2seq is for an encoder-decoder such as T5; a qwen3 model learns with --task instruct",
    ("bag-of-words", "tag"): "a bag of words knows no order, so it cannot tag words; use another model for --task tag",
    ("lstm", "classify", "--method", "lora"): (
        "this lstm network has no linear layers in its blocks that an adapter could change; use --method full or --method head"
    ),
    ("bag-of-words", "classify", "--task.pooling", "first"): (
        "task.pooling has no effect on a bag of words, which is a mean already; leave it out"
    ),
    ("bag-of-words", "classify", "--training.recompute"): (
        "training.recompute has no effect on a bag-of-words model; leave it out"
    ),
}


@pytest.mark.parametrize("words", MODELS, ids=" ".join)
def test_a_model_that_cannot_learn_this(refused, words):
    model, task, *rest = words
    assert refused("--task", task, *rest, model=model) == MODELS[words]


def test_an_encoder_without_a_mask_token_does_not_go_on(refused, tmp_path):
    corpus = write_corpus(tmp_path / "text")
    expected = "the model's tokenizer has no mask token such as [MASK], so an encoder cannot go on learning from text"
    assert refused("--task", "continue", model="bert", data=corpus) == expected


def test_a_prompt_that_leaves_no_room(refused, tmp_path):
    rows = [{"messages": each} for each in TALKS]
    expected = "training.prompt has 179 tokens, but the model's context is 128 and must hold the answer too; shorten it"
    assert refused("--task", "instruct", "--training.prompt", "Hi" * 80, *ALL, rows=rows) == expected


class TestFiles:
    def test_no_data(self, cli, models, tmp_path):
        code, _, err = cli("finetune", models / "qwen3", "--out", tmp_path / "run", "--quiet")
        assert (code, err) == (2, "pellucid: no labelled data is given; name a file, a folder, a pattern or hf:NAME\n")

    def test_an_empty_file(self, refused, tmp_path):
        (tmp_path / "empty.csv").write_text("")
        expected = "~/empty.csv is empty (it has no rows); leave it out, or put labelled rows in it"
        assert refused(data=tmp_path / "empty.csv") == expected

    def test_a_file_of_text(self, refused, tmp_path):
        (tmp_path / "text.txt").write_text("hello\n")
        assert refused(data=tmp_path / "text.txt") == (
            "~/text.txt is not known to hold rows with labels; give a file that ends in .csv .tsv .jsonl .json .parquet, "
            "each also with .gz or .zst"
        )

    def test_a_label_that_only_the_test_has(self, refused, tmp_path):
        test = write_rows(tmp_path / "test.jsonl", [{"text": "u", "label": "unseen"}])
        assert refused("--test", test) == (
            "~/test.jsonl:1: no row to learn from has the label 'unseen', which this one in test has; correct it, or "
            "add some to train"
        )

    def test_a_run_inside_the_data(self, refused, tmp_path):
        (tmp_path / "rows").mkdir()
        write_rows(tmp_path / "rows" / "a.jsonl")
        inside = tmp_path / "rows" / "run"
        expected = "~/rows/run lies inside ~/rows, all of which is read as data; choose another --out"
        assert refused("--out", inside, data=tmp_path / "rows", out=()) == expected
        assert not inside.exists()

    def test_a_model_that_is_not_there(self, refused, tmp_path):
        (tmp_path / "empty").mkdir()
        assert refused(model=str(tmp_path / "empty")) == "~/empty is not a model folder: it has no config.json"

    def test_an_adapter_is_merged_first(self, refused, models, tmp_path):
        rows = write_rows(tmp_path / "first.jsonl")
        run = teach(
            models / "qwen3",
            rows,
            tmp_path / "first",
            method={"name": "lora"},
            data={"test_fraction": 0.0},
            training={"steps": 1},
        )
        assert refused(model=str(run.path)) == (
            "~/first is an adapter; merge it into its base first, with: pellucid adapter merge ~/first --out FOLDER"
        )

    @pytest.mark.parametrize(
        ("template", "said"),
        [
            (
                "{{ raise_exception('no') }}",
                "~/data.jsonl:1: the chat template refuses it (no); correct it, or use another template",
            ),
            (
                "{% for %}",
                "the chat template is not valid Jinja (line 1: Expected an expression, got 'end of statement block'); "
                "correct it, or remove it to use ChatML",
            ),
            (
                "{{ messages.__class__.__mro__ }}",
                "~/data.jsonl:1: the chat template reaches for what it must not (access to attribute '__class__' of 'list' "
                "object is unsafe); do not use this template",
            ),
        ],
        ids=["raises", "is no template", "reaches out"],
    )
    def test_a_template_that_misbehaves(self, refused, tmp_path, template, said):
        model = pupil(tmp_path / "model")
        settings = json.loads((model / "tokenizer_config.json").read_text())
        (model / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
        (model / "chat_template.jinja").unlink(missing_ok=True)
        rows = [{"messages": each} for each in TALKS]
        assert refused("--task", "instruct", *ALL, model=str(model), rows=rows) == said

    def test_several_seeds_do_not_go_into_a_single_run(self, cli, models, tmp_path):
        rows = write_rows(tmp_path / "data.jsonl")
        run = teach(models / "bag-of-words", rows, tmp_path / "one", data={"test_fraction": 0.0}, training={"steps": 1})
        code, _, err = cli(
            "finetune", models / "bag-of-words", "--data", rows, "--out", run.path, "--resume", "--seeds", 2, "--quiet"
        )
        expected = f"pellucid: {run.path} is a single run, so it cannot hold those of several seeds; choose another --out\n"
        assert (code, err) == (2, expected)


def test_a_run_says_what_it_found_and_what_to_do_next(cli, models, tmp_path):
    rows, out = write_rows(tmp_path / "data.jsonl"), tmp_path / "run"
    words = ["finetune", models / "bag-of-words", "--data", rows, "--out", out, "--steps", 3, *SETTINGS, "--quiet"]
    code, said, err = cli(*words)
    assert (code, err) == (0, "")
    assert "accuracy" in said
    assert f"pellucid predict {out} --data FILE --out FILE" in said
    code, said, _ = cli(*words, "--force", "--json")
    assert code == 0
    assert json.loads(said)["run"] == str(out)
    again = cli("finetune", models / "bag-of-words", "--out", out, "--resume", "--quiet", "--json")
    assert (again[0], json.loads(again[1])) == (0, json.loads(said))


def test_seeds_tell_the_spread_on_the_same_rows(cli, models, tmp_path):
    rows, out = write_rows(tmp_path / "data.jsonl"), tmp_path / "runs"
    words = [
        "finetune",
        models / "bag-of-words",
        "--data",
        rows,
        "--out",
        out,
        "--steps",
        2,
        "--seeds",
        2,
        *SETTINGS,
        "--quiet",
    ]
    code, said, err = cli(*words, "--json")
    assert code == 0, err
    found = json.loads(said)
    assert [path.rpartition("/")[2] for path in found["runs"]] == ["seed-0", "seed-1"]
    assert found["metrics"]
    assert all(len(figure["runs"]) == 2 for system in found["metrics"].values() for figure in system.values())
    prints = [json.loads((out / name / "run.json").read_text()) for name in ("seed-0", "seed-1")]
    assert prints[0]["fingerprint"] == prints[1]["fingerprint"]  # of the rows in each part
    assert [info["asked"]["training"]["seed"] for info in prints] == [0, 1]


def test_a_run_that_prefers(cli, models, tmp_path):
    rows = write_rows(tmp_path / "data.jsonl", CHOICES * 2)
    words = ["finetune", models / "qwen3", "--task", "prefer", "--data", rows, "--out", tmp_path / "run", "--steps", 1, *ALL]
    code, said, err = cli(*words, *SETTINGS, "--quiet")
    assert code == 0, err
    assert "pellucid generate" in said


def columns(line):
    """What stands side by side in a line of help: names, explanation."""
    return re.split(r"\s{2,}", line.strip("│* "))


class TestHelp:
    def test_every_option_is_explained(self, cli, monkeypatch):
        monkeypatch.setenv("COLUMNS", "200")
        code, out, _ = cli("finetune", "--help")
        assert code == 0
        assert inspect.getdoc(finetune).splitlines()[0] in out
        for name, parameter in inspect.signature(finetune).parameters.items():
            if dataclasses.is_dataclass(parameter.default) or isinstance(parameter.default, FinetuneRecipe):
                continue
            shown = f"--{name.replace('_', '-')}" if parameter.kind is parameter.KEYWORD_ONLY else name.upper()
            [line] = [line for line in out.splitlines() if line.startswith("│") and shown in columns(line)[0].split()]
            assert len(columns(line)[-1]) > 8, f"{shown} is not explained"

    def test_every_field_is_explained(self, cli, monkeypatch):
        monkeypatch.setenv("COLUMNS", "250")
        out = cli("finetune", "--help")[1]
        for name, info in FinetuneRecipe.model_fields.items():
            for field, about in info.annotation.model_fields.items():
                assert f"--{name}.{field.replace('_', '-')}" in out
                assert about.description.replace("`", "").split(";")[0][:40] in out
