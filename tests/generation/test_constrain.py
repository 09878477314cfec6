"""Text that must be something is that, whatever the model likes to write: this one likes nothing in particular."""

import json
import re
import time

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pellucid.core.errors import ConfigError, MissingExtraError, ModelError
from pellucid.generation import constrain
from pellucid.generation.constrain import Constraint
from pellucid.generation.generate import generate, stream
from pellucid.generation.settings import Sampling
from pellucid.text.tokenizer import Tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Ann", "Bo", "Zoë 😀"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2},
        "home": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "age", "tags", "home"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train_bpe(tiny.DOCUMENTS, 400)


@pytest.fixture(scope="module")
def network(tokenizer):
    return tiny.randomised(tiny.config(tokenizer.vocab_size + 30, context_length=400))


def written(network, tokenizer, constraint, count=6, **options):
    sampling = Sampling(seed=5, temperature=options.pop("temperature", 1.0))
    return generate(network, tokenizer, ["Alice"], sampling=sampling, n=count, constraint=constraint, **options)


def valid(person):
    return (
        [*person] == ["name", "age", "tags", "home"]
        and person["name"] in ("Ann", "Bo", "Zoë 😀")
        and 0 <= person["age"] <= 120
        and len(person["tags"]) <= 2
        and all(len(tag) <= 4 for tag in person["tags"])
        and person["home"] in (None, True, False)
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_json_always_parses_and_is_valid(network, tokenizer, temperature):
    for one in written(network, tokenizer, Constraint.json(PERSON), temperature=temperature):
        assert one.finish_reason == "stop"
        assert valid(json.loads(one.text))


def test_characters_can_be_json_too():
    tokenizer = Tokenizer.train_chars(['{"name": [1, 2, 3], "x": true, "y": false, null}0456789', *tiny.DOCUMENTS])
    network = tiny.randomised(tiny.config(tokenizer.vocab_size, context_length=200))
    schema = {"type": "array", "items": {"enum": [True, 12, "name"]}, "minItems": 2, "maxItems": 3}
    for one in written(network, tokenizer, Constraint.json(schema)):
        assert 2 <= len(json.loads(one.text)) <= 3


def test_a_real_models_json_is_valid_and_its_text_streams(smollm):
    """SmolLM2's tokens are byte-level, 49,152 of them."""
    options = {"max_tokens": 80, "constraint": Constraint.json(json.dumps(PERSON)), "sampling": Sampling(temperature=0.0)}
    [one] = generate(smollm.network, smollm.tokenizer, ["As JSON: Ann is 41."], **options)
    assert valid(json.loads(one.text))
    assert "".join(stream(smollm.network, smollm.tokenizer, "As JSON: Ann is 41.", **options)) == one.text


@pytest.fixture(scope="module")
def smollm():
    from llama_cpp import smollm2

    import pellucid

    return pellucid.load(smollm2())


@settings(max_examples=15, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(pattern=st.sampled_from([r"[0-9]{3}-[a-c]{2,5}", r"(yes|no), (sir|madam)\.", r"\d{4}-\d\d-\d\d", "é{2}😀?", "[^a]"]))
def test_a_regular_expression_is_matched_from_end_to_end(network, tokenizer, pattern):
    for one in written(network, tokenizer, Constraint.of(regex=pattern), count=3, max_tokens=60):
        assert re.fullmatch(pattern, one.text), one.text
        assert one.finish_reason == "stop"


@settings(max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(choices=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6), min_size=1, max_size=4))
def test_one_of_the_choices_is_written_to_the_letter(network, tokenizer, choices):
    for one in written(network, tokenizer, Constraint.one_of(choices), count=2, max_tokens=60):
        assert one.text in choices


def test_what_is_drawn_among_choices_is_drawn_as_the_model_likes_them(network, tokenizer):
    """One token each: the shares are the model's own, and a penalty or a temperature counts as ever."""
    ids = [tokenizer.encode(choice) for choice in ("a", "e", "t")]
    assert [len(one) for one in ids] == [1, 1, 1]
    made = written(network, tokenizer, Constraint.one_of(["a", "e", "t"]), count=300)
    with torch.no_grad():
        logits = network(torch.tensor([tokenizer.encode("Alice")])).logits[0, -1]
    expected = logits[[one[0] for one in ids]].softmax(-1)
    for choice, share in zip("aet", expected.tolist(), strict=True):
        assert sum(one.text == choice for one in made) / 300 == pytest.approx(share, abs=0.08)


def test_company_that_is_free_is_not_disturbed(network, tokenizer):
    free = generate(network, tokenizer, ["Alice", "She"], max_tokens=12, sampling=Sampling(seed=4))
    from pellucid.generation.engine import Engine
    from pellucid.generation.generate import requested
    from pellucid.generation.text import Text

    engine = Engine(network, known=tokenizer.vocab_size, slots=3, length=400)
    asked = [requested(network, tokenizer, prompt, 12, Sampling(seed=4), (), frozenset()) for prompt in ("Alice", "She", "Al")]
    texts = [Text(asked[0], tokenizer), Text(asked[1], tokenizer), Text(asked[2], tokenizer, Constraint.one_of(["no"]))]
    for text in texts:
        engine.add(text)
    while engine.busy:
        engine.step()
    assert [text.result() for text in texts[:2]] == free
    assert texts[2].result().text == "no"


def test_a_grammar_that_is_too_much_work_for_one_token_is_an_error(network, tokenizer):
    constraint = Constraint("regular expression", constrain.library().LLMatcher.grammar_from_regex("((a{100}){100}){100}"))
    with pytest.raises(ModelError, match=r"^the text cannot go on within its regular expression: .*too many"):
        written(network, tokenizer, constraint, count=1)


def test_a_grammar_that_grows_too_large_fails_alone(network, tokenizer, monkeypatch):
    def refuse(self):
        raise ModelError("the text cannot go on: fuel; make it simpler")

    monkeypatch.setattr(constrain.Matcher, "check", lambda self: refuse(self) if len(self.told) == 2 else self.told.append(0))
    monkeypatch.setattr(constrain.Matcher, "told", [], raising=False)
    for write in (
        lambda: written(network, tokenizer, Constraint.json(PERSON), count=1),
        lambda: list(stream(network, tokenizer, "Alice", constraint=Constraint.json(PERSON))),
    ):
        constrain.Matcher.told.clear()
        with pytest.raises(ModelError, match=r"^the text cannot go on: fuel; make it simpler$"):
            write()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"regex": "(a"}, "the regular expression cannot be used: unclosed group; correct it, or make it simpler"),
        (
            {"schema": "{"},
            "the JSON schema cannot be used: EOF while parsing an object at line 1 column 1; correct it",
        ),
        (
            {"schema": {"type": "objekt"}},
            "the JSON schema cannot be used: Invalid type: objekt; correct it, or make it simpler",
        ),
        ({"schema": {"$ref": "#/no"}}, "the JSON schema cannot be used: Pointer '/no' does not exist; correct it, or make it"),
        (
            {"schema": {"type": "string", "minLength": 5, "maxLength": 2}},
            "the JSON schema cannot be used: Unsatisfiable schema",
        ),
        ({"choices": []}, "choices must be a list of texts that are not empty, not []"),
        ({"choices": ["a", ""]}, "choices must be a list of texts that are not empty, not ['a', '']"),
        ({"choices": "ab"}, "choices must be a list of texts that are not empty, not 'ab'"),
        ({"regex": "a", "choices": ["b"]}, "regex and choices are both given; a text can be held to one of them"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(network, tokenizer, options, expected):
    with pytest.raises(ConfigError) as caught:
        written(network, tokenizer, Constraint.of(**options))
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "schema", ['{"a":' * 100_000, {"anyOf": [{"type": "string", "maxLength": n} for n in range(3000)]}, "[" * 10**5]
)
def test_a_monster_is_refused_or_used_within_seconds(network, tokenizer, schema):
    begun = time.perf_counter()
    try:
        constraint = Constraint.json(schema)
        assert written(network, tokenizer, constraint, count=1, max_tokens=4)[0].tokens
    except (ConfigError, ModelError) as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome will do
    assert time.perf_counter() - begun < 20


def test_pieces_of_words_cannot_be_held_to_a_form():
    tokenizer = Tokenizer.train_wordpiece(tiny.DOCUMENTS, 200)
    network = tiny.randomised(tiny.config(tokenizer.vocab_size, context_length=64))
    with pytest.raises(ModelError, match=r"^this model's tokenizer \(WordPiece\) does not keep a text's spaces, so it can be"):
        generate(network, tokenizer, ["alice"], constraint=Constraint.one_of(["no"]))


def test_without_the_extra_a_sentence_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError) as caught:
        Constraint.of(regex="a")
    assert str(caught.value) == (
        "text of a given form needs the extra `serve`, which is not installed; run: pip install 'pellucid[serve]'"
    )
