"""`pellucid predict`: every row where it was, with what a model says of it; and what cannot be read, in one sentence."""

import csv
import io
import json
import sys

import labellers
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from labellers import LABELS, LONG, TEXTS

from pellucid.evaluation.predict import keep_temperature, predict_texts
from pellucid.evaluation.prediction_files import predict_file
from pellucid.loading import open_model
from pellucid.text.tabular import given as in_memory

ONE = ["--threads", "1", "--precision", "fp32", "--quiet"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One of each kind; nobody may change them."""
    folder = tmp_path_factory.mktemp("models")
    labellers.saved(folder / "single")
    labellers.saved(folder / "multi", problem="multi")
    labellers.saved(folder / "number", problem="regression", labels=("value",))
    labellers.saved(folder / "tags", head="tag", labels=("O", "B-who", "I-who"))
    return folder


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "in.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(TEXTS))
    return path


@pytest.fixture
def predict(cli, models):
    def call(model, *words):
        code, out, err = cli("predict", models / model, *words, *ONE)
        assert (code, err) == (0, "")
        return out

    return call


@pytest.fixture
def refused(cli, models):
    def call(model, *words):
        code, out, err = cli("predict", models / model, *words, *ONE)
        assert (code, out, err.count("\n")) == (2, "", 1)
        return err.removeprefix("pellucid: ").rstrip("\n")

    return call


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def in_memory_too(folder, texts=TEXTS):
    model = open_model(folder)
    return predict_texts(model.network.eval(), model.tokenizer, texts)


def read_back(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    text = path.read_text()
    if path.suffix == ".jsonl":
        return lines(text)
    return list(csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix == ".tsv" else ","))


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_every_form_holds_the_rows_in_their_order_and_what_the_model_says(predict, models, rows, tmp_path, ending):
    out = tmp_path / f"out.{ending}"
    said = predict("single", "--data", rows, "--out", out)
    assert said.splitlines() == ["rows        8", "added       label, probability", f"written to  {out}"]
    found, expected = read_back(out), in_memory_too(models / "single")
    assert [(row["id"], row["text"], row["label"]) for row in found] == [
        (str(number), text, one.label) for number, (text, one) in enumerate(zip(TEXTS, expected, strict=True))
    ]
    assert [float(row["probability"]) for row in found] == pytest.approx([one.probability for one in expected], abs=1e-6)


def test_a_column_for_each_label(predict, models, rows):
    found = lines(predict("single", "--data", rows, "--probabilities"))
    for row, one in zip(found, in_memory_too(models / "single"), strict=True):
        assert [row[f"probability_{label}"] for label in LABELS] == pytest.approx(list(one.probabilities.values()), abs=1e-6)
        assert list(row) == ["id", "text", "label", "probability", *(f"probability_{label}" for label in LABELS)]


def test_several_labels_numbers_and_tags(predict, models, rows, tmp_path):
    for row, one in zip(lines(predict("multi", "--data", rows)), in_memory_too(models / "multi"), strict=True):
        assert tuple(row["labels"]) == one.labels
        assert row["probabilities"] == pytest.approx([one.probabilities[label] for label in one.labels], abs=1e-6)
    predict("multi", "--data", rows, "--out", tmp_path / "multi.csv")
    assert all(isinstance(json.loads(row["labels"]), list) for row in read_back(tmp_path / "multi.csv"))
    for row, one in zip(lines(predict("number", "--data", rows)), in_memory_too(models / "number"), strict=True):
        assert row["value"] == pytest.approx(one.value, rel=1e-6)
    for row in lines(predict("tags", "--data", rows)):
        assert len(row["words"]) == len(row["tags"])
        assert all(row["text"][span["start"] : span["end"]] == span["text"] for span in row["spans"])


def test_words_that_are_given_keep_their_tags_beside_them(predict, tmp_path):
    data = tmp_path / "in.jsonl"
    data.write_text(json.dumps({"tokens": ["White", "Rabbit"], "tags": ["O", "O"]}) + "\n")
    [row] = lines(predict("tags", "--data", data))
    assert row["tokens"] == row["predicted_words"] == ["White", "Rabbit"]
    assert (row["tags"], len(row["predicted_tags"])) == (["O", "O"], 2)


def test_columns_of_the_same_name_are_kept_and_the_new_ones_named_otherwise(predict, refused, tmp_path):
    data = tmp_path / "in.csv"
    data.write_text("text,label\na cat,animal\n")
    [row] = lines(predict("single", "--data", data))
    assert list(row) == ["text", "label", "predicted_label", "predicted_probability"]
    assert row["label"] == "animal"
    data.write_text("text,label,predicted_label\na cat,animal,x\n")
    assert (
        refused("single", "--data", data) == "the rows have a column 'predicted_label', as their predictions would; rename it"
    )


def test_a_temperature_changes_probabilities_but_no_label(predict, refused, models, rows, tmp_path):
    labellers.saved(tmp_path / "copy")
    keep_temperature(tmp_path / "copy", 4.0, 100)
    plain, hot = (lines(predict("single", "--data", rows, *more)) for more in ([], ["--temperature", 4]))
    left = lines(predict(tmp_path / "copy", "--data", rows))
    assert [row["label"] for row in plain] == [row["label"] for row in hot]
    assert all(a["probability"] > b["probability"] for a, b in zip(plain, hot, strict=True))
    assert left == hot
    assert lines(predict(tmp_path / "copy", "--data", rows, "--temperature", 1)) == plain
    assert refused("single", "--data", rows, "--temperature", 0) == "the temperature must lie between 0.05 and 20.0, not 0.0"
    assert refused("number", "--data", rows, "--temperature", 2) == (
        "the temperature has no effect on a model that gives no probabilities; leave it out"
    )
    (tmp_path / "copy" / "calibration.json").write_text('{"temperature": "hot"}')
    assert refused(tmp_path / "copy", "--data", rows) == (
        f"{tmp_path / 'copy' / 'calibration.json'}: the temperature 'hot' is no number between 0.05 and 20.0; correct it, or "
        "delete the file"
    )


@pytest.mark.parametrize(
    ("text", "count"), [("a cat\nAlice\n", 2), ('{"text": "a cat", "n": 1}\n{"text": "Alice", "n": 2}\n', 2)]
)
def test_standard_input_is_a_text_or_an_object_a_line(predict, monkeypatch, text, count):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    found = lines(predict("single", "--data", "-", "--out", "-"))
    assert [row["text"] for row in found] == ["a cat", "Alice"][:count]
    assert all(row["label"] in LABELS for row in found)


def test_an_empty_text_is_an_error_or_keeps_its_place(predict, refused, tmp_path):
    data, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in ["a cat", " \n", None, "Alice"]))
    assert refused("single", "--data", data, "--out", out) == (
        f"{data}:2: the text is empty, as is 1 other nearby; give it text, or pass --on-empty skip"
    )
    assert not out.exists()
    for model in ("single", "multi", "number", "tags"):
        said = json.loads(predict(model, "--data", data, "--out", out, "--on-empty", "skip", "--json", "--force"))
        assert (said["rows"], said["empty"], said["out"]) == (4, 2, str(out))
        found = read_back(out)
        assert [row["text"] for row in found] == ["a cat", " \n", None, "Alice"]
        assert [all(row[name] is None for name in said["columns"]) for row in found] == [False, True, True, False]


def test_long_texts_are_an_error_or_are_cut_or_read_in_parts(predict, refused, models, tmp_path):
    data, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in ["a cat", LONG]))
    assert refused("single", "--data", data, "--out", out) == (
        f"1 text has more than the 64 tokens that the model takes, of 2 (the longest, {data}:2, has {len(LONG)}); pass --long "
        "cut to leave out what is beyond, or --long split to read such a text in parts"
    )
    assert "cut         1" in predict("single", "--data", data, "--out", out, "--long", "cut")
    assert read_back(out)[1]["label"] == in_memory_too(models / "single", [LONG[:64]])[0].label
    assert "in parts    1" in predict("single", "--data", data, "--out", out, "--long", "split", "--force")


BAD = [
    (
        "a,b\n1,2\n",
        [],
        "{data} has no column that is known to be the text (it has 'a', 'b'); name it with --text-column, or if",
    ),
    (
        "text,b\nx,2\n",
        ["--text-column", "texts"],
        "{data} has no column 'texts' (it has 'text', 'b'); did you mean 'text'?, or",
    ),
    ("text,b\nx\n", [], "{data}:2: a row of 1 fields, where the first line names 2; correct it"),
    ("", [], "{data} is empty (it has no rows); leave it out, or put labelled rows in it"),
    ("text\n", [], "{data} is empty (it has no rows); leave it out, or put labelled rows in it"),
    ("text\na cat\n", ["--probabilities", "--temperature", "nan"], "the temperature must lie between 0.05 and 20.0, not nan"),
    ("text\na cat\n", ["--batch-tokens", 0], "batches of 0 tokens from 2000 rows make no sense; give at least 1"),
    ("text\na cat\n", ["--device", "tpu"], "device 'tpu' is not known; choose auto, cpu or cuda"),
]


@pytest.mark.parametrize(("text", "words", "message"), BAD)
def test_what_cannot_be_read_is_one_sentence_and_nothing_is_written(refused, tmp_path, text, words, message):
    data, out = tmp_path / "in.csv", tmp_path / "out.csv"
    data.write_text(text)
    assert refused("single", "--data", data, "--out", out, *words).startswith(message.format(data=data))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv"]


def test_a_bad_row_at_the_end_leaves_the_old_file_as_it_was(refused, tmp_path):
    data, out = tmp_path / "in.csv", tmp_path / "out.csv"
    data.write_text("text,n\n" + "a cat,1\n" * 3000 + "a cat\n")
    out.write_text("old")
    assert refused("single", "--data", data, "--out", out, "--force").startswith(f"{data}:3002: a row of 1 fields")
    assert (out.read_text(), len(list(tmp_path.iterdir()))) == ("old", 2)


def test_files_that_cannot_be_written_are_refused_before_anything_is_read(refused, rows, tmp_path):
    taken = tmp_path / "taken.csv"
    taken.write_text("mine")
    assert refused("single", "--data", rows, "--out", taken) == (
        f"{taken} exists already; pass --force to replace it, or choose another --out"
    )
    assert taken.read_text() == "mine"
    assert refused("single", "--data", rows, "--out", tmp_path / "out.xlsx") == (
        f"{tmp_path / 'out.xlsx'} does not say in which form to write; let --out end in .csv, .tsv, .jsonl, .parquet"
    )
    assert refused("tags", "--data", rows, "--out", tmp_path / "out.csv") == (
        f"{tmp_path / 'out.csv'} cannot hold words and tags, which are lists; let --out end in .jsonl or .parquet"
    )
    (tmp_path / "folder.csv").mkdir()
    assert refused("single", "--data", rows, "--out", tmp_path / "folder.csv", "--force") == (
        f"{tmp_path / 'folder.csv'} exists already; choose another --out"
    )


def test_options_without_effect_are_refused(refused, rows):
    for word in ("--json", "--force"):
        assert refused("single", "--data", rows, word) == (
            f"{word} has no effect without --out FILE: the predictions are printed; leave it out"
        )
    assert refused("tags", "--data", rows, "--probabilities") == (
        "--probabilities has no effect on a model that gives none; leave it out"
    )


def test_a_language_model_is_told_how_to_become_a_classifier(cli, rows, tmp_path):
    from pellucid.api import Model
    from pellucid.network.families import FAMILIES

    words = labellers.tokenizer()
    network = labellers.randomised(FAMILIES["gpt2"].new(vocab_size=words.vocab_size, **labellers.SIZE))
    Model(network, words).save(tmp_path / "lm")
    code, out, err = cli("predict", tmp_path / "lm", "--data", rows)
    assert (code, out) == (2, "")
    assert err == (
        "pellucid: this gpt2 model has no head for labels, so it cannot classify; make it a classifier with: pellucid finetune "
        "MODEL --task classify --data FILE --out RUN\n"
    )


def test_rows_that_differ_fit_into_json_lines_only(refused, predict, tmp_path):
    data = tmp_path / "in.jsonl"
    data.write_text("".join(json.dumps({"text": "a cat"} | more) + "\n" for more in [{}] * 2000 + [{"late": 1}]))
    for form in ("csv", "parquet"):
        assert refused("single", "--data", data, "--out", tmp_path / f"out.{form}") == (
            "later rows have a column 'late', which the first have not; write to a .jsonl file"
        )
    predict("single", "--data", data, "--out", tmp_path / "out.jsonl")
    assert read_back(tmp_path / "out.jsonl")[-1]["late"] == 1
    data.write_text("".join(json.dumps({"text": "a cat", "n": n}) + "\n" for n in [*range(2000), "many"]))
    assert refused("single", "--data", data, "--out", tmp_path / "out.parquet").startswith(
        "the rows have no one type for each column ("
    )


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text("abc deAR", min_size=1, max_size=64).filter(str.strip), min_size=1, max_size=25),
    rows=st.integers(1, 30),
    batch_tokens=st.integers(1, 300),
)
def test_parts_and_batches_of_any_size_say_the_same_in_the_same_order(capsys, texts, rows, batch_tokens):
    model = labellers.labeller("bert")
    capsys.readouterr()
    options = {"rows": rows, "batch_tokens": batch_tokens}
    predict_file(model.network, model.tokenizer, in_memory(texts), None, **options)
    found = lines(capsys.readouterr().out)
    alone = [predict_texts(model.network, model.tokenizer, [text])[0] for text in texts]
    assert [row["text"] for row in found] == texts
    assert [row["probability"] for row in found] == pytest.approx([one.probability for one in alone], abs=1e-4)
