"""The command line for every kind of network: learn, fill, write; and what a newcomer types wrong, answered in one sentence."""

import json

import pytest
import tiny

import pellucid
from pellucid.training.recipe import Recipe

ENCODER = ["--model.d-model", 32, "--model.layers", 1, "--model.heads", 2, "--model.d-mlp", 64]
SMALL = ["--tokenizer", "chars", "--context", 32, "--training.batch-size", 4, "--training.threads", 1, "--quiet"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each kind made by the command line; nobody may change it."""
    from pellucid.cli import main

    folder = tmp_path_factory.mktemp("runs")
    text, done = tiny.write_corpus(folder / "text"), {}

    def get(family, *words):
        if family not in done:
            dims = ["--model.d-model", 32, "--model.layers", 2] if family in ("lstm", "bag-of-words") else ENCODER
            arguments = ["pretrain", text, "--out", folder / family, "--family", family, "--steps", 3, *SMALL, *dims, *words]
            assert main([str(word) for word in arguments]) == 0
            done[family] = folder / family
        return done[family]

    return get


def test_a_masked_language_model_is_learnt_and_asked(cli, runs, capsys):
    run = runs("bert")
    code, out, _ = cli("fill", run, "Ali[MASK]e wa[MASK]", "--top", 2)
    assert code == 0
    lines = out.splitlines()
    assert [lines[0], lines[3]] == ["mask 1", "mask 2"]
    assert len(lines) == 6
    code, out, _ = cli("fill", run, "Ali[MASK]e", "--json")
    [mask] = json.loads(out)
    assert len(mask) == 5
    assert set(mask[0]) == {"token", "id", "probability"}


def test_what_to_try_next_is_said_for_each_objective(cli, tmp_path):
    text = tiny.write_corpus(tmp_path / "text")
    for objective, verb in (("mlm", "fill"), ("spans", "generate"), ("clm", "generate")):
        run = tmp_path / objective
        code, out, _ = cli("pretrain", text, "--out", run, "--objective", objective, "--steps", 2, *SMALL, *ENCODER)
        assert code == 0
        assert f"pellucid {verb} {run} " in out.splitlines()[-1]
        assert ("bits per byte" in out) == (objective == "clm")
        recipe = Recipe.load(run / "recipe.toml")
        assert (recipe.objective.name, recipe.model.family) == (
            objective,
            {"mlm": "bert", "spans": "t5", "clm": "qwen3"}[objective],
        )


def test_an_answer_of_an_encoder_decoder_is_printed_without_its_question(cli, runs):
    code, out, _ = cli("generate", runs("t5"), "Alice was <extra_id_0>", "--max-tokens", 8, "--temperature", 0)
    assert code == 0
    assert "Alice was" not in out
    _, printed, _ = cli("generate", runs("t5"), "Alice was <extra_id_0>", "--max-tokens", 8, "--temperature", 0, "--json")
    assert json.loads(printed)["text"] == out.rstrip("\n")


@pytest.mark.parametrize("family", ["lstm", "bag-of-words"])
def test_other_networks_write_as_decoders_do(cli, runs, family):
    code, out, _ = cli("generate", runs(family), "Alice", "--max-tokens", 5)
    assert code == 0
    assert out.startswith("Alice")


def test_help_names_what_there_is(cli):
    _, out, _ = cli("pretrain", "--help")
    for word in ("--objective", "--family", "mlm", "spans", "lstm", "--objective.rate"):
        assert word in out
    _, out, _ = cli("fill", "--help")
    assert "[MASK]" in out


BAD = {
    "--objective mlmm": 'Invalid value "mlmm" for --objective',
    "--objective mlm --family gpt2": "gpt2 is a decoder network, which learns with --objective clm, not with mlm",
    "--family bert --objective spans": "bert is an encoder network, which learns with --objective mlm, not with spans",
    "--family brt": "family 'brt' is not known; choose bag-of-words, bert, distilbert",
    "--family BERT": "family 'BERT' is not known; choose bag-of-words, bert, distilbert",
    "--size bert-bas": "size 'bert-bas' is not known (did you mean bert-base, ",
    "--size gpt-2": "size 'gpt-2' is not known (did you mean gpt2, ",
    "--size gpt2 --family bert": "size 'gpt2' is a gpt2 model, not a bert one; leave out one of the two",
    "--size bert-base --model.layers 3": "size 'bert-base' is a published model with its own model.layers; leave that out",
    "--size 0 --family lstm": "a size of 0 parameters is too small for a vocabulary of 52",
    "--family lstm --model.heads 2": "options: heads has no effect with lstm, which has no attention; leave it out",
    "--family lstm --training.compile on": "training.compile has no effect with lstm, which has no attention; leave it out",
    "--family lstm --data.document-masks": "data.document_masks has no effect with lstm, which has no attention; leave it out",
    "--family bag-of-words --training.recompute": "training.recompute has no effect with bag-of-words, which has no attention",
    "--family bag-of-words --model.dropout 0.1": "options: dropout has no effect with bag-of-words, which drops nothing; leave",
    "--family t5 --data.document-masks": "windows of 256 tokens become 232 inputs and 53 targets, which document masks do",
    "--family t5 --context 4": "windows of 4 tokens would become 5 inputs and 4 targets, more than a context; choose a larger",
    "--family t5 --context 8192": "windows of 8192 tokens need 411 sentinels, but there are 100; choose a smaller context",
    "--family bert --model.kv-heads 1": "bert has as many key/value heads as heads; leave out model.kv_heads (1)",
    "--family bert --training.prompt Alice": "training.prompt 'Alice' has no [MASK], so there is nothing that bert could fill",
    "--objective mlm --objective.rate 15": "options: objective.rate = '15' will not do: it must be less than 1",
    "--objective mlm --objective.mean-span 2": "options: mean_span has no effect with objective mlm; leave it out",
    "--objective spans --objective.mean-span 0.5": "options: objective.mean_span = '0.5' will not do: it must be greater than",
    "--objective.whole-words": "options: whole_words has no effect with objective clm; leave it out",
    "--objective.name mlm --objective mlm": "objective.name is given twice, by its short and by its dotted name; leave one out",
    "--mask-rate 0.3": "Unknown option: --mask-rate.",
    "--objective": 'Command "pretrain" parameter --objective requires an argument.',
}


@pytest.fixture
def refused(cli):
    """The one sentence that a command answers with."""

    def call(*words):
        code, out, err = cli(*words)
        assert (code, out) == (2, "")
        assert err.startswith("pellucid: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        return err.removeprefix("pellucid: ").rstrip("\n")

    return call


@pytest.mark.parametrize("words", BAD)
def test_a_bad_option(refused, tmp_path, monkeypatch, words):
    text = tiny.write_corpus(tmp_path / "text")
    monkeypatch.chdir(tmp_path)
    message = refused("pretrain", text, "--tokenizer", "chars", "--steps", 2, "--out", "run", *words.split())
    assert message.startswith(BAD[words])
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_bad_uses_of_fill(refused, runs, tmp_path):
    bert, lstm = runs("bert"), runs("lstm")
    assert refused("fill", bert, "Alice") == "there is no [MASK] in 'Alice'; write [MASK] where a word is missing"
    assert refused("fill", bert, "a [MASK]", "--top", 0) == "top must be from 1 to 53, not 0"
    assert refused("fill", bert, "a [MASK]", "--top", "many") == 'Invalid value for --top: unable to convert "many" into int.'
    assert refused("fill", bert, "a" * 40 + "[MASK]") == "the text has 43 tokens, but the model's context is 32; shorten it"
    assert refused("fill", lstm, "a [MASK]").startswith(
        "this lstm model fills no masks, since it has no masked-language-model head"
    )
    assert refused("fill", tmp_path, "a [MASK]") == f"{tmp_path} is not a model folder: it has no config.json"
    assert refused("fill", bert) == 'Command "fill" parameter --text requires an argument.'


def test_bad_uses_of_generate(refused, runs):
    assert refused("generate", runs("bert"), "Alice") == (
        "a bert model of this kind does not continue texts; use fill or embed"
    )
    message = "an answer of 40 tokens exceeds the model's context of 32; use --max-tokens 31 or less"
    assert refused("generate", runs("t5"), "Alice", "--max-tokens", 40) == message
    assert refused("generate", runs("lstm"), "Alice", "--beams", 0) == "beams must be at least 1, not 0"


def test_beams_write_the_same_at_every_call(cli, runs):
    options = ("generate", runs("lstm"), "Alice", "--max-tokens", 6, "--beams", 3)
    code, out, _ = cli(*options)
    expected = pellucid.load(runs("lstm")).generate("Alice", max_tokens=6, beams=3)
    assert (code, out) == (0, f"Alice{expected.text}\n")
    assert json.loads(cli(*options, "--json")[1])["tokens"] == expected.tokens
