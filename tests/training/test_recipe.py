"""A recipe says everything, survives its own file, and refuses what it does not understand in one sentence."""

import math
import tomllib
from pathlib import Path

import pytest
import tiny
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pellucid.core.errors import ConfigError
from pellucid.training.recipe import LENGTHS, Recipe, Schedule, Training

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
counts = st.integers(1, 10**12)
shares = st.floats(0, 1)
rates = st.floats(0, allow_infinity=False, exclude_min=True)

FIELDS = {
    "data": {
        "corpus": st.lists(texts, max_size=3),
        "validation": st.lists(texts, max_size=2),
        "validation_fraction": st.floats(0, 1, exclude_min=True, exclude_max=True),
        "text_field": texts,
        "encoding": texts,
        "on_bad_bytes": st.sampled_from(["error", "replace"]),
        "html_breaks": st.booleans(),
        "deduplicate": st.booleans(),
        "document_masks": st.booleans(),
    },
    "tokenizer": {"kind": st.sampled_from(["bpe", "wordpiece", "chars"]) | texts, "vocab_size": counts},
    "model": {
        "family": st.sampled_from(["qwen3", "bert", "lstm"]),
        "size": texts,
        "dropout": st.floats(0, 1, exclude_max=True),
        "context_length": st.integers(2, 10**6),
        **dict.fromkeys(("d_model", "layers", "heads", "kv_heads", "d_mlp"), counts),
        "tied": st.booleans(),
    },
    "objective": {
        "name": st.sampled_from(["clm", "mlm", "spans"]),
        "rate": st.floats(0, 1, exclude_min=True, exclude_max=True),
        "whole_words": st.booleans(),
        "mean_span": st.floats(1, 100),
    },
    "optimizer": {
        "name": st.sampled_from(["muon", "adamw"]),
        **dict.fromkeys(("matrix_learning_rate", "learning_rate"), st.floats(0, 100, exclude_min=True)),
        "clip": rates,
        "weight_decay": st.floats(0, 10),
        **dict.fromkeys(("momentum", "beta1", "beta2"), st.floats(0, 1, exclude_max=True)),
    },
    "schedule": {
        "kind": st.sampled_from(["wsd", "cosine"]),
        **dict.fromkeys(("warmup", "decay", "floor"), shares),
    },
    "training": {
        "steps": counts,
        "tokens": counts,
        "minutes": rates,
        "batch_size": counts,
        **dict.fromkeys(("micro_batch", "threads", "evaluate_every", "checkpoint_every"), counts | st.just("auto")),
        "seed": st.integers(0, 2**63 - 1),
        "device": texts,
        "precision": st.sampled_from(["auto", "fp32", "bf16"]),
        "compile": st.sampled_from(["auto", "on", "off"]),
        "recompute": st.booleans(),
        "evaluate_windows": counts | st.just("all"),
        "target_loss": rates,
        "patience": counts,
        "keep": counts,
        "prompt": texts,
        "tensorboard": st.booleans(),
    },
}


def test_every_field_of_a_recipe_is_among_those_tried_here():
    there = {name: sorted(info.annotation.model_fields) for name, info in Recipe.model_fields.items()}
    assert there == {name: sorted(fields) for name, fields in FIELDS.items()}


@st.composite
def chosen(draw):
    """Some fields, any values, without those that contradict others."""
    fields = {name: draw(st.fixed_dictionaries({}, optional=section)) for name, section in FIELDS.items()}
    length = draw(st.sampled_from(LENGTHS))
    for name in set(LENGTHS) - {length}:
        fields["training"].pop(name, None)
    for name, info in Recipe.model_fields.items():
        for idle in info.annotation.model_construct(**fields[name]).without_effect():
            fields[name].pop(idle, None)
    schedule = Schedule.model_construct(**fields["schedule"])
    if schedule.kind == "wsd" and schedule.warmup + schedule.decay > 1:
        fields["schedule"].pop("warmup", None)
        fields["schedule"].pop("decay", None)
    return fields


