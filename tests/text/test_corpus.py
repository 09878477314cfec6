"""A corpus: one stream of documents from any source, the same every time it is read."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.core.errors import CorpusError
from pellucid.text.corpus import Corpus, html_line_breaks
from pellucid.text.sections import SECTION


def put(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return path


def texts(corpus: Corpus) -> list[str]:
    return [document.text for document in corpus]


def message(*sources, **options) -> str:
    with pytest.raises(CorpusError) as caught:
        list(Corpus.open(list(sources), **options))
    return str(caught.value)


def test_a_plain_file_is_one_document_in_sections(tmp_path):
    text = "A line of text.\r\n" * 3000
    documents = list(Corpus.open(put(tmp_path / "a.txt", text)))
    assert "".join(document.text for document in documents) == text  # line ends included
    assert [document.part for document in documents] == list(range(len(documents)))
    assert len(documents) == -(-len(text) // SECTION)
    [row] = Corpus.open(tmp_path / "a.txt").rows()
    assert row.text == text
    assert row.fields == {}


def test_formats_can_be_mixed(tmp_path):
    put(tmp_path / "a.md", "plain")
    put(tmp_path / "b.csv", "text\nrow\n")
    put(tmp_path / "c.jsonl", '{"text": "line"}')
    assert texts(Corpus.open(tmp_path)) == ["plain", "row", "line"]


@pytest.mark.parametrize("content", ["", " \n\t\u3000\n"])
def test_an_empty_file_is_one_clear_sentence(tmp_path, content):
    path = put(tmp_path / "a.txt", content)
    assert message(path) == f"{path} is empty or holds only white space; leave it out, or put text in it"


def test_a_folder_of_empty_files_is_one_clear_sentence(tmp_path):
    put(tmp_path / "a.txt", "")
    put(tmp_path / "b.txt", "  \n")
    assert (
        message(tmp_path) == "the corpus (2 sources) is empty or holds only white space; put text in it, or name another source"
    )


def test_empty_documents_are_left_out_and_counted(tmp_path):
    put(tmp_path / "a.txt", "")
    put(tmp_path / "b.jsonl", '{"text": "x"}\n{"text": " "}\n{"text": ""}')
    corpus = Corpus.open(tmp_path)
    assert texts(corpus) == ["x"]
    assert corpus.describe()["counts"]["empty"] == 3
    assert [row.text for row in corpus.rows()] == ["", "x", " ", ""]  # labelled rows stay


def test_white_space_inside_a_document_stays(tmp_path):
    text = " " * 3 * SECTION + "word"
    assert "".join(texts(Corpus.open(put(tmp_path / "a.txt", text)))) == text


def test_exact_copies_are_left_out_on_request_and_counted(tmp_path):
    long = "long text " * 2000
    put(tmp_path / "a.jsonl", '{"text": "x"}\n{"text": "y"}\n{"text": "x"}')
    put(tmp_path / "b.txt", long)
    put(tmp_path / "c.txt", long)
    corpus = Corpus.open(tmp_path, deduplicate=True)
    assert "".join(texts(corpus)) == "xy" + long
    assert corpus.describe()["counts"]["duplicates"] == 2
    assert texts(corpus) == texts(corpus)
    assert len(texts(Corpus.open(tmp_path))) > len(texts(corpus))


@given(st.lists(st.sampled_from(["<br />", "<BR>", "<br/>", "<b", "r />", "<br", " ", "/>", "a", "<", ">"])), st.data())
def test_line_breaks_of_html_across_chunks(pieces, data):
    chunks = []
    while pieces:
        count = data.draw(st.integers(1, len(pieces)))
        chunks.append("".join(pieces[:count]))
        pieces = pieces[count:]
    whole = re.sub(r"(?i)<br\s{0,4}/?>", "\n", "".join(chunks))
    assert "".join(html_line_breaks(chunks)) == whole


def test_line_breaks_of_html_in_rows_and_files(tmp_path):
    put(tmp_path / "a.txt", "one<br /><br />two")
    put(tmp_path / "b.csv", "text\none<BR>two\n")
    assert texts(Corpus.open(tmp_path, html_breaks=True)) == ["one\n\ntwo", "one\ntwo"]
    assert [row.text for row in Corpus.open(tmp_path, html_breaks=True).rows()] == ["one\n\ntwo", "one\ntwo"]
    assert texts(Corpus.open(tmp_path)) == ["one<br /><br />two", "one<BR>two"]


def test_standard_input_is_read_twice(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("piped tëxt".encode())))
    corpus = Corpus.open("-")
    assert texts(corpus) == texts(corpus) == ["piped tëxt"]
    path = corpus.sources[0].file.path
    assert path.stat().st_mode & 0o077 == 0  # nobody else may read it
    del corpus
    assert not path.exists()


def test_standard_input_with_a_field_is_json_lines(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'{"a": "x", "b": "y"}\n')))
    assert texts(Corpus.open(["-"], text_field="b")) == ["y"]


def test_empty_standard_input_is_one_clear_sentence(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"")))
    assert message("-") == "standard input is empty or holds only white space; leave it out, or put text in it"


def test_texts_in_memory_and_iterators(tmp_path):
    some = ["eins", "zwei 世界", "drei\nvier"]
    once = Corpus.of(text for text in some)
    assert texts(Corpus.of(some)) == texts(once) == texts(once) == some
    assert texts(Corpus.of("a single text")) == ["a single text"]
    with pytest.raises(CorpusError, match="the given texts is empty"):
        Corpus.of([])


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda folder: os.utime(folder / "a.txt", (1, 1)), True),
        (lambda folder: folder.rename(folder.with_name("other")), True),
        (lambda folder: put(folder / "a.txt", "other"), False),
        (lambda folder: put(folder / "d.txt", "more"), False),
        (lambda folder: (folder / "b.txt").rename(folder / "b.csv"), False),
    ],
    ids=["dates", "names", "content", "files", "format"],
)
def test_the_fingerprint_is_of_the_content(tmp_path, change, same):
    folder = tmp_path / "folder"
    put(folder / "a.txt", "text")
    put(folder / "b.txt", "text\nmore\n")
    before = Corpus.open(folder).fingerprint()
    change(folder)
    now = folder if folder.exists() else folder.with_name("other")
    assert (Corpus.open(now).fingerprint() == before) is same


def test_the_fingerprint_is_of_the_options(tmp_path):
    path = put(tmp_path / "a.jsonl", '{"text": "x", "other": "y"}')
    options = [{}, {"text_field": "other"}, {"html_breaks": True}, {"deduplicate": True}, {"on_bad_bytes": "replace"}]
    assert len({Corpus.open(path, **option).fingerprint() for option in options}) == len(options)
    assert Corpus.open(path).fingerprint() == Corpus.open(path, text_field="text").fingerprint()  # guessed or given


def test_what_a_run_notes_about_its_text(tmp_path):
    put(tmp_path / "a.txt", "text")
    put(tmp_path / "b.png", "picture")
    corpus = Corpus.open(tmp_path)
    assert corpus.bytes == 4
    assert corpus.describe() == {
        "sources": 1,
        "names": [str(tmp_path / "a.txt")],
        "bytes": 4,
        "skipped": 1,
        "options": {"text_field": None, "encoding": None, "on_bad_bytes": "error", "html_breaks": False, "deduplicate": False},
        "counts": None,
        "fingerprint": corpus.fingerprint(),
    }


def test_options_without_effect_are_refused(tmp_path):
    path = put(tmp_path / "a.txt", "text")
    assert message(path, text_field="body") == (
        f"--text-field body has no effect: {path} is plain text, which has no fields; leave it out"
    )


def test_real_text_is_read_exactly(data):
    path = data / "text" / "wikitext2" / "wiki.valid.raw"
    documents = list(Corpus.open(path))
    assert "".join(document.text for document in documents) == path.read_text(encoding="utf-8")


def test_opening_a_corpus_does_not_import_heavy_libraries():
    code = "import sys, pellucid.text.corpus as c; c.Corpus.of(['a']); print(sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("torch", "pyarrow", "tokenizers", "datasets", "numpy"):
        assert f"'{name}'" not in done.stdout
