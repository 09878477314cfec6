"""Building a store: killed at any instant it goes on, and two builders do not harm each other."""

import os
import random
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from pellucid.core.progress import Silent
from pellucid.text import build
from pellucid.text.corpus import Corpus
from pellucid.text.store import TokenStore
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.view import SECTIONS

BUILD = """
import sys
from pellucid.text import build
from pellucid.text.corpus import Corpus
from pellucid.text.store import TokenStore
from pellucid.text.tokenizer import Tokenizer
build.SYNC_SECONDS, build.BATCH = 0.0, 1 << 15
print("begin", flush=True)
TokenStore.build(Corpus.open(sys.argv[1]), Tokenizer.load(sys.argv[2]), sys.argv[3])
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A megabyte and a half in two files, of words that do not repeat too soon."""
    folder = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(20_000)]
    for name in ("a", "b"):
        lines = (" ".join(rng.choices(words, k=12)) for _ in range(10_000))
        (folder / f"{name}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def tokenizer(text, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train_bpe(Corpus.open(text), 1000, sample_bytes=200_000).save(folder)
    return folder


@pytest.fixture(scope="module")
def whole(text, tokenizer, tmp_path_factory) -> dict[str, bytes]:
    """The files of a store that was built without a break."""
    return contents(TokenStore.build(Corpus.open(text), Tokenizer.load(tokenizer), tmp_path_factory.mktemp("whole")).folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def begin(text: Path, tokenizer: Path, cache: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", BUILD, text, tokenizer, cache], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begin\n"
    return process


def on_disk(cache: Path) -> int:
    """Sections that a killed build has left."""
    return sum(path.stat().st_size // SECTIONS.itemsize for path in cache.glob("*.partial/sections.bin"))


def test_a_killed_build_goes_on_and_ends_the_same_to_the_byte(text, tokenizer, whole, tmp_path):
    rng = random.Random(1)
    left = [0]
    for _ in range(8):
        process = begin(text, tokenizer, tmp_path)
        deadline = time.monotonic() + 20
        while on_disk(tmp_path) <= left[-1] and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)  # until it has done something new
        time.sleep(rng.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not on_disk(tmp_path):
            break  # it was done
        left.append(on_disk(tmp_path))
    assert len(left) > 2  # killed in the middle at least twice, however fast the machine is
    assert left == sorted(left)
    assert begin(text, tokenizer, tmp_path).wait() == 0
    [store] = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert contents(store) == whole


def test_two_processes_build_one_store(text, tokenizer, whole, tmp_path):
    processes = [begin(text, tokenizer, tmp_path) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    [store] = list(tmp_path.iterdir())
    assert contents(store) == whole


class Interrupted(Corpus):
    """A corpus whose reader is stopped after some sections."""

    after = 100

    def __iter__(self):
        yield from islice(super().__iter__(), self.after)
        raise KeyboardInterrupt


@pytest.mark.parametrize("damage", ["none", "torn record", "lost tokens", "zeros", "other text", "too many", "rubbish"])
def test_what_an_interrupted_build_left_is_used_as_far_as_it_is_sound(text, tokenizer, whole, tmp_path, monkeypatch, damage):
    loaded = Tokenizer.load(tokenizer)
    monkeypatch.setattr(build, "SYNC_SECONDS", 0.0)
    monkeypatch.setattr(build, "BATCH", 1 << 15)
    with pytest.raises(KeyboardInterrupt):
        TokenStore.build(Interrupted.open(text), loaded, tmp_path)
    [partial] = [path for path in tmp_path.iterdir() if path.is_dir()]
    sections, tokens = partial / "sections.bin", partial / "tokens.bin"
    before = on_disk(tmp_path)
    assert 50 < before <= 100
    if damage == "torn record":
        os.truncate(sections, sections.stat().st_size - 5)
    elif damage == "lost tokens":
        os.truncate(tokens, tokens.stat().st_size // 2)
    elif damage == "zeros":
        with sections.open("ab") as file:
            file.write(bytes(10 * SECTIONS.itemsize))
    elif damage == "other text":
        data = bytearray(sections.read_bytes())
        data[30 * SECTIONS.itemsize + 8] ^= 1  # the hash of a section
        sections.write_bytes(data)
    elif damage == "too many":
        with sections.open("ab") as file:
            file.write(sections.read_bytes())
    elif damage == "rubbish":
        (partial / ".store.json.1.partial").write_text("{")
    encoded = []
    monkeypatch.setattr(
        Tokenizer, "encode_batch", lambda self, texts, call=Tokenizer.encode_batch: encoded.extend(texts) or call(self, texts)
    )
    store = TokenStore.build(Corpus.open(text), loaded, tmp_path)
    assert contents(store.folder) == whole
    assert len(encoded) < len(store.sections) - 20  # the rest was there


def test_batching_does_not_change_the_result(text, tokenizer, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "BATCH", 10_000)
    store = TokenStore.build(Corpus.open(text), Tokenizer.load(tokenizer), tmp_path)
    assert contents(store.folder) == whole


def test_progress_is_told_in_megabytes(text, tokenizer, tmp_path):
    class Heard(Silent):
        done, tasks = 0.0, []

        def task(self, label, total, unit):
            self.tasks.append((label, round(total, 6), unit))
            return super().task(label, total, unit)

        def advance(self, amount, note=""):
            self.done += amount

    heard = Heard()
    size = sum(path.stat().st_size for path in text.iterdir()) / 1e6
    TokenStore.build(Corpus.open(text), Tokenizer.load(tokenizer), tmp_path, progress=heard)
    assert heard.tasks == [("encoding", round(size, 6), "MB")]
    assert heard.done == pytest.approx(size)