def reloaded(recipe: Recipe, folder: Path) -> Recipe:
    (folder / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    return Recipe.load(folder / "recipe.toml")


@settings(max_examples=200)
@given(fields=chosen())
def test_a_recipe_comes_back_from_its_file_as_it_was(fields, tmp_path_factory):
    recipe = Recipe.of(fields)
    again = reloaded(recipe, tmp_path_factory.mktemp("recipe"))
    assert again.model_dump() == recipe.model_dump()
    assert again.to_toml() == recipe.to_toml()


# two good recipes can contradict each other, more often than hypothesis likes
@settings(max_examples=100, suppress_health_check=[HealthCheck.filter_too_much])
@given(base=chosen(), changes=chosen())
def test_overriding_changes_what_is_named_and_keeps_the_rest(base, changes):
    try:
        both = Recipe.of(base).override(changes)
    except ConfigError as error:
        assume("has no effect" not in str(error) and "together exceed 1" not in str(error))
        raise
    given_lengths = changes["training"].keys() & set(LENGTHS)
    for section, fields in FIELDS.items():
        for name in fields:
            value = getattr(getattr(both, section), name)
            if name in changes[section]:
                assert value == changes[section][name]
            elif name in LENGTHS and given_lengths:
                assert value is None  # a new length replaces the old one
            elif name in base[section]:
                assert value == base[section][name]
            else:
                assert name not in getattr(both, section).model_fields_set


def test_the_file_says_what_every_field_means():
    text = Recipe().to_toml()
    tomllib.loads(text)
    for name, info in Recipe.model_fields.items():
        assert f"[{name}]" in text
        for field, about in info.annotation.model_fields.items():
            [line] = [
                line
                for line in text.splitlines()
                if line.removeprefix("# ").startswith(f"{field} =") and line.endswith(f"# {about.description}")
            ]
            assert line


def message(call, *arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"optimizer": {"leraning_rate": 1}},
            "recipe: unknown key 'optimizer.leraning_rate'; did you mean 'optimizer.learning_rate'?",
        ),
        (
            {"training": {"learning_rate": 1}},
            "recipe: unknown key 'training.learning_rate'; did you mean 'optimizer.learning_rate'?",
        ),
        ({"training": {"step": 1}}, "recipe: unknown key 'training.step'; did you mean 'training.steps'?"),
        ({"training": {"heads": 1}}, "recipe: unknown key 'training.heads'; did you mean 'model.heads'?"),
        ({"modle": {}}, "recipe: unknown key 'modle'; did you mean 'model'?"),
        ({"steps": 5}, "recipe: unknown key 'steps'; did you mean 'training.steps'?"),
        (
            {"training": {"zzzzzz": 1}},
            f"recipe: unknown key 'training.zzzzzz'; the keys of training are {', '.join(Training.model_fields)}",
        ),
        (
            {"zzzzzz": {}},
            "recipe: unknown key 'zzzzzz'; the sections are data, tokenizer, model, objective, optimizer, schedule, training",
        ),
        (
            {"training": {"steps": 5, "minutes": 1}},
            "recipe: steps and minutes are both given; the length of a run is one of steps, tokens, minutes",
        ),
        ({"training": {"steps": 0}}, "recipe: training.steps = 0 will not do: it must be greater than or equal to 1"),
        ({"training": {"steps": -3}}, "recipe: training.steps = -3 will not do: it must be greater than or equal to 1"),
        ({"training": {"micro_batch": 0}}, "recipe: micro_batch must be at least 1, not 0"),
        (
            {"training": {"precision": "fp8"}},
            "recipe: training.precision = 'fp8' will not do: it must be 'auto', 'fp32' or 'bf16'",
        ),
        ({"schedule": {"warmup": 0.7, "decay": 0.5}}, "recipe: warmup (0.7) and decay (0.5) together exceed 1"),
        ({"schedule": {"kind": "cosine", "decay": 0.5}}, "recipe: decay has no effect with cosine; leave it out"),
        ({"optimizer": {"name": "adamw", "momentum": 0.5}}, "recipe: momentum has no effect with adamw; leave it out"),
        (
            {"tokenizer": {"kind": "chars", "vocab_size": 99}},
            "recipe: vocab_size has no effect with tokenizer 'chars', which decides its own; leave it out",
        ),
        (
            {"data": {"validation": ["x.txt"], "validation_fraction": 0.1}},
            "recipe: validation_fraction has no effect when validation files are given; leave it out",
        ),
        (
            {"optimizer": {"learning_rate": math.nan}},
            "recipe: optimizer.learning_rate = nan will not do: it must be a finite number",
        ),
        (
            {"optimizer": {"matrix_learning_rate": 1e39}},
            "recipe: optimizer.matrix_learning_rate = 1e+39 will not do: it must be less than or equal to 100",
        ),
    ],
)
def test_nonsense_is_one_sentence_with_the_way_out(fields, expected):
    assert message(Recipe.of, fields) == expected


