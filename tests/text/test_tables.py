"""Formats with rows: what they hold, which field is the text, and what is said about rows that are wrong."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.core.errors import CorpusError
from pellucid.text.corpus import Corpus
from pellucid.text.delimited import tab_separated

ROWS = [
    {"text": 'one, "quoted"\nand broken', "label": "a"},
    {"text": "two\ttabs", "label": "b"},
    {"text": "drei 世界", "label": "c"},
]
CSV = 'text,label\r\n"one, ""quoted""\nand broken",a\r\n"two\ttabs",b\r\ndrei 世界,c\r\n'


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def written(folder: Path, ending: str) -> Path:
    """`ROWS` in some format."""
    path = folder / f"rows{ending}"
    if ending.startswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet", row_group_size=2)
        data = (folder / "rows.parquet").read_bytes()
        (folder / "rows.parquet").unlink()
    else:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
        plain = {"jsonl": lines, "csv": CSV, "tsv": CSV.replace("\t", " ").replace(",", "\t").replace("one\t", "one,")}
        data = plain[ending.split(".")[1]].encode()
    if ending.endswith(".gz"):
        data = gzip.compress(data)
    if ending.endswith(".zst"):
        data = pa.compress(data, codec="zstd", asbytes=True)
    return put(path, data)


def message(path: Path | list[Path], **options) -> str:
    with pytest.raises(CorpusError) as caught:
        list(Corpus.open(path, **options))
    return str(caught.value)


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("format", [".jsonl", ".csv", ".parquet"])
def test_every_format_and_compression_gives_the_same_rows(tmp_path, format, compression):
    corpus = Corpus.open(written(tmp_path, format + compression))
    assert [(row.text, dict(row.fields)) for row in corpus.rows()] == [(row["text"], {"label": row["label"]}) for row in ROWS]
    assert [document.text for document in corpus] == [row["text"] for row in ROWS]
    assert [document.text for document in corpus] == [row["text"] for row in ROWS]  # a corpus is read more than once


def test_tab_separated_values(tmp_path):
    rows = [(row.text, row.fields["label"]) for row in Corpus.open(written(tmp_path, ".tsv")).rows()]
    assert rows == [('one, "quoted"\nand broken', "a"), ("two tabs", "b"), ("drei 世界", "c")]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('text\tlabel\n"Great" film\ta\nSo "so"\tb\n', [['"Great" film', "a"], ['So "so"', "b"]]),
        ('text\tlabel\n"Left open\ta\nmore\tb\n', [['"Left open', "a"], ["more", "b"]]),
        ('label\ttext\na\t"Left open\nb\tclosed"\n', [["a", '"Left open'], ["b", 'closed"']]),
        ('label\ttext\na\t"two\nlines"\nb\tnext\n', [["a", "two\nlines"], ["b", "next"]]),
        ('text\tlabel\n"two\n\nlines"\ta\n', [["two\n\nlines", "a"]]),
        ('text\tlabel\n"a ""word"""\tb\n', [['a "word"', "b"]]),
        ('text\tlabel\n"a\ttab"\tb\n', [["a\ttab", "b"]]),
    ],
    ids=["plain marks", "open mark", "open mark last", "line break last", "line breaks first", "doubled", "tab"],
)
def test_quotation_marks_in_tab_separated_values_are_read_both_ways(text, rows):
    assert [fields for _, fields in tab_separated(text.splitlines(keepends=True))][1:] == rows


@given(st.lists(st.lists(st.text(alphabet='ab" \n', max_size=6), min_size=2, max_size=2), min_size=1, max_size=6))
def test_what_csv_writes_with_tabs_is_read_back(rows):
    import csv
    import io

    file = io.StringIO()
    writer = csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerows([["text", "label"], *rows])
    read = [fields for _, fields in tab_separated(io.StringIO(file.getvalue(), newline="\n"))]
    assert read[1:] == rows


def test_large_fields_and_long_lines_are_read(tmp_path):
    text = "word " * 200_000
    assert [row.text for row in Corpus.open(put(tmp_path / "a.csv", f'text,n\n"{text}",1\n')).rows()] == [text]
    assert [row.text for row in Corpus.open(put(tmp_path / "a.jsonl", json.dumps({"text": text}))).rows()] == [text]


def test_a_long_row_is_cut_into_sections_that_add_up(tmp_path):
    text = "A sentence of some length. " * 2000
    corpus = Corpus.open(put(tmp_path / "a.jsonl", json.dumps({"text": text}) + '\n{"text": "short"}'))
    documents = list(corpus)
    assert [document.part for document in documents] == [*range(len(documents) - 1), 0]
    assert "".join(document.text for document in documents[:-1]) == text
    assert corpus.describe()["counts"] == {
        "sections": len(documents), "documents": 2, "empty": 0, "duplicates": 0, "replaced": 0,
    }  # fmt: skip


