"""Every command and every line of Python in the README does what it says."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
COMMANDS = [
    line.split("#")[0].strip()
    for language, block in BLOCKS
    if not language
    for line in block.splitlines()
    if line.startswith(("make ", "pip ", "pellucid "))
]
SNIPPETS = [block for language, block in BLOCKS if language == "python"]
QUICK = ["--size", "300k", "--vocab-size", "300", "--context", "32", "--training.threads", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the texts and, from the README's own pretrain command, the run."""
    folder = tmp_path_factory.mktemp("readme")
    tiny.write_corpus(folder / "my_texts")
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def run(cli, command):
    words = shlex.split(command.replace("--minutes 10", "--minutes 0.02"))[1:]
    return cli(*words, *(QUICK if words[0] == "pretrain" else []))


def test_the_readme_has_commands_and_python():
    assert len(COMMANDS) >= 5
    assert len(SNIPPETS) == 2


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("make ")])
def test_make_knows_the_target(command):
    subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_commands_do_what_they_say_in_their_order(here, cli):
    for command in COMMANDS:
        if command.startswith("pellucid "):
            code, out, err = run(cli, command)
            assert code == 0, f"{command}: {err}"
            assert out.strip(), command


def test_python_does_what_it_says(here, monkeypatch, capsys):
    import pellucid

    original = pellucid.pretrain

    def quick(corpus, *, out, minutes):
        return original(corpus, out=out, steps=3, force=True, **tiny.sections(model={"context_length": 128}))

    monkeypatch.setattr(pellucid, "pretrain", quick, raising=False)
    for snippet in SNIPPETS:
        exec(compile(snippet, "README.md", "exec"), {})
    assert "blocks.0.attn.pattern" in capsys.readouterr().out
