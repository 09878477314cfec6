"""Every command and every line of Python in the README does what it says."""

import json
import re
import shlex
import signal
import subprocess
from pathlib import Path

import httpx
import pytest
import tiny

ROOT = Path(__file__).parents[1]


def blocks(page):
    return re.findall(r"```(\w*)\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


BLOCKS = blocks("README.md")
COMMANDS = [
    line.split("#")[0].strip()
    for language, block in BLOCKS
    if not language
    for line in block.splitlines()
    if line.startswith(("make ", "pip ", "pellucid "))
]
SNIPPETS = [block for language, block in BLOCKS if language == "python"]
QUICK = ["--size", "300k", "--vocab-size", "300", "--context", "128", "--training.threads", "1"]
FEW = ["--steps", "2", "--training.threads", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the texts and, from the README's own pretrain command, the run."""
    folder = tmp_path_factory.mktemp("readme")
    tiny.write_corpus(folder / "my_texts")
    rows = "".join(
        f"a {word} film about {n},{label}\n" for n in range(20) for word, label in (("fine", "good"), ("dull", "bad"))
    )
    (folder / "my_labels.csv").write_text("text,label\n" + rows, encoding="utf-8")
    talks = [{"prompt": f"What is {n} and 1?", "response": f"It is {n + 1}."} for n in range(20)]
    (folder / "my_answers.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks), encoding="utf-8")
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def run(cli, command):
    words = shlex.split(command.replace("--minutes 10", "--minutes 0.02"))[1:]
    if words[0] == "serve":
        return serve(words)
    return cli(
        *words,
        *{
            "pretrain": QUICK,
            "finetune": FEW,
            "generate": ["--max-tokens", "20"],
            "explain": ["--threads", "1", "--quiet", "--force"],
            "bench": ["--prompt", "20", "--tokens", "20", "--compile", "no"],
        }.get(words[0], []),
    )


def serve(words):
    """What a server says when it is there; it is asked for a text, and told to end."""
    process = tiny.command(*words, "--port", 0, "--compile", "no")
    line = process.stdout.readline()
    address = line.split()[2].removesuffix(",")
    answer = httpx.post(f"{address}/completions", json={"model": "mine", "prompt": "Alice", "max_tokens": 5}, timeout=60)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert answer.status_code == 200, answer.text
    return process.returncode, line, err


def test_the_readme_has_commands_and_python():
    assert len(COMMANDS) >= 5
    assert len(SNIPPETS) == 4


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("make ")])
def test_make_knows_the_target(command):
    subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_commands_do_what_they_say_in_their_order(here, cli):
    for command in COMMANDS:
        if command.startswith("pellucid "):
            code, out, err = run(cli, command)
            assert code == 0, f"{command}: {err}"
            assert out.strip(), command


def test_commands_that_explain_do_what_they_say(here, cli):
    commands = [
        line.split("#")[0].strip()
        for language, block in blocks("docs/explaining.md")
        if not language
        for line in block.splitlines()
    ]
    assert len(commands) == 3
    if not (here / "runs/classifier").exists():  # where the commands of the README did not run before
        run(cli, "pellucid pretrain my_texts/ --out runs/mine --minutes 10")
        run(cli, "pellucid finetune runs/mine --data my_labels.csv --out runs/classifier")
    for command in commands:
        code, out, err = run(cli, command)
        assert code == 0, f"{command}: {err}"
        assert "written to" in out


def test_python_does_what_it_says(here, monkeypatch, capsys):
    import pellucid

    original = pellucid.pretrain

    def quick(corpus, *, out, minutes):
        return original(corpus, out=out, steps=3, force=True, **tiny.sections(model={"context_length": 128}))

    monkeypatch.setattr(pellucid, "pretrain", quick, raising=False)
    for snippet in SNIPPETS:
        exec(compile(snippet, "README.md", "exec"), {})
    assert "blocks.0.attn.pattern" in capsys.readouterr().out


def test_every_recipe_for_looking_inside_runs(here, capsys):
    recipes = [block for language, block in blocks("docs/looking-inside.md") if language == "python"]
    assert len(recipes) == 5
    if not (here / "runs/mine").exists():  # where the commands of the README did not run before
        tiny.pretrain(here / "runs/mine", steps=3, model={"layers": 2, "context_length": 128})
    together = {}
    for recipe in recipes:
        exec(compile(recipe, "docs/looking-inside.md", "exec"), together)
        assert capsys.readouterr().out.strip()
