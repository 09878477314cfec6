"""`pellucid evaluate`: what it prints and writes, and what a user types wrong, answered in one sentence."""

import json

import datasets
import pytest
import tiny

import pellucid
from pellucid.core.errors import ConfigError, ModelError
from pellucid.evaluation.perplexity import Perplexity


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run; nobody may change it."""
    return tiny.pretrain(tmp_path_factory.mktemp("runs") / "run", steps=4).path


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(tiny.DOCUMENTS[0])
    return path


def refused(cli, *words):
    code, out, err = cli("evaluate", *words)
    assert (code, out) == (2, ""), (out, err)
    assert err.startswith("pellucid: ")
    assert err.count("\n") == 1
    return err.removeprefix("pellucid: ").rstrip("\n")


def test_the_table_of_a_text(cli, run, text):
    code, out, err = cli("evaluate", run, "--data", text)
    assert (code, err) == (0, "")
    found = pellucid.evaluate(run, text)
    assert out.splitlines() == [
        f"perplexity     {found.perplexity:,.2f}",
        f"bits per byte  {found.bits_per_byte:.4f}",
        f"loss           {found.loss:.4f} nats per token",
        f"text           {len(tiny.DOCUMENTS[0])} tokens, {len(tiny.DOCUMENTS[0])} bytes, 1 document",
        "window         16 tokens, moved by 8",
    ]


def test_what_fewer_bits_cost_is_said(cli, run, text):
    full, few = pellucid.evaluate(run, text), pellucid.evaluate(pellucid.load(run, precision="int4"), text)
    assert few.perplexity != full.perplexity
    code, out, err = cli("evaluate", run, "--data", text, "--precision", "int4")
    assert (code, err) == (0, "")
    change = 100 * (few.perplexity / full.perplexity - 1)
    assert out.splitlines()[:2] == [
        f"perplexity     {few.perplexity:,.2f}",
        f"as stored      {full.perplexity:,.2f}, so {change:+.2f} %",
    ]
    found = json.loads(cli("evaluate", run, "--data", text, "--precision", "int4", "--json")[1])
    assert (found["perplexity"], found["as_stored"]["perplexity"]) == (few.perplexity, full.perplexity)
    assert found["holding"] == {"precision": "int4", "group": 32, "symmetric": False}
    expected = "group and symmetric have no effect on auto; leave them out, or use int4"
    assert refused(cli, run, "--data", text, "--group", 64) == expected


def test_several_documents_give_an_interval(cli, run, tmp_path):
    folder = tiny.write_corpus(tmp_path / "folder")
    code, out, _ = cli("evaluate", run, "--data", folder, "--stride", 16)
    assert code == 0
    assert "  (95 %: " in out.splitlines()[0]
    assert f"{len(tiny.DOCUMENTS)} documents" in out
    code, twice, _ = cli("evaluate", run, "--data", folder / "000.txt", "--data", folder / "001.txt", "--json")
    assert json.loads(twice)["documents"] == 2


def test_json_and_a_file_hold_the_same(cli, run, text, tmp_path):
    out_file = tmp_path / "results" / "found.json"
    code, out, _ = cli("evaluate", run, "--data", text, "--stride", 4, "--context", 8, "--json", "--out", out_file)
    assert code == 0
    found = json.loads(out)
    assert found == json.loads(out_file.read_text())
    assert (found["model"], found["context"], found["stride"]) == (str(run), 8, 4)
    assert found["perplexity_interval"] is None
    before = out_file.read_text()
    expected = f"{out_file} exists already; pass --force to replace it, or choose another --out"
    assert refused(cli, run, "--data", text, "--out", out_file) == expected
    assert out_file.read_text() == before
    assert cli("evaluate", run, "--data", text, "--out", out_file, "--force")[0] == 0
    assert json.loads(out_file.read_text())["stride"] == 8


def test_reading_options_are_those_of_other_commands(cli, run, tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text("review,stars\nAlice was,5\nSo she was,1\n")
    code, out, _ = cli("evaluate", run, "--data", table, "--text-field", "review", "--json")
    assert code == 0
    assert (json.loads(out)["documents"], json.loads(out)["bytes"]) == (2, 19)


def test_tasks_are_asked_and_shown(cli, run, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    rows = [{"good": "Alice was so", "bad": "so was Alice"}, {"good": "She ran", "bad": "ran She"}] * 3
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/order.yaml").write_text(
        f"task: order\ndataset_path: json\ndataset_kwargs:\n  data_files: {tmp_path}/rows.jsonl\n"
        'output_type: multiple_choice\nvalidation_split: train\ndoc_to_text: ""\ndoc_to_target: 0\n'
        'doc_to_choice: "{{[good, bad]}}"\nmetric_list:\n  - metric: acc\n'
    )
    words = ["evaluate", run, "--tasks", "order", "--include-path", tmp_path / "tasks", "--limit", 5, "--quiet"]
    code, out, err = cli(*words)
    assert (code, err) == (0, "")
    head, row, note = out.splitlines()
    assert head.split() == ["task", "metric", "value", "questions", "examples"]
    assert row.split()[:2] + row.split()[-2:] == ["order", "acc", "5", "0"]
    assert note.startswith("± is lm-eval's standard error")
    code, out, _ = cli(*words, "--json")
    [score] = json.loads(out)["scores"]
    assert row.split()[2] == f"{score['value']:.4f}"


class TestRefusals:
    BOTH = "evaluate takes a text (data) or tasks of lm-evaluation-harness (tasks), and one of them: choose one"

    def test_neither_data_nor_tasks_and_both(self, cli, run, text):
        assert refused(cli, run) == self.BOTH
        assert refused(cli, run, "--data", text, "--tasks", "blimp") == self.BOTH

    @pytest.mark.parametrize(
        ("words", "name"),
        [
            (["--limit", 3], "limit"),
            (["--num-fewshot", 0], "num_fewshot"),
            (["--include-path", "x"], "include_path"),
        ],
    )
    def test_options_of_tasks_have_no_effect_on_a_text(self, cli, run, text, words, name):
        assert refused(cli, run, "--data", text, *words) == f"{name} has no effect on a text; leave it out"

    @pytest.mark.parametrize(
        ("words", "name"),
        [
            (["--stride", 3], "stride"),
            (["--context", 8], "context"),
            (["--text-field", "x"], "text_field"),
        ],
    )
    def test_options_of_a_text_have_no_effect_on_tasks(self, cli, run, words, name):
        assert refused(cli, run, "--tasks", "blimp", *words) == f"{name} has no effect on tasks; leave it out"

    def test_what_the_window_and_the_batch_may_not_be(self, cli, run, text):
        expected = "stride must be from 1 to 16, the context, not 17: it would leave tokens out"
        assert refused(cli, run, "--data", text, "--stride", 17) == expected
        assert (
            refused(cli, run, "--data", text, "--context", 99) == "context must be from 1 to 16, which is the model's, not 99"
        )
        assert refused(cli, run, "--data", text, "--batch-tokens", 0) == "batch_tokens must be at least 1, not 0"

    def test_an_empty_file(self, cli, run, tmp_path):
        (tmp_path / "empty.txt").write_text("\n")
        expected = f"{tmp_path / 'empty.txt'} is empty or holds only white space; leave it out, or put text in it"
        assert refused(cli, run, "--data", tmp_path / "empty.txt") == expected

    def test_force_without_a_file(self, cli, run, text):
        assert refused(cli, run, "--data", text, "--force") == "--force has no effect without --out or --report; leave it out"

    def test_no_task_by_name(self, cli, run):
        assert refused(cli, run, "--tasks", " , ") == "no task was given; name one of lm-eval's, such as --tasks blimp"

    def test_options_for_texts_in_memory(self, run):
        with pytest.raises(ConfigError, match=r"^text_field has no effect on texts in memory; leave it out$"):
            pellucid.evaluate(run, iter(["Alice"]), text_field="x")


def test_texts_in_memory_and_a_model_in_memory(run):
    model = pellucid.load(run)
    found = pellucid.evaluate(model, iter(tiny.DOCUMENTS[:2]))
    assert isinstance(found, Perplexity)
    assert found == pellucid.evaluate(model, pellucid.api.Corpus.of(tiny.DOCUMENTS[:2]))


def test_a_masked_model_is_refused(cli, tmp_path):
    run = tiny.pretrain(tmp_path / "run", steps=1, model={"family": "bert"}, objective={"name": "mlm"})
    with pytest.raises(ModelError, match="does not continue texts, so it gives no probability to one"):
        pellucid.evaluate(run.path, iter(["Alice"]))