@pytest.mark.parametrize(("section", "name"), [("optimizer", "learning_rate"), ("optimizer", "clip"), ("training", "minutes")])
def test_infinity_is_refused_since_no_file_could_hold_it(section, name):
    expected = f"recipe: {section}.{name} = inf will not do: it must be a finite number"
    assert message(Recipe.of, {section: {name: math.inf}}) == expected


@pytest.mark.parametrize("value", [True, "10", 2.5])
def test_a_number_of_steps_is_a_whole_number_and_nothing_that_looks_like_one(value):
    assert message(Recipe.of, {"training": {"steps": value}}).startswith(
        f"recipe: training.steps = {value!r} will not do: it must be "
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[training\n", "Expected ']' at the end of a table declaration (at line 1, column 10)"),
        (b"a = 1\na = 2\n", "Cannot overwrite a value (at line 2, column 6)"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ],
)
def test_a_file_that_is_no_toml_is_named(tmp_path, content, reason):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    assert message(Recipe.load, path) == f"{path} cannot be read as TOML: {reason}"


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "gone.toml"
    assert message(Recipe.load, path) == f"{path} does not exist; give --recipe the path of a TOML file"


def test_a_misspelt_key_names_the_file_it_is_in(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[training]\nstesp = 3\n")
    assert message(Recipe.load, path) == f"{path}: unknown key 'training.stesp'; did you mean 'training.steps'?"


@pytest.mark.parametrize(
    "path", sorted((Path(tiny.__file__).parents[1] / "recipes").glob("*.toml")), ids=lambda path: path.name
)
def test_the_recipes_that_we_ship_are_valid_and_say_how_long_they_run(path):
    training = Recipe.load(path).training
    assert [name for name in LENGTHS if getattr(training, name) is not None]


def test_a_resolved_recipe_repeats_its_run_bit_for_bit(tmp_path):
    run = tiny.pretrain(tmp_path / "run", optimizer={"name": "adamw"}, schedule={"kind": "cosine"})
    recipe = Recipe.load(run.path / "recipe.toml")
    assert recipe.to_toml() == (run.path / "recipe.toml").read_text(encoding="utf-8")
    assert all(value != "auto" for _, section in recipe for value in section.model_dump().values())

    import pellucid
    from pellucid.text.corpus import Corpus

    again = pellucid.pretrain(Corpus.of(tiny.DOCUMENTS), out=tmp_path / "again", recipe=run.path / "recipe.toml")
    assert (again.path / "recipe.toml").read_bytes() == (run.path / "recipe.toml").read_bytes()
    assert (again.path / "model/model.safetensors").read_bytes() == (run.path / "model/model.safetensors").read_bytes()