def test_the_only_field_that_holds_text_is_the_text(tmp_path):
    corpus = Corpus.open(put(tmp_path / "a.csv", "review,stars\ngood,5\nbad,1\n"))
    assert corpus.text_field == "review"
    assert Corpus.open(put(tmp_path / "a.jsonl", '{"id": 1, "body": "hello"}')).text_field == "body"
    table = pa.table({"n": [1], "said": pa.array(["hello"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "a.parquet")
    assert Corpus.open(tmp_path / "a.parquet").text_field == "said"


def test_a_field_named_text_is_the_text(tmp_path):
    assert Corpus.open(put(tmp_path / "a.csv", "source,text,label\nweb,hello,pos\n")).text_field == "text"


def test_several_fields_that_could_be_the_text_are_listed(tmp_path):
    path = put(tmp_path / "a.jsonl", '{"title": "a", "body": "b", "n": 1}')
    assert message(path) == f"{path} has several fields that hold text (it has 'title', 'body'); choose one with --text-field"
    assert [document.text for document in Corpus.open(path, text_field="body")] == ["b"]


def test_no_field_that_could_be_the_text(tmp_path):
    path = put(tmp_path / "a.csv", "x,y\n1,2\n")
    assert message(path) == f"{path} has no field that holds text (it has 'x', 'y'); name one with --text-field"


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_a_wrong_field_says_which_there_are(tmp_path, ending):
    path = written(tmp_path, ending)
    assert message(path, text_field="txt") == f"{path} has no field 'txt' (it has 'text', 'label'); did you mean 'text'?"
    assert message(path, text_field="review") == (
        f"{path} has no field 'review' (it has 'text', 'label'); name one of these with --text-field"
    )


def test_files_with_different_fields_are_named(tmp_path):
    a, b = put(tmp_path / "a.jsonl", '{"body": "x"}'), put(tmp_path / "b.jsonl", '{"content": "y"}')
    assert message([a, b]) == (
        f"{b} has no field 'body', which holds the text in {a} (it has 'content'); "
        "give every file the same field, or read them apart"
    )


def test_rows_with_different_fields_are_named(tmp_path):
    path = put(tmp_path / "a.jsonl", '{"text": "x"}\n\n{"body": "y", "n": 1}\n')
    assert message(path) == f"{path}:3: no field 'text' (it has 'body', 'n'); correct or remove the row, or pass --text-field"


@pytest.mark.parametrize(("value", "said"), [("3", "a number"), ("null", "null"), ("[]", "a list"), ("true", "true or false")])
def test_a_field_that_is_no_text_is_named(tmp_path, value, said):
    path = put(tmp_path / "a.jsonl", f'{{"text": "x"}}\n{{"text": {value}}}\n')
    assert message(path, text_field="text") == f"{path}:2: field 'text' holds {said}, not text; correct or remove the row"


def test_a_null_in_parquet_is_named(tmp_path):
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "a.parquet")
    assert message(tmp_path / "a.parquet") == (
        f"{tmp_path / 'a.parquet'}: row 2: field 'text' holds null, not text; correct or remove the row"
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "b"', "is not valid JSON (Expecting ',' delimiter, column 13); correct or remove the line"),
        ("plain text", "is not valid JSON (Expecting value, column 1); correct or remove the line"),
        ('"a text"', "holds a text, not an object with fields; correct or remove the line"),
        ("[1]", "holds a list, not an object with fields; correct or remove the line"),
        ("[" * 100_000, "is not valid JSON (maximum recursion depth exceeded"),
    ],
    ids=["cut", "no json", "string", "list", "deep"],
)
def test_a_bad_line_of_json_is_named(tmp_path, line, said):
    path = put(tmp_path / "a.jsonl", f'{{"text": "a"}}\n{line}\n')
    assert message(path).startswith(f"{path}:2 {said}")


def test_half_a_character_in_json(tmp_path):
    path = put(tmp_path / "a.jsonl", '{"text": "pair \\ud83d\\ude00"}\n{"text": "half \\ud83d"}\n')
    assert message(path) == (f"{path}:2: character 5 is half a character (U+D83D); correct it, or pass --on-bad-bytes replace")
    assert [d.text for d in Corpus.open(path, on_bad_bytes="replace")] == ["pair 😀", "half \ufffd"]


def test_bad_csv_is_named(tmp_path):
    path = put(tmp_path / "a.csv", "text,label\na,b\nc,d,e\n")
    assert message(path) == (
        f"{path}:3: a row of 3 fields, where the first line names 2; correct it "
        "(a text that holds a separator or a line break needs quotation marks around it)"
    )
    path = put(tmp_path / "b.csv", 'text\nx\n"left open\n')
    assert message(path) == (
        f"{path}:3 is not valid csv (unexpected end of data); look for a quotation mark that is not closed or not doubled"
    )
    path = put(tmp_path / "c.csv", "text,text\na,b\n")
    assert message(path) == f"{path}:1: two fields are named 'text'; rename one"


def test_bad_parquet_is_named(tmp_path):
    path = put(tmp_path / "a.parquet", b"PAR1 but not really PAR1")
    assert message(path).startswith(f"{path} is not a valid Parquet file (")
    assert message(path).endswith("); fetch or write it again")


@pytest.mark.parametrize("content", ["", "text,label\n", "\n\n"])
def test_a_table_without_rows_is_one_clear_sentence(tmp_path, content):
    path = put(tmp_path / "a.csv", content)
    assert message(path) == f"{path} is empty (it has no rows); leave it out, or put text in it"


def test_empty_tables_in_a_folder_are_passed_over(tmp_path):
    put(tmp_path / "a.csv", "text,label\n")
    put(tmp_path / "b.csv", "text,label\nhello,x\n")
    assert [document.text for document in Corpus.open(tmp_path)] == ["hello"]


def test_real_labelled_data(data):
    corpus = Corpus.open(data / "labelled" / "banking77" / "train.csv")
    rows = list(corpus.rows())
    assert len(rows) == 10_003
    assert len({row.fields["category"] for row in rows}) == 77
    pairs = data / "bias" / "crows_pairs" / "crows_pairs_EN_revised_neveol.tsv"
    assert sum(1 for _ in Corpus.open(pairs, text_field="sent_more").rows()) == 1677
