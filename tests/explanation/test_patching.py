"""Activation patching against single edits of the model, and the screen against small steps."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from asked import classifier, filler, of_answers, question, writer

from pellucid.core.errors import ConfigError
from pellucid.core.precision import Holding
from pellucid.explanation.patching import Place, choose, patch, places_of
from pellucid.explanation.question import read
from pellucid.network.holding import hold
from pellucid.network.taps import Taps

FIRST, SECOND = "Alice saw the rabbit", "Alice was the rabbit"
ASKED = {
    "qwen3": lambda: question(writer("qwen3"), FIRST, target="a", foil="b"),
    "gpt2": lambda: question(writer("gpt2"), FIRST, target="a", foil="b"),
    "llama, continuations": lambda: question(writer("llama"), FIRST, target=" ran", foil=" fell down"),
    "t5": lambda: question(writer("t5"), FIRST, target=" ran", foil=" rolled"),
    "t5, a longer answer": lambda: question(writer("t5"), "Alice saw", target=" the rabbit run", foil="b"),
    "bert": lambda: question(classifier("bert"), FIRST, target="yes", foil="no"),
    "lstm": lambda: question(writer("lstm", layers=2), FIRST, target="a", foil="b"),
    "bag of words": lambda: question(writer("bag-of-words", layers=3), FIRST, target="a", foil="b"),
}


def other_of(asked):
    return "Alice was" if asked.text == "Alice saw" else SECOND


def one_at_a_time(asked, place, share=1.0):
    """The difference with one place edited, in whole passes of one text, from what was recorded in the other."""
    ids = read(asked.network, asked.tokenizer, other_of(asked))[1]
    network, length = asked.network, len(ids)

    def call(given, taps):
        return network(given.pop("ids"), taps=taps, **given)

    recorded = []

    def record(**given):
        taps = Taps(place.site)
        out = call(given, taps)
        recorded.append(taps[place.site])
        return out

    with torch.no_grad():
        of_answers(asked, record, torch.tensor([ids]))
    sources = iter(recorded)

    def edited(**given):
        source = next(sources)

        def change(x):
            new = x.clone()
            where = (0, place.position) if place.position is not None else (0, slice(length))
            until = slice(None) if place.site.startswith("decoder.") else slice(length)
            if place.head is not None:
                where = (0, place.head, until)
            elif place.position is None:
                where = (0, until)
            new[where] = x[where] + share * (source[where] - x[where])
            return new

        return call(given, Taps(edit={place.site: change}))

    with torch.no_grad():
        return float(of_answers(asked, edited, torch.tensor([asked.ids])))


@pytest.mark.parametrize("kind", ASKED)
def test_patches_in_batches_equal_single_edits(kind):
    asked = ASKED[kind]()
    found = patch(asked, other_of(asked))
    assert len(found.patched) == len(list(places_of(asked.network, len(asked.ids))))
    for one in found.patched[::5]:
        assert one.effect == pytest.approx(one_at_a_time(asked, one.place) - found.before, abs=2e-4), one.place


@pytest.mark.parametrize("kind", ["qwen3", "llama, continuations", "t5", "bert"])
def test_the_screen_is_the_slope_of_the_effect(kind):
    asked = ASKED[kind]()
    found = patch(asked, SECOND)
    for one in found.patched[::7]:
        step = 3e-3
        slope = (one_at_a_time(asked, one.place, step) - one_at_a_time(asked, one.place, -step)) / (2 * step)
        assert one.screened == pytest.approx(slope, abs=1e-2 * max(1, abs(slope))), one.place
    assert -1 <= found.correlation <= 1


def test_patching_the_whole_stream_at_the_last_token_gives_the_other_answer():
    asked = ASKED["qwen3"]()
    found = patch(asked, SECOND)
    last = Place("blocks.1.after", 2, position=len(asked.ids) - 1)
    assert found.share(found.effects[last]) == pytest.approx(1, abs=1e-4)
    changed = {number for number, (mine, theirs) in enumerate(found.tokens) if mine != theirs}
    below = {place.position: effect for place, effect in found.effects.items() if place.site == "embedding"}
    assert {position for position, effect in below.items() if abs(effect) > 1e-5} <= changed


def test_every_place_of_every_kind_is_there():
    asked = ASKED["qwen3"]()
    kinds = Counter(place.site.split(".", 2)[-1] for place in places_of(asked.network, 5))
    assert kinds == {"embedding": 5, "after": 10, "attn.mixed": 8, "mlp.out": 2}


def test_too_much_to_read_is_screened_and_some_are_left_to_chance():
    asked = ASKED["qwen3"]()
    places = list(places_of(asked.network, len(asked.ids)))
    found = patch(asked, SECOND, most_tokens=20 * len(asked.ids))
    assert len(found.patched) == 20
    largest = sorted(places, key=lambda place: -abs(found.screened[place]))[:10]
    assert set(largest) <= set(found.effects)
    assert len(choose(places, found.screened, 1, 10**6, 0)) == len(places)


def test_a_quantised_model_is_patched_without_the_screen():
    model = writer("llama", d_model=64, heads=2, kv_heads=1, d_head=32, d_mlp=128)
    hold(model.network, Holding(precision="int8"))
    found = patch(question(model, FIRST, target="a", foil="b"), SECOND)
    assert found.correlation is None
    assert found.screened == {}
    assert found.patched[0].effect != 0


def test_prompts_of_unequal_length_are_shown():
    with pytest.raises(
        ConfigError, match=r"the prompts have 20 and 21 tokens.*They are: 'A' 'l' .* - and: 'A' .*'w' 'e' 'r' 'e'"
    ):
        patch(ASKED["qwen3"](), "Alice were the rabbit")


def test_equal_prompts_are_refused():
    with pytest.raises(ConfigError, match="both prompts are 'Alice saw the rabbit'"):
        patch(ASKED["qwen3"](), FIRST)


def test_masks_must_stand_at_one_place():
    asked = question(filler(), "Alice saw the [MASK]abbit", target="r", foil="h")
    with pytest.raises(ConfigError, match=r"stands elsewhere than that of .*; put both at one place"):
        patch(asked, "Alice [MASK]aw the rabbit")
