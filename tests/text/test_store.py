"""Token stores: what is in them, how they split, and what is said when they are damaged."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.core.errors import ConfigError, CorpusError, CorruptionError, ResourceError, TokenizerError
from pellucid.text import build
from pellucid.text.build import section_hash
from pellucid.text.corpus import Corpus
from pellucid.text.store import TokenStore
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.view import SECTIONS, TokenView

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "nobody", "is", "looking", "at", "it"]


def story(seed: int, words: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


TEXTS = [story(seed, 5 + seed * 37 % 400) for seed in range(200)] + [story(1000, 9000)]  # the last has several sections


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_bpe(TEXTS, 300)


@pytest.fixture(scope="module")
def store(tokenizer, tmp_path_factory) -> TokenStore:
    return TokenStore.build(Corpus.of(TEXTS), tokenizer, tmp_path_factory.mktemp("stores"))


def test_a_store_holds_every_section_followed_by_end_of_text(store, tokenizer):
    documents = list(Corpus.of(TEXTS))
    expected = [id for document in documents for id in [*tokenizer.encode(document.text), 0]]
    assert store.tokens.tolist() == expected
    assert store.tokens.dtype == np.dtype("<u2")
    assert store.sections["part"].tolist() == [document.part for document in documents]
    assert store.sections["bytes"].tolist() == [len(document.text.encode()) for document in documents]
    assert store.folder.stat().st_mode & 0o777 == 0o700  # text is nobody else's business


def test_the_whole_stream_has_no_false_ends_inside_documents(store, tokenizer):
    view = store.view()
    stream = view.read(0, view.tokens).tolist()
    ends = [position for position, id in enumerate(stream) if id == tokenizer.end_of_text]
    starts = [0, *(end + 1 for end in ends[:-1])]
    assert [tokenizer.decode(stream[start:end]) for start, end in zip(starts, ends, strict=True)] == TEXTS
    assert (view.documents, view.bytes) == (len(TEXTS), len("".join(TEXTS).encode()))


def test_wide_vocabularies_are_stored_wide(tokenizer, tmp_path):
    wide = Tokenizer.train_chars([*TEXTS, "".join(map(chr, range(0x20000, 0x20000 + 70_000)))])
    store = TokenStore.build(Corpus.of(TEXTS[:5]), wide, tmp_path)
    assert store.tokens.dtype == np.dtype("<u4")
    assert wide.decode(store.tokens) == "".join(TEXTS[:5])


def test_a_store_is_found_again_by_content(store, tokenizer, monkeypatch, tmp_path):
    def never(*_):
        raise AssertionError("the store was built again")

    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in TEXTS))
    first = TokenStore.build(Corpus.open(tmp_path / "a.jsonl"), tokenizer, tmp_path)
    (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    monkeypatch.setattr("pellucid.text.store.build_store", never)
    assert TokenStore.build(Corpus.open(tmp_path / "b.jsonl"), tokenizer, tmp_path).folder == first.folder
    assert (first.folder / "tokens.bin").read_bytes() == (store.folder / "tokens.bin").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([first.folder.name, "b.jsonl"])  # nothing is left behind


# --- splits


def split_texts(store: TokenStore, tokenizer: Tokenizer, fraction: float) -> tuple[str, str]:
    return tuple(tokenizer.decode(view.read(0, view.tokens)) for view in store.split(fraction))  # type: ignore[return-value]


def test_a_split_parts_the_sections_by_the_hash_of_their_text(store, tokenizer):
    fraction = 0.2
    documents = list(Corpus.of(TEXTS))
    low = [section_hash(document.text.encode()) < fraction * 2**64 for document in documents]
    training, validation = split_texts(store, tokenizer, fraction)
    assert validation == "".join(d.text for d, chosen in zip(documents, low, strict=True) if chosen)
    assert training == "".join(d.text for d, chosen in zip(documents, low, strict=True) if not chosen)
    views = store.split(fraction)
    assert sum(view.bytes for view in views) == store.view().bytes
    assert 0.1 < sum(low) / len(low) < 0.3
    assert len({view.fingerprint for view in (*views, *store.split(0.3), store.view())}) == 5


def test_the_end_of_text_stays_where_a_section_of_the_other_side_lies_between(tokenizer):
    def view(chosen: list[bool]) -> list[int]:
        # document one has parts 0 1 2, document two has part 0
        records = [(2, 10, 1, 0), (4, 20, 1, 1), (6, 30, 1, 2), (8, 40, 1, 0)]
        tokens = np.array([11, 0, 12, 0, 13, 0, 14, 0], dtype=np.uint16)
        made = TokenView(tokens, np.array(records, dtype=SECTIONS), np.array(chosen), 0, "key")
        assert made.documents == made.read(0, made.tokens).tolist().count(0)
        return made.read(0, made.tokens).tolist()

    assert view([True, True, True, True]) == [11, 12, 13, 0, 14, 0]
    assert view([True, False, True, True]) == [11, 0, 13, 0, 14, 0]
    assert view([True, True, False, True]) == [11, 12, 0, 14, 0]
    assert view([False, True, True, False]) == [12, 13, 0]
    assert view([False, False, False, True]) == [14, 0]


def test_copies_of_a_text_are_on_one_side(tokenizer, tmp_path):
    store = TokenStore.build(Corpus.of([text for text in TEXTS[:50] for _ in range(3)]), tokenizer, tmp_path)
    training, validation = (set(text.split("|")) for text in split_texts(store, tokenizer, 0.3))
    assert not training & validation
    chosen = store.sections["hash"] < np.uint64(int(0.3 * 2**64))
    assert all(len(set(chosen[i : i + 3].tolist())) == 1 for i in range(0, 150, 3))


def test_more_text_moves_no_section_to_the_other_side(tokenizer, tmp_path):
    few, many = (TokenStore.build(Corpus.of(TEXTS[:n]), tokenizer, tmp_path) for n in (100, 200))
    kept = set(few.sections["hash"][few.sections["hash"] < np.uint64(2**63)].tolist())
    assert kept <= set(many.sections["hash"][many.sections["hash"] < np.uint64(2**63)].tolist())


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_neither_side_is_empty_if_there_are_two_texts(tokenizer, tmp_path, fraction):
    training, validation = TokenStore.build(Corpus.of(TEXTS[:2]), tokenizer, tmp_path).split(fraction)
    assert training.documents == validation.documents == 1


def test_a_split_that_would_be_empty_is_one_clear_sentence(tokenizer, tmp_path):
    with pytest.raises(CorpusError) as caught:
        TokenStore.build(Corpus.of(["the same text"] * 3), tokenizer, tmp_path).split(0.1)
    assert str(caught.value) == (
        "the validation split would be empty: the corpus has only one section of text (13 bytes); "
        "pass --validation FILE, or give more text"
    )


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_a_fraction_that_is_none_is_one_clear_sentence(store, fraction):
    with pytest.raises(ConfigError) as caught:
        store.split(fraction)
    assert str(caught.value) == f"the validation fraction is {fraction}; it must lie between 0 and 1"


# --- reading


@given(st.data())
@settings(max_examples=60)
def test_any_part_can_be_read(store, data):
    view = data.draw(st.sampled_from([store.view(), *store.split(0.3)]))
    stream = view.read(0, view.tokens)
    start = data.draw(st.integers(0, view.tokens))
    stop = data.draw(st.integers(start, view.tokens))
    assert view.read(start, stop).tolist() == stream[start:stop].tolist()
    length = data.draw(st.integers(0, min(view.tokens, 3000)))
    starts = np.array(data.draw(st.lists(st.integers(0, view.tokens - length), max_size=5)), dtype=np.int64)
    gathered = view.gather(starts, length)
    assert gathered.shape == (len(starts), length)
    assert gathered.dtype == np.int64
    assert gathered.tolist() == [stream[start : start + length].tolist() for start in starts.tolist()]


def test_reading_outside_is_an_error(store):
    view = store.view()
    for call in (
        lambda: view.read(0, view.tokens + 1),
        lambda: view.read(-1, 1),
        lambda: view.gather(np.array([view.tokens]), 1),
    ):
        with pytest.raises(IndexError, match=str(view.tokens)):
            call()


# --- damage


@pytest.fixture
def fresh(tokenizer, tmp_path) -> TokenStore:
    return TokenStore.build(Corpus.of(TEXTS[:20]), tokenizer, tmp_path)


def test_a_truncated_store_is_named(fresh):
    path = fresh.folder / "tokens.bin"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 2)
    with pytest.raises(CorruptionError) as caught:
        TokenStore.open(fresh.folder)
    assert str(caught.value) == f"{path} has {size - 2} bytes, but {size} were written; restore it, or delete {fresh.folder}"


@pytest.mark.parametrize("name", ["tokens.bin", "sections.bin", "store.json"])
def test_a_flipped_byte_is_found_and_its_file_named(fresh, name):
    path = fresh.folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptionError) as caught:
        TokenStore.open(fresh.folder, verify_hashes=True)
    assert (
        str(caught.value)
        == f"{path} is damaged (its SHA-256 is not the one in manifest.json); restore it, or delete {fresh.folder}"
    )


def test_another_tokenizer_is_refused(store, tokenizer):
    store.check(tokenizer)
    other = Tokenizer.train_bpe(TEXTS, 290)
    with pytest.raises(TokenizerError) as caught:
        store.check(other)
    assert str(caught.value) == (
        f"{store.folder} was made with another tokenizer (fingerprint {tokenizer.fingerprint[:12]}, this one has "
        f"{other.fingerprint[:12]}); encode the text again, or use the tokenizer it was made with"
    )


def test_a_tokenizer_without_end_of_text_is_refused(tokenizer, tmp_path):
    with pytest.raises(TokenizerError, match='has no end-of-text token to keep documents apart; name one as "eos_token"'):
        TokenStore.build(Corpus.of(TEXTS), Tokenizer(tokenizer.backend, {"eos_token": "<none>"}), tmp_path)


def test_a_full_disk_is_one_clear_sentence_and_the_build_can_go_on(tokenizer, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(build.os, "fsync", full)
        with pytest.raises(
            ResourceError, match=r"the disk is full \(.* free in .*\); make room there, or choose another folder"
        ):
            TokenStore.build(Corpus.of(TEXTS), tokenizer, tmp_path)
    assert TokenStore.build(Corpus.of(TEXTS), tokenizer, tmp_path).view().documents == len(TEXTS)


def test_text_that_cannot_be_encoded_leaves_nothing_behind(tmp_path):
    chars = Tokenizer.train_chars(["abc"])
    with pytest.raises(TokenizerError, match="character 'd'"):
        TokenStore.build(Corpus.of(["abc", "abcd"]), chars, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
