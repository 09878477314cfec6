"""A newcomer's first hour, through the command line in an empty folder, ending in the tools that everybody has."""

import json
import os

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NAMES = ["Alice", "Dinah", "Ann", "Mabel", "Pat", "Bill", "Ada", "Edith"]
BOOK = "\n\n".join(f"Chapter {n}\n\n{tiny.ALICE.replace('Alice', name)}" for n, name in enumerate(NAMES, 1))
SMALL = ["--model.d-model", 32, "--model.layers", 2, "--model.heads", 2, "--model.d-mlp", 64, "--context", 32]
QUICK = ["--training.batch-size", 8, "--training.threads", 1, "--training.precision", "fp32", "--training.evaluate-windows", 8]


def succeed(*words, **options):
    code, out, err = tiny.run_command(*words, **options)
    assert code == 0, err
    return out


def greedy_in_transformers(folder, prompt, count):
    """What somebody else's tools write with the model."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert next(model.parameters()).dtype == torch.float32
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    written = model.generate(ids, do_sample=False, max_new_tokens=count, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.decode(written[0], skip_special_tokens=True)


def test_from_a_text_file_to_a_model_that_transformers_opens(tmp_path):
    (tmp_path / "book.txt").write_text(BOOK)
    words = ["pretrain", "book.txt", "--out", "run", "--steps", 60, "--vocab-size", 300, *SMALL, *QUICK]
    out = succeed(*words, cwd=tmp_path)
    run = tmp_path / "run"
    assert [line.split()[0] for line in out.splitlines()] == ["run:", "read", "write"]
    assert {path.name for path in run.iterdir()} >= {
        "recipe.toml",
        "run.json",
        "metrics.jsonl",
        "checkpoints",
        "model",
        "samples.md",
        "report.html",
    }
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0] - 1  # it did learn

    text = succeed("generate", "run", "Alice was", "--temperature", 0, "--max-tokens", 12, cwd=tmp_path)
    assert text.startswith("Alice was")
    assert text == greedy_in_transformers(run / "model", "Alice was", 12) + "\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book.txt", "run"]  # nothing else was left about


def test_text_may_come_through_a_pipe(tmp_path):
    words = ["pretrain", "-", "--out", "run", "--steps", 3, "--tokenizer", "chars", "--json", *SMALL, *QUICK]
    result = json.loads(succeed(*words, text=BOOK, cwd=tmp_path))
    assert result["last"]["step"] == 3
    info = json.loads((tmp_path / "run/run.json").read_text())
    assert info["corpus"]["bytes"] == len(BOOK.encode())
    assert info["corpus"]["names"] == ["standard input"]
    out = succeed("generate", "run", "-", "--temperature", 0, "--max-tokens", 4, text="Alice", cwd=tmp_path)
    assert out == greedy_in_transformers(tmp_path / "run/model", "Alice", 4) + "\n"


@pytest.mark.parametrize("kind", ["chars", "bpe"])
def test_chinese_poems(tmp_path, data, cli, kind):
    poems = json.loads((data / "text/songci/宋词三百首.json").read_text(encoding="utf-8"))
    with (tmp_path / "词.jsonl").open("w", encoding="utf-8") as file:
        for poem in poems:
            file.write(json.dumps({"作者": poem["author"], "词": "\n".join(poem["paragraphs"])}, ensure_ascii=False) + "\n")
    tokenizer = ["--tokenizer", "chars"] if kind == "chars" else ["--vocab-size", 400]
    run = tmp_path / "宋词"
    words = ["pretrain", tmp_path / "词.jsonl", "--text-field", "词", "--out", run, "--steps", 40, *tokenizer, *SMALL, *QUICK]
    code, _, err = cli(*words)
    assert code == 0, err
    info = json.loads((run / "run.json").read_text())
    assert info["tokens"]["bytes_per_token"] == pytest.approx(3 if kind == "chars" else 1.5, rel=0.3)
    code, out, err = cli("generate", run, "明月", "--temperature", 0, "--max-tokens", 10)
    assert (code, err) == (0, "")
    assert out == greedy_in_transformers(run / "model", "明月", 10) + "\n"
    assert "明月" in (run / "samples.md").read_text(encoding="utf-8") or "。" in (run / "samples.md").read_text(
        encoding="utf-8"
    )
    assert "宋词" in (run / "report.html").read_text(encoding="utf-8")


def test_the_recipe_of_a_run_repeats_it_in_another_process(tmp_path, cli):
    """The same bits from the file that the run wrote, through the command line."""
    tiny.write_corpus(tmp_path / "text")
    assert cli("pretrain", tmp_path / "text", "--out", tmp_path / "one", "--steps", 5, *tiny.options())[0] == 0
    succeed("pretrain", "--recipe", tmp_path / "one/recipe.toml", "--out", tmp_path / "two", cwd=tmp_path)
    for name in ("model/model.safetensors", "recipe.toml", "tokenizer.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_terminal_sees_bars_and_a_log_sees_lines(tmp_path):
    """Progress for whoever reads: a pseudo-terminal gets a bar, a pipe gets a line for each evaluation."""
    import pty

    tiny.write_corpus(tmp_path / "text")
    words = ["pretrain", tmp_path / "text", "--steps", 6, *tiny.options(training={"evaluate_every": 3})]
    master, slave = pty.openpty()
    process = tiny.command(
        *words, "--out", tmp_path / "run", stderr=slave, env=os.environ | {"TERM": "xterm", "COLUMNS": "150"}
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    text = shown.decode()
    assert "training" in text
    assert "tokens/s" in text
    assert "100 %" in text
    assert "step 3: validation loss" in text
    assert "validation loss" not in out


def test_the_working_directory_as_run_folder(tmp_path):
    """It works, or is refused before the work; it must not lose the work, nor the folder under the user's feet."""
    text, here = tiny.write_corpus(tmp_path / "text"), tmp_path / "here"
    here.mkdir()
    code, _, err = tiny.run_command("pretrain", text, "--out", ".", "--steps", 2, *tiny.options(), cwd=here)
    if code == 0:
        assert (here / "model/model.safetensors").is_file()
    else:
        assert (code, err.count("\n")) == (2, 1)
        assert err.endswith("choose another --out\n")
