"""What users hold in Python: a model and a run, from any folder that has one."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import pellucid
from pellucid.core.errors import ConfigError, CorpusError, CorruptionError, ModelError, PellucidError, RunError
from pellucid.generation.text import Generation
from pellucid.loading import FORMS
from pellucid.network.network import Step
from pellucid.network.taps import Taps
from pellucid.text.corpus import Corpus


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run; nobody may change it."""
    return tiny.pretrain(tmp_path_factory.mktemp("runs") / "run", steps=6, training={"checkpoint_every": 2})


@pytest.fixture(scope="module")
def model(run):
    return run.model


def message(error, call, *arguments, **options):
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    return str(caught.value)


class TestLoad:
    def test_a_run_its_model_folder_and_a_checkpoint_are_all_models(self, run, model):
        ids = torch.tensor([model.tokenizer.encode("Alice was")])
        expected = model(ids).logits
        for path in (run.path, str(run.path), run.path / "model", run.path / "checkpoints/step-00000006"):
            loaded = pellucid.load(path)
            assert loaded.tokenizer.encode("Alice was") == ids[0].tolist()
            assert torch.equal(loaded(ids).logits, expected)
        assert pellucid.load(run.path).path == run.path / "model"

    def test_a_run_that_is_not_finished_is_its_newest_checkpoint(self, run, tmp_path):
        shutil.copytree(run.path, tmp_path / "run")
        shutil.rmtree(tmp_path / "run/model")
        shutil.rmtree(tmp_path / "run/checkpoints/step-00000006")
        assert pellucid.load(tmp_path / "run").path == tmp_path / "run/checkpoints/step-00000004"

    def test_a_run_without_a_checkpoint_says_how_to_go_on(self, run, tmp_path):
        shutil.copytree(run.path, tmp_path / "run")
        shutil.rmtree(tmp_path / "run/model")
        shutil.rmtree(tmp_path / "run/checkpoints")
        path = tmp_path / "run"
        expected = (
            f"{path} has no checkpoint yet; wait for its first one, or go on with: pellucid pretrain --resume --out {path}"
        )
        assert message(ModelError, pellucid.load, path) == expected
        info = json.loads((path / "run.json").read_text(encoding="utf-8")) | {"verb": "finetune", "model": "a model"}
        (path / "run.json").write_text(json.dumps(info), encoding="utf-8")
        words = f"pellucid finetune 'a model' --resume --out {path}"
        assert message(ModelError, pellucid.load, path).endswith(f", or go on with: {words}")

    def test_what_is_not_there_is_named(self, tmp_path):
        expected = f"{tmp_path / 'gone'} does not exist; give {FORMS}"
        assert message(ModelError, pellucid.load, tmp_path / "gone") == expected

    def test_a_folder_of_something_else_is_no_model(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        expected = f"{tmp_path} is not a model folder: it has no config.json"
        assert message(ModelError, pellucid.load, tmp_path) == expected

    def test_a_file_is_no_model(self, run):
        path = run.path / "metrics.jsonl"
        assert message(PellucidError, pellucid.load, path).startswith(f"{path} ")

    def test_a_model_whose_tokenizer_has_more_tokens_than_its_embedding_is_refused(self, run, tmp_path):
        """Else some texts would fail, or worse, in the middle of a service."""
        shutil.copytree(run.path / "model", tmp_path / "model")
        other = tiny.pretrain(tmp_path / "other", corpus=[*tiny.DOCUMENTS, "ßäöü"])
        shutil.copyfile(other.path / "model/tokenizer.json", tmp_path / "model/tokenizer.json")
        text = message(PellucidError, pellucid.load, tmp_path / "model")
        assert text.startswith(f"{tmp_path / 'model'}: the tokenizer has 56 tokens, but the network's vocabulary is 52")

    def test_a_flipped_byte_in_the_weights_is_noticed_and_the_file_named(self, run, tmp_path):
        shutil.copytree(run.path / "model", tmp_path / "model")
        path = tmp_path / "model/model.safetensors"
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)
        assert message(CorruptionError, pellucid.load, tmp_path / "model").startswith(f"{path} is damaged (its SHA-256")

    @pytest.mark.parametrize("manifest", ['{"manifest_version": 3}', '{"a": [{"b": 1}]}', '{"name": "x", "icons": []}', "[]"])
    def test_a_manifest_of_somebody_else_is_none_of_our_business(self, run, tmp_path, manifest):
        shutil.copytree(run.path / "model", tmp_path / "model")
        (tmp_path / "model/manifest.json").write_text(manifest)
        assert pellucid.load(tmp_path / "model").config

    def test_what_is_not_a_weight_may_be_changed(self, run, tmp_path):
        shutil.copytree(run.path / "model", tmp_path / "model")
        path = tmp_path / "model/config.json"
        path.write_text(path.read_text() + " ")
        assert pellucid.load(tmp_path / "model").config

    def test_a_truncated_weight_file_is_named(self, run, tmp_path):
        shutil.copytree(run.path / "model", tmp_path / "model")
        path = tmp_path / "model/model.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        assert str(path) in message((CorruptionError, ModelError), pellucid.load, tmp_path / "model")


