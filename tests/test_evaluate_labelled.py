"""Grades of classifiers and taggers on labelled rows: of independent counting, with places for what is wrong."""

import json

import labellers
import numpy as np
import pytest
from labellers import LABELS, TEXTS
from sklearn.metrics import accuracy_score, f1_score, r2_score

import pellucid
from pellucid.core.errors import ConfigError, CorpusError
from pellucid.evaluation.predict import keep_temperature
from pellucid.text.tabular import Records, given

TRUTH = ["perhaps", "yes", "no", "perhaps", "perhaps", "no", "yes", "perhaps"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return labellers.saved(tmp_path_factory.mktemp("models") / "single")


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps({"text": t, "label": label}) + "\n" for t, label in zip(TEXTS, TRUTH, strict=True)))
    return path


@pytest.fixture
def refused(cli, model):
    def call(*words):
        code, out, err = cli("evaluate", model, *words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        return err.removeprefix("pellucid: ").rstrip("\n")

    return call


def value(grades, metric):
    return grades.metrics["model"][metric].value


def test_figures_are_those_of_scikit_learn(model, rows):
    grades = pellucid.evaluate(model, rows)
    said = [one.label for one in pellucid.load(model).predict(TEXTS)]
    assert value(grades, "accuracy") == pytest.approx(accuracy_score(TRUTH, said))
    assert value(grades, "macro_f1") == pytest.approx(f1_score(TRUTH, said, average="macro", zero_division=0, labels=LABELS))
    assert (grades.rows, grades.labels, grades.name) == (8, LABELS, str(model))
    assert list(grades.metrics) == ["model"]


def test_several_labels_and_numbers(tmp_path):
    several = labellers.labeller(problem="multi")
    truth = [["no", "yes"], [], ["perhaps"], ["yes"], ["yes", "perhaps"], ["no"], [], ["perhaps"]]
    grades = pellucid.evaluate(several, given(TEXTS, truth))
    said = [one.labels for one in several.predict(TEXTS)]
    flags = [np.array([[label in row for label in LABELS] for row in rows]) for rows in (truth, said)]
    assert value(grades, "micro_f1") == pytest.approx(f1_score(*flags, average="micro"))
    number = labellers.labeller(problem="regression", labels=("value",))
    grades = pellucid.evaluate(number, given(TEXTS, [float(len(text)) for text in TEXTS]))
    assert value(grades, "r2") == pytest.approx(
        r2_score([len(text) for text in TEXTS], [one.value for one in number.predict(TEXTS)])
    )


def test_tags_of_words():
    tagger = labellers.labeller(head="tag", labels=("O", "B-who", "I-who"))
    data = Records(
        [{"tokens": ["White", "Rabbit", "ran"], "tags": ["B-who", "I-who", "O"]}, {"tokens": ["Alice"], "tags": ["O"]}]
    )
    grades = pellucid.evaluate(tagger, data)
    assert (grades.task, grades.rows) == ("tag", 2)
    assert 0 <= value(grades, "token_accuracy") <= 1
    strange = Records([{"tokens": ["Alice"], "tags": ["B-whom"]}])
    with pytest.raises(CorpusError, match=r"row 1: the label 'B-whom' is none of the model's 3 \(O, B-who, I-who\)"):
        pellucid.evaluate(tagger, strange)


def test_floors_stand_beside_only_where_rows_to_teach_them_are_given(cli, model, rows):
    code, out, err = cli("evaluate", model, "--data", rows, "--quiet")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == (
        "With --train FILE they stand beside a majority guess and TF-IDF, which have to be taught from labelled rows."
    )
    code, out, err = cli("evaluate", model, "--data", rows, "--train", rows, "--quiet")
    assert (code, err) == (0, "")
    assert "majority class" in out
    assert "With --train" not in out


def test_the_page_and_the_json_hold_the_grades(cli, model, rows, tmp_path):
    page, found = tmp_path / "grades.html", tmp_path / "grades.json"
    words = ("evaluate", model, "--data", rows, "--report", page, "--out", found, "--json", "--quiet")
    code, out, _ = cli(*words)
    assert code == 0
    assert json.loads(out) == json.loads(found.read_text())
    assert json.loads(out)["metrics"]["model"]["accuracy"]["value"] == value(pellucid.evaluate(model, rows), "accuracy")
    assert "<svg" in page.read_text()
    code, out, err = cli(*words)
    assert (code, err) == (2, f"pellucid: {found} exists already; pass --force to replace it, or choose another --out\n")
    assert cli(*words, "--force")[0] == 0


def test_probabilities_are_those_that_predict_gives(tmp_path, rows):
    folder = labellers.saved(tmp_path / "copy")
    plain = pellucid.evaluate(folder, rows)
    keep_temperature(folder, 3.0, 100)
    cooled = pellucid.evaluate(folder, rows)
    assert value(plain, "accuracy") == value(cooled, "accuracy")
    assert cooled.notes[-1].startswith("Probabilities are those at the temperature 3.00")
    said = [one.probabilities[label] for one, label in zip(pellucid.load(folder).predict(TEXTS), TRUTH, strict=True)]
    assert cooled.calibration.before["nll"].value == pytest.approx(-np.log(said).mean(), rel=1e-5)


def test_a_label_that_the_model_does_not_know_is_named_with_its_place(refused, rows):
    with rows.open("a") as file:
        file.write(json.dumps({"text": "x", "label": "never"}) + "\n")
    assert refused("--data", rows, "--quiet") == (
        f"{rows}:9: the label 'never' is none of the model's 3 (no, yes, perhaps); correct it, or leave the row out"
    )


BAD = [
    (["--text-column", "body"], "{rows} has no column 'body' (it has 'text', 'label'); name one of these with --text-column"),
    (["--label-column", "text"], "column 'text' cannot be both the text and the label; name the other with --label-column"),
    (["--stride", 3], "stride has no effect on a classifier or a tagger, which is evaluated on labelled data; leave it out"),
    (
        ["--text-field", "text"],
        "text_field has no effect on a classifier or a tagger, which is evaluated on labelled data; leave",
    ),
    (["--multi-separator", ","], "{rows}:1: the row has a list of labels, but the model gives each text one; give it one"),
    (["--report", "grades.pdf"], "grades.pdf is to be a page; let --report end in .html"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_what_makes_no_sense_is_refused(refused, rows, words, message):
    assert refused("--data", rows, "--quiet", *words).startswith(message.format(rows=rows))


def test_options_of_labelled_data_have_no_effect_on_a_text(tmp_path):
    import tiny

    from pellucid.api import Model

    words = labellers.tokenizer()
    network = tiny.randomised(tiny.config(words.vocab_size))
    with pytest.raises(ConfigError, match=r"^label_column has no effect on a model without a head for labels; leave it out$"):
        pellucid.evaluate(Model(network, words), ["a"], label_column="x")
    with pytest.raises(ConfigError, match=r"^a classifier is evaluated on labelled data; give files, or rows"):
        pellucid.evaluate(labellers.labeller(), iter(["a"]))
