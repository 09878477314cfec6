"""`pellucid explain` as people type it."""

from __future__ import annotations

import json
import re

import pytest
from pupils import pupil, tokenizer
from tiny import DOCUMENTS, pretrain, write_corpus

from pellucid.text.word_spans import words_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pupil(tmp_path_factory.mktemp("models") / "qwen3", shaken=True)


FAST = ("--threads", 1, "--precision", "fp32", "--quiet")


def test_a_text_is_explained_and_written_in_every_form(cli, folder, tmp_path):
    outs = [word for name in ("why.html", "why.json", "why.png") for word in ("--out", tmp_path / name)]
    code, out, err = cli("explain", folder, "Alice saw the rabbit", "--target", "a", "--foil", "b", *outs, *FAST)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("logit('a') - logit('b') = ")
    assert "random orders" in lines[1]
    assert {"Alice", "saw", "the", "rabbit"} <= {line.split()[0] for line in lines if line.startswith("  ")}
    assert lines[-1].startswith("written to")
    told = json.loads((tmp_path / "why.json").read_text(encoding="utf-8"))
    assert told["shares"]["gap"] == pytest.approx(0, abs=1e-4)
    assert (tmp_path / "why.png").read_bytes().startswith(b"\x89PNG")


def test_json_says_all_of_it(cli, folder):
    code, out, _ = cli("explain", folder, "Alice saw", "--against", "Alice was", "--json", *FAST)
    told = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert code == 0
    assert told["patching"]["effects"]


def test_heads_neurons_and_their_page(cli, folder, tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    out = tmp_path / "heads.html"
    code, said, _ = cli(
        "explain",
        folder,
        "--corpus",
        corpus,
        "--neuron",
        "1.7",
        "--ablate",
        "blocks.0.mlp.out",
        "--how",
        "zero",
        "--out",
        out,
        *FAST,
    )
    assert code == 0
    assert "Most is lost without:" in said
    assert "blocks.1.mlp.neuron.7: active at" in said
    assert re.search(r"blocks.0.mlp.out +[+-][0-9.]+ nats a token \(.*\)   by zero", said)
    assert "zeros" in out.read_text(encoding="utf-8")
    assert "neuron 7" in out.read_text(encoding="utf-8")


def test_without_a_corpus_the_model_writes_its_own(cli, folder):
    code, said, err = cli("explain", folder, *FAST)
    assert (code, err) == (0, "")
    assert said.startswith("8 heads, watched on what the model itself writes")


def test_a_runs_heads_over_training(cli, tmp_path):
    pretrain(tmp_path / "run", steps=6, training={"checkpoint_every": 2, "keep": 9}, model={"context_length": 32})
    corpus = write_corpus(tmp_path / "corpus")
    code, said, _ = cli("explain", tmp_path / "run", "--over-training", "--corpus", corpus, "--out", tmp_path / "story.html")
    assert code == 0
    assert [line.split()[0] for line in said.splitlines()[1:4]] == ["2", "4", "6"]
    assert "induction score" in (tmp_path / "story.html").read_text(encoding="utf-8")


def test_probes_of_tagged_rows(cli, folder, tmp_path):
    rows = [words_of(text[:50]).words() for text in DOCUMENTS]
    tagged = [{"tokens": row, "tags": ["B-x" if word[0].isupper() else "O" for word in row]} for row in rows]
    (tmp_path / "tags.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tagged), encoding="utf-8")
    code, said, _ = cli("explain", folder, "--probe", tmp_path / "tags.jsonl", "--out", tmp_path / "probes.html", *FAST)
    assert code == 0
    assert "blocks.1.after" in said
    assert "selectivity" in (tmp_path / "probes.html").read_text(encoding="utf-8")


BAD = {
    "kind": (
        ("Alice", "--out", "why.txt"),
        "why.txt: this is written as .html, .json, .png, .svg, .pdf, not '.txt'; name it so",
    ),
    "kind of cards": (("--out", "a.png"), "a.png: this is written as .html, .json, not '.png'; name it so"),
    "twice": (("Alice", "--out", "a.html", "--out", "a.html"), "--out a.html is given twice; leave one out"),
    "force": (("Alice", "--force"), "--force has no effect without --out; leave it out"),
    "target without text": (("--target", "a"), "--target has no effect without a text; leave it out"),
    "chat without text": (("--chat",), "--chat has no effect without a text; leave it out"),
    "corpus with text": (("Alice", "--corpus", "c"), "--corpus has no effect on the answer to a text; leave it out"),
    "no corpus": (
        ("--over-training",),
        "--over-training needs a text on which every checkpoint is watched; give --corpus FILE",
    ),
    "idle": (
        ("--over-training", "--corpus", "c", "--device", "cpu"),
        "--device has no effect with --over-training; leave it out",
    ),
    "both": (("--over-training", "--probe", "x", "--corpus", "c"), "--probe has no effect with --over-training; leave it out"),
    "neuron": (("--neuron", "x"), "'x' is no neuron; write LAYER.NUMBER, such as 3.17"),
    "a site": (
        ("--ablate", "blocks.0.mlp.ou"),
        "'blocks.0.mlp.ou' is no site of this network; did you mean 'blocks.0.mlp.out'?",
    ),
    "how": (("--how", "zero"), "--how has no effect without --ablate SITE; leave it out"),
    "word": (("Alice", "--word", "²"), "a word is named only to a tagger or a masked language model"),
    "method": (("Alice", "--method", "magic"), "there is no method 'magic'"),
    "label": (("Alice", "--target", "a", "--foil", "a"), "target and foil are both 'a'"),
    "unequal": (("Alice", "--against", "Alices"), "the prompts have 5 and 6 tokens"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_sentence(cli, folder, kind, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words, said = BAD[kind]
    code, out, err = cli("explain", folder, *words)
    assert (code, out) == (2, "")
    assert err.startswith("pellucid: ")
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_a_run_with_one_checkpoint_has_no_story(cli, tmp_path):
    pretrain(tmp_path / "run", steps=2)
    corpus = write_corpus(tmp_path / "corpus")
    code, _, err = cli("explain", tmp_path / "run", "--over-training", "--corpus", corpus)
    assert code == 2
    assert "keeps 1 checkpoint, and a story has two or more; train with: --checkpoint-every N --training.keep 100" in err
    assert cli("explain", corpus, "--over-training", "--corpus", corpus)[0] == 2


def test_help_teaches(cli):
    code, out, _ = cli("explain", "--help")
    assert code == 0
    for words in ('pellucid explain runs/mine "The nurse said that"', "--against", "--over-training", "--neuron", "--probe"):
        assert words in out
    assert tokenizer().vocab_size