class TestScore:
    @pytest.mark.parametrize("text", ["A", "Alice was", "Down, down, do"])
    @torch.no_grad()
    def test_it_is_the_log_probability_that_transformers_gives_every_token(self, run, model, text):
        theirs = AutoModelForCausalLM.from_pretrained(run.path / "model")
        tokenizer = AutoTokenizer.from_pretrained(run.path / "model")
        ids = [tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]
        logprobs = theirs(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        expected = [float(logprobs[i, ids[i + 1]]) for i in range(len(ids) - 1)]
        assert model.score(text).tolist() == pytest.approx(expected, abs=1e-4)

    def test_trained_text_is_likelier_than_noise(self, model):
        rarest = "".join(sorted(set(tiny.ALICE) - {"\n"}, key=tiny.ALICE.count)[:14])
        assert model.score("the hot day ma").mean() > model.score(rarest).mean()

    def test_an_empty_text_has_no_score(self, model):
        assert message(ConfigError, model.score, "") == "the text to score is empty; give at least one character"

    def test_a_text_of_exactly_one_context_is_scored_and_a_longer_one_refused(self, model):
        assert len(model.score("a" * 16)) == 16
        assert message(ConfigError, model.score, "a" * 17) == "17 tokens exceed the model's context of 16; pass fewer"


class TestSave:
    def test_what_is_saved_is_what_is_loaded_here_and_in_transformers(self, model, tmp_path):
        model.save(tmp_path / "copy")
        ids = torch.tensor([model.tokenizer.encode("Alice was")])
        again = pellucid.load(tmp_path / "copy")
        assert torch.equal(again(ids).logits, model(ids).logits)
        assert again.config == model.config
        assert again.tokenizer.fingerprint == model.tokenizer.fingerprint
        assert again.generate("Al", seed=3) == model.generate("Al", seed=3)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "copy")
        assert (theirs(ids).logits - model(ids).logits).abs().max() < 1e-4
        assert AutoTokenizer.from_pretrained(tmp_path / "copy").model_max_length == 16

    def test_nothing_is_overwritten_unless_force_is_given(self, model, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/notes.txt").write_text("precious")
        expected = f"{tmp_path / 'mine'} exists already; choose another name, or pass --force to replace it"
        assert message(ModelError, model.save, tmp_path / "mine") == expected
        assert (tmp_path / "mine/notes.txt").read_text() == "precious"
        model.save(tmp_path / "model")
        model.save(tmp_path / "model", force=True)
        assert pellucid.load(tmp_path / "model").config == model.config

    def test_the_run_it_came_from_is_saved_somewhere_else_whole(self, run, tmp_path):
        run.model.save(str(tmp_path / "deep/er/copy"))
        whole = {path.name for path in (run.path / "model").iterdir()} | {"generation_config.json"}
        assert {path.name for path in (tmp_path / "deep/er/copy").iterdir()} == whole

    def test_it_is_what_convert_writes(self, run, tmp_path):
        shutil.copytree(run.path / "model", tmp_path / "source")
        (tmp_path / "source/generation_config.json").write_text('{"eos_token_id": [0, 7]}')
        pellucid.load(tmp_path / "source").save(tmp_path / "saved")
        pellucid.convert(tmp_path / "source", tmp_path / "converted", to="hf")
        saved, converted = ({p.name: p.read_bytes() for p in (tmp_path / way).iterdir()} for way in ("saved", "converted"))
        assert saved == converted
        assert json.loads(saved["generation_config.json"])["eos_token_id"] == [0, 7]

    def test_only_a_model_is_replaced(self, model, tmp_path):
        (tmp_path / "notes.txt").write_text("precious")
        expected = f"{tmp_path} is not a model of this form, so it will not be replaced; choose another name"
        assert message(ModelError, lambda: model.save(tmp_path, force=True)) == expected


def without_head(number):
    def edit(mixed):
        mixed = mixed.clone()
        mixed[:, number] = 0
        return mixed

    return edit


class TestEditAndRecord:
    @pytest.mark.parametrize("precision", [None, "fp32", "int8", "int4"])
    def test_an_edited_model_writes_and_scores_as_its_forward_pass_says(self, run, precision):
        model = pellucid.load(run.path, precision=precision)
        banned = model.generate("Alice", max_tokens=1, temperature=0).tokens
        edits = {"blocks.0.attn.mixed": without_head(0), "blocks.0.mlp.neurons": 0.1}
        edits["logits"] = lambda logits: torch.cat(
            [logits[:, :, : banned[0]], torch.full_like(logits[:, :, :1], -1e9), logits[:, :, banned[0] + 1 :]], dim=-1
        )
        edited, ids = model.edit(edits), model.tokenizer.encode("Alice was")
        with torch.no_grad():
            logits = model(torch.tensor([ids]), taps=Taps(edit=edits)).logits[0]
            for _ in range(6):
                ids.append(int(logits[-1].argmax()))
                logits = model(torch.tensor([ids]), taps=Taps(edit=edits)).logits[0]
        assert edited.generate(ids[:-6], max_tokens=6, temperature=0).tokens == ids[-6:]
        assert not {*banned} & {*ids[-6:]}
        scores = edited.score("Alice was")
        before = [model.tokenizer.end_of_text, *model.tokenizer.encode("Alice was")]
        expected = model(torch.tensor([before[:-1]]), taps=Taps(edit=edits)).logits[0].float().log_softmax(-1)
        assert torch.allclose(scores, expected.gather(1, torch.tensor(before[1:])[:, None])[:, 0], atol=1e-4)
        assert not torch.allclose(scores, model.score("Alice was"), atol=1e-2)

    def test_an_edited_model_is_evaluated(self, model):
        held_out = Corpus.of(["Alice was beginning to get very tired of sitting by her sister."])
        plain, same = pellucid.evaluate(model, held_out), pellucid.evaluate(model.edit({}), held_out)
        worse = pellucid.evaluate(model.edit({"logits": 0}), held_out)
        assert same.loss == plain.loss
        assert worse.loss == pytest.approx(math.log(model.config.vocab_size))

    def test_a_compiled_step_is_left_out_since_it_knows_no_taps(self, run):
        model = pellucid.load(run.path, precision="fp32")
        model.network.held = replace(model.network.held, step=Step(run=lambda *_: pytest.fail("it was used"), sizes=(2,)))
        assert model.edit({"blocks.0.mlp.out": 0}).generate("Alice", max_tokens=2).tokens
        assert "they know no taps" in message(ConfigError, model.edit({"hidden": 0}).compile)
        with model.record("hidden") as seen:
            model.generate("Alice", max_tokens=2)
            assert "they know no taps" in message(ConfigError, model.compile)
        assert seen["hidden"].shape[-1] == model.config.d_model

    def test_what_passes_is_recorded(self, model):
        with model.record("blocks.*.attn.pattern", "hidden") as seen:
            out = model(torch.tensor([model.tokenizer.encode("Alice was")]))
        assert torch.equal(seen["hidden"], out.hidden)
        assert [*seen] == ["blocks.0.attn.pattern", "hidden"]

    def test_edits_are_neither_saved_nor_trained_on(self, model, tmp_path):
        edited = model.edit({"hidden": 0})
        assert "cannot be saved, since its edits are no weights" in message(ModelError, edited.save, tmp_path / "edited")
        found = message(ModelError, pellucid.finetune, edited, tmp_path / "x.csv", out=tmp_path / "run", task="classify")
        assert "cannot be fine-tuned" in found
        assert not any(tmp_path.iterdir())
        with model.record("hidden"):
            model.save(tmp_path / "recorded")

    def test_what_is_edited_while_another_model_is_recorded_is_not(self, model):
        with model.record("hidden") as seen:
            edited = model.edit({"blocks.0.mlp.out": 0})
            edited.score("Alice was")
        assert not len(seen)
        assert "no site to record was given" in message(ConfigError, model.record().__enter__)


class TestGenerate:
    def test_one_prompt_gives_one_and_a_list_gives_a_list(self, model):
        one = model.generate("Al", max_tokens=5)
        assert isinstance(one, Generation)
        assert model.generate(["Al"], max_tokens=5) == [one]
        ids = model.tokenizer.encode("Al")
        assert model.generate(ids, max_tokens=5) == one
        assert model.generate([ids], max_tokens=5) == [one]
        assert model.generate(tuple(ids), max_tokens=5) == one
        assert [made.text for made in model.generate(["Al", "She"], max_tokens=5)] == [
            model.generate(prompt, max_tokens=5).text for prompt in ("Al", "She")
        ]
        assert model.generate([]) == []

    def test_ids_may_be_a_tensor_or_an_array(self, model):
        ids = model.tokenizer.encode("Alice")
        expected = model.generate(ids, max_tokens=5)
        assert model.generate(torch.tensor(ids), max_tokens=5) == expected
        assert model.generate(torch.tensor(ids).numpy(), max_tokens=5) == expected
        both = model.generate(torch.tensor([ids, ids]), max_tokens=5)
        assert [made.tokens for made in both] == [expected.tokens] * 2

    def test_every_option_reaches_the_sampling(self, model):
        plain = model.generate("Al", seed=1).tokens
        for option in (
            {"temperature": 0.0},
            {"temperature": 5.0},
            {"top_k": 1},
            {"top_p": 0.01},
            {"min_p": 0.99},
            {"typical_p": 0.01},
            {"seed": 2},
        ):
            assert model.generate("Al", **{"seed": 1} | option).tokens != plain, option
        assert model.generate("Al", temperature=0).tokens == model.generate("Al", top_k=1).tokens
        repeated = model.generate("Al", temperature=0.0).tokens
        assert len(set(model.generate("Al", temperature=0.0, repetition_penalty=50.0).tokens)) > len(set(repeated))

    def test_several_continuations_of_one_prompt_or_of_each(self, model):
        three = model.generate("Al", n=3, seed=1, max_tokens=6)
        assert three[0] == model.generate("Al", seed=1, max_tokens=6)
        assert len({tuple(one.tokens) for one in three}) == 3
        assert model.generate(["Al", "She"], n=3, seed=1, max_tokens=6)[0] == three

    def test_log_probabilities_of_the_prompt_are_those_of_score(self, model):
        ids = [model.tokenizer.end_of_text, *model.tokenizer.encode("Alice was")]
        told = model.generate(ids, max_tokens=2, prompt_logprobs=True, top_logprobs=2)
        assert told.prompt_logprobs == pytest.approx(model.score("Alice was").tolist(), abs=1e-4)
        assert [len(top) for top in told.top_logprobs] == [2] * len(told.tokens)

    def test_a_setting_that_there_is_not_is_an_error(self, model):
        with pytest.raises(TypeError, match="temprature"):
            model.generate("Al", temprature=2.0)

    def test_a_stream_is_the_text_in_pieces(self, model):
        for options in ({"seed": 4}, {"temperature": 0.0}, {"seed": 4, "stop": "e", "max_tokens": 9}):
            assert "".join(model.stream("Al", **options)) == model.generate("Al", **options).text

    def test_a_stream_says_what_is_wrong_with_its_options(self, model):
        assert message(ConfigError, lambda: list(model.stream("Al", top_k=0))) == "top_k must be at least 1, not 0"

    def test_a_stream_searches_too_and_a_penalty_without_beams_is_refused(self, model):
        for penalty in (1.0, -2.0):
            options = {"beams": 3, "max_tokens": 8, "length_penalty": penalty}
            assert "".join(model.stream("Al", **options)) == model.generate("Al", **options).text
        expected = "length_penalty 2.0 has no effect without beams; leave it out, or give 2 beams or more"
        assert message(ConfigError, model.generate, "Al", length_penalty=2.0) == expected
        assert message(ConfigError, lambda: list(model.stream("Al", length_penalty=2.0))) == expected


@pytest.mark.parametrize("id", [-1, 52, 99])
def test_an_id_outside_the_vocabulary_is_one_sentence(model, id):
    expected = f"token id {id} is not in the vocabulary of 52"
    assert message(ConfigError, model, torch.tensor([[3, id, 4]])) == expected
    assert message(ConfigError, model.generate, [3, id, 4]) == expected


def test_calling_a_model_gives_logits_and_hidden_states(model):
    out = model(torch.zeros(2, 7, dtype=torch.long))
    assert out.logits.shape == (2, 7, 52)
    assert out.hidden.shape == (2, 7, 32)
    assert {site.name for site in model.sites()} >= {"embedding", "blocks.0.attn.pattern", "logits"}


def test_metrics_are_rows_with_steps(run):
    assert [row["step"] for row in run.metrics if "loss" in row] == [1, 2, 3, 4, 5, 6]
    last = [row for row in run.metrics if "validation_loss" in row][-1]
    assert set(last) == {"step", "validation_loss", "perplexity", "bits_per_byte", "seconds", "sample"}


class TestPretrain:
    def test_a_corpus_may_be_a_path_paths_texts_or_a_corpus(self, tmp_path):
        folder = tiny.write_corpus(tmp_path / "text")
        files = sorted(folder.iterdir())
        losses = set()
        for number, corpus in enumerate(
            [folder, str(folder), [folder], files, iter(tiny.DOCUMENTS), Corpus.of(tiny.DOCUMENTS)]
        ):
            run = pellucid.pretrain(corpus, out=tmp_path / f"run{number}", steps=1, **tiny.sections())
            losses.add(run.metrics[0]["loss"])
        assert len(losses) <= 2  # files and texts in memory are the same documents, perhaps in another order
        recipe = (tmp_path / "run1/recipe.toml").read_text()
        assert json.dumps([str(folder)]) in recipe

    def test_without_a_corpus_it_says_what_to_give(self, tmp_path):
        expected = "no corpus was given; name files, folders, globs, - or hf:NAME"
        assert message(CorpusError, pellucid.pretrain, out=tmp_path / "run") == expected
        assert message(CorpusError, pellucid.pretrain, [], out=tmp_path / "run") == expected

    def test_a_misspelt_field_is_an_error(self, tmp_path):
        text = message(ConfigError, pellucid.pretrain, "x", out=tmp_path / "run", training={"stepz": 5})
        assert text == "options: unknown key 'training.stepz'; did you mean 'training.steps'?"

    def test_it_runs_in_a_thread_of_a_larger_program(self, tmp_path):
        """Only the main thread may listen to signals."""
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(tiny.pretrain, tmp_path / "run").result(timeout=100)
        assert run.metrics[-1]["step"] == 4

    def test_force_replaces_a_run_and_nothing_else_does(self, tmp_path):
        first = tiny.pretrain(tmp_path / "run").path
        text = message(RunError, tiny.pretrain, first)
        assert text == f"{first} exists already; pass --resume to continue it, or --force to delete it and start anew"
        again = pellucid.pretrain(Corpus.of(tiny.DOCUMENTS), out=first, steps=2, force=True, **tiny.sections())
        assert again.metrics[-1]["step"] == 2

    def test_the_recipe_of_the_caller_is_not_changed(self, tmp_path):
        sections = tiny.sections()
        before = json.dumps(sections)
        pellucid.pretrain(Corpus.of(tiny.DOCUMENTS), out=tmp_path / "run", steps=1, **sections)
        assert json.dumps(sections) == before
