"""Bytes to text: encodings, compression, and what is said about bytes that are no text."""

import codecs
import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.core.errors import ConfigError, CorpusError
from pellucid.text import decoding
from pellucid.text.corpus import Corpus
from pellucid.text.decoding import Decoding, read_lines, read_text
from pellucid.text.sources import find

MIXED = "Grüße, 世界! 😀\r\nnext\n"


def text_of(path: Path, **options) -> str:
    [file] = find([path]).files
    return "".join(read_text(file, Decoding(**options)))


def message(path: Path, **options) -> str:
    with pytest.raises(CorpusError) as caught:
        text_of(path, **options)
    return str(caught.value)


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
@pytest.mark.parametrize(
    "data",
    [
        MIXED.encode(),
        codecs.BOM_UTF8 + MIXED.encode(),
        MIXED.encode("utf-16"),
        codecs.BOM_UTF16_BE + MIXED.encode("utf-16-be"),
        MIXED.encode("utf-32"),
    ],
    ids=["utf-8", "utf-8 with mark", "utf-16 little", "utf-16 big", "utf-32"],
)
def test_byte_order_marks_choose_the_encoding(tmp_path, monkeypatch, data, chunk):
    if chunk > 4 or data == MIXED.encode():
        monkeypatch.setattr(decoding, "CHUNK", chunk)
    assert text_of(put(tmp_path / "a.txt", data)) == MIXED


@pytest.mark.parametrize("name", ["gb18030", "latin-1", "utf-16-le", "cp1252", "shift_jis"])
def test_other_encodings_are_read_when_named(tmp_path, name):
    text = {"gb18030": "世界\n", "shift_jis": "世界\n"}.get(name, "Grüße\n")
    assert text_of(put(tmp_path / "a.txt", text.encode(name)), encoding=name) == text


def test_compressed_text_reads_like_plain(tmp_path):
    data = MIXED.encode() * 1000
    for path in (put(tmp_path / "a.txt.gz", gzip.compress(data)), put(tmp_path / "a.txt.zst", zstd(data) + zstd(b"more"))):
        assert text_of(path).startswith(MIXED * 1000)
    assert text_of(tmp_path / "a.txt.zst").endswith("more")  # several frames in one file


@given(st.lists(st.text(max_size=30), max_size=8), st.integers(1, 7))
def test_lines_keep_their_ends_whatever_the_chunks(tmp_path_factory, parts, chunk):
    text = "\n".join(parts).replace("\0", "")
    path = put(tmp_path_factory.mktemp("lines") / "a.txt", text.encode())
    [file] = find([path]).files
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "CHUNK", chunk)
        lines = list(read_lines(file, Decoding()))
    assert "".join(lines) == text.removeprefix("\ufeff")
    assert all(line.endswith("\n") for line in lines[:-1])
    assert all(line.count("\n") <= 1 for line in lines)


@pytest.mark.parametrize("chunk", [1, 4, 5, 1 << 20])
def test_a_bad_byte_is_named_with_its_offset(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(decoding, "CHUNK", chunk)
    path = put(tmp_path / "a.txt", "naïve caf".encode() + b"\xe9 au lait")
    assert message(path) == f"{path}: byte 10 is not UTF-8 (0xe9); pass --encoding, or --on-bad-bytes replace"
    path = put(tmp_path / "b.txt", "好".encode()[:2])
    assert message(path) == f"{path}: byte 0 is not UTF-8 (0xe5); pass --encoding, or --on-bad-bytes replace"


def test_a_bad_byte_of_a_named_encoding(tmp_path):
    path = put(tmp_path / "a.txt", "世界".encode("gb18030") + b"ok \xff\xff")
    assert message(path, encoding="gb18030") == (
        f"{path}: byte 7 is not gb18030 (0xff); pass another --encoding, or --on-bad-bytes replace"
    )
    path = put(tmp_path / "b.txt", "odd".encode("utf-16") + b"x")
    assert message(path).startswith(f"{path}: byte 8 is not UTF-16")


def test_bad_bytes_are_replaced_on_request_and_counted(tmp_path):
    path = put(tmp_path / "a.txt", b"caf\xe9 au lait")
    corpus = Corpus.open(path, on_bad_bytes="replace")
    assert [d.text for d in corpus] == ["caf\ufffd au lait"]
    assert corpus.describe()["counts"]["replaced"] == 1


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"plain and then\0not", "no mark".encode("utf-16-le")])
def test_a_binary_file_gets_its_own_sentence(tmp_path, data):
    path = put(tmp_path / "a.txt", data)
    assert message(path) == (
        f"{path} is a binary file (it holds NUL bytes), not text; leave it out, or pass --encoding if it is UTF-16"
    )


def test_truncated_and_false_archives_are_named(tmp_path):
    data = bytes(range(65, 91)) * 1000
    path = put(tmp_path / "a.txt.gz", gzip.compress(data)[:-20])
    assert message(path) == f"{path} ends before its compressed data does; it is truncated: fetch it again"
    path = put(tmp_path / "b.txt.gz", b"not an archive")
    assert message(path).startswith(f"{path} is not a valid gzip file (Not a gzipped file")
    path = put(tmp_path / "c.txt.zst", zstd(data)[:-20])
    assert message(path).startswith(f"{path} cannot be decompressed (")
    path = put(tmp_path / "d.txt.zst", b"not an archive")
    assert message(path).startswith(f"{path} cannot be decompressed (")


def test_an_unreadable_file_is_one_clear_sentence(tmp_path, monkeypatch):
    path = put(tmp_path / "a.txt", b"secret")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    [file] = find([path]).files
    monkeypatch.setattr(Path, "open", refuse)  # the tests may run as root, whom nothing is forbidden
    with pytest.raises(CorpusError) as caught:
        list(read_text(file, Decoding()))
    assert str(caught.value) == f"{path} cannot be read (Permission denied); change its permissions, or leave it out"


@pytest.mark.parametrize("name", ["utf-9", "hex", "base64"])
def test_an_unknown_encoding_is_one_clear_sentence(name):
    with pytest.raises(ConfigError) as caught:
        Decoding(encoding=name)
    assert str(caught.value) == f"{name!r} is not a known text encoding; try utf-8, gb18030, latin-1 or utf-16"
    with pytest.raises(ConfigError, match="on_bad_bytes is 'drop'; it must be 'error' or 'replace'"):
        Decoding(on_bad_bytes="drop")
