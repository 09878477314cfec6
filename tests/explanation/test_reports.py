"""What people look at: the page in a real browser, the picture, JSON, notebooks."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from asked import classifier, filler, writer
from browsers import FLAGS, chromium
from labellers import labeller
from markupsafe import escape
from playwright.sync_api import sync_playwright
from pupils import SIZES
from tiny import ALICE, randomised
from transformers import AutoModelForCausalLM

import pellucid
from pellucid.api import Model
from pellucid.core.errors import ConfigError
from pellucid.core.precision import Holding
from pellucid.explanation.parts import Moment, Story, parts_of
from pellucid.explanation.patching import patch
from pellucid.explanation.question import ask
from pellucid.explanation.report import patch_maps
from pellucid.network.families import FAMILIES
from pellucid.network.holding import hold
from pellucid.text.tokenizer import Tokenizer

HOSTILE = "a <img src=x onerror=alert(1)> </script><script>alert(2)</script> b"
TEXT = "Alice saw the rabbit run"


@pytest.fixture(scope="module")
def open_page():
    path = chromium()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        context = browser.new_context(offline=True)

        def opened(folder, html):
            (folder / "page.html").write_text(html, encoding="utf-8")
            page, wrong = context.new_page(), []
            page.on("console", lambda message: wrong.append(message.text))
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
            page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith("file:") else None)
            page.goto((folder / "page.html").as_uri())
            return page, wrong

        yield opened
        browser.close()


@pytest.fixture(scope="module")
def found():
    return pellucid.explain(writer("qwen3"), TEXT, target="a", foil="b", against="Alice was the rabbit run")


def test_the_page_opens_without_a_network_and_shows_every_part(open_page, found, tmp_path):
    page, wrong = open_page(tmp_path, found.to_html())
    titles = page.locator("h2").all_text_contents()
    assert len(titles) == 7
    assert found.verdict in page.locator(".verdict").inner_text()
    page.wait_for_function("document.querySelectorAll('#grid canvas').length === 8")
    page.wait_for_function("document.getElementById('map').width > 1")
    page.locator("#grid canvas").nth(5).click()
    assert page.locator("#which").inner_text() == "blocks.1.attn, head 1"
    page.locator("#looked span").nth(7).hover()
    assert page.locator("#looked span").nth(7).get_attribute("class") == "from"
    shown = [float(word.get_attribute("title") or 0) for word in page.locator("#looked span").all()]
    assert sum(shown) == pytest.approx(1, abs=0.05)
    assert not any(shown[8:])
    assert wrong == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_each_word_tells_its_number(open_page, found, tmp_path):
    page, _ = open_page(tmp_path, found.to_html())
    told = [float(word.get_attribute("title").split()[0]) for word in page.locator(".text").first.locator("span").all()]
    assert told == pytest.approx(found.leading.values.tolist(), abs=6e-4)
    assert page.locator(".text").first.inner_text() == TEXT


def test_no_heat_map_without_its_faithfulness(open_page, found, tmp_path):
    page, _ = open_page(tmp_path, found.to_html())
    for method in page.locator(".method").all():
        assert "chance" in method.inner_text()


def test_hostile_text_stays_text(open_page, tmp_path):
    words = Tokenizer.train_bpe([ALICE], 300)  # which takes any text
    model = Model(randomised(FAMILIES["gpt2"].new(vocab_size=300, context_length=128, **SIZES["gpt2"])), words)
    page, wrong = open_page(tmp_path, pellucid.explain(model, HOSTILE, methods=["occlusion"]).to_html())
    page.wait_for_function("document.getElementById('map').width > 1")
    assert wrong == []
    assert page.locator(".text").first.inner_text() == HOSTILE
    labels = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>')
    labelled = pellucid.explain(labeller("bert", labels=labels), TEXT, methods=["occlusion"])
    page, wrong = open_page(tmp_path, replace(labelled, name=HOSTILE).to_html())
    assert wrong == []
    assert page.locator("h1").inner_text() == HOSTILE


def test_two_thousand_tokens_do_not_freeze(open_page, tmp_path):
    shape = {"context_length": 2048, "layers": 4, "heads": 4, "kv_heads": 4}
    model = writer("llama", **shape)
    text = (ALICE.replace("\n", " ") * 2)[:2000]
    found = pellucid.explain(model, text, by="sentences", methods=["occlusion"], target="a", foil="b")
    html = found.to_html()
    assert len(html) < 5_000_000
    page, wrong = open_page(tmp_path, html)
    page.wait_for_function("document.getElementById('map').width > 1", timeout=10_000)
    took = page.evaluate("""() => { const start = performance.now();
        document.querySelectorAll('#grid canvas')[9].click(); return performance.now() - start }""")
    assert took < 1000
    assert wrong == []


OTHERS = {
    "classifier": lambda: pellucid.explain(classifier("bert"), "Alice saw the rabbit", target="yes"),
    "tagger": lambda: pellucid.explain(labeller("bert", head="tag", labels=("O", "B-x")), "Alice saw", word=1, target="B-x"),
    "filler": lambda: pellucid.explain(filler(), "Alice saw the [MASK]abbit"),
    "t5": lambda: pellucid.explain(writer("t5"), TEXT, target=" ran", foil=" fell", against="Alice was the rabbit run"),
    "lstm": lambda: pellucid.explain(writer("lstm"), TEXT, against="Alice was the rabbit run"),
    "bag of words": lambda: pellucid.explain(writer("bag-of-words"), TEXT),
    "continuation": lambda: pellucid.explain(writer("gpt2"), TEXT, target=" down the hole"),
    "one word": lambda: pellucid.explain(writer("gpt2"), "Alice"),
    "numbers": lambda: pellucid.explain(classifier("gpt2", problem="regression", labels=("score",)), TEXT),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_every_kind_of_model_has_a_page_a_picture_and_json(kind, tmp_path):
    found = OTHERS[kind]()
    for name in ("a.html", "a.json", "a.png", "a.svg"):
        found.save(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    told = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert told["difference"] == pytest.approx(found.difference)
    assert [one["method"] for one in told["attributions"]] == [one.method for one in found.attributions.found]
    assert all("faithfulness" in one for one in told["attributions"])
    assert found.answer.endswith(".")
    assert found.lines()[1] == found.verdict
    assert "<p>" in found._repr_html_()


def test_nothing_is_overwritten_unasked(found, tmp_path):
    found.save(tmp_path / "a.json")
    with pytest.raises(ConfigError, match=r"a.json exists already; choose another name, or pass --force to replace it"):
        found.save(tmp_path / "a.json")
    found.save(tmp_path / "a.json", force=True)
    with pytest.raises(ConfigError, match=r"a.txt: this is written as .html, .json, .png, .svg, .pdf, not '.txt'"):
        found.save(tmp_path / "a.txt")


def test_cards_and_stories_have_pages(open_page, tmp_path):
    model = writer("qwen3")
    parts = parts_of(model.network, model.tokenizer, [ALICE], name=HOSTILE, windows=4, length=40)
    page, wrong = open_page(tmp_path, parts.to_html())
    assert page.locator(".card").count() == 8
    assert page.locator(".map").count() == 8
    assert wrong == []
    scores = {"induction": np.array([[0.1, 0.9]])}
    story = Story("a run", (Moment(1, 4.0, scores), Moment(100, 2.0, scores)))
    page, wrong = open_page(tmp_path, story.to_html())
    assert page.locator("svg").count() == 1
    assert wrong == []
    story.save(tmp_path / "story.json")
    assert json.loads((tmp_path / "story.json").read_text())["checkpoints"][1]["loss"] == 2.0


def test_attention_in_the_page_equals_transformers(tmp_path):
    """The bytes that the page draws from, against eager attention of an independent implementation."""
    model = writer("gpt2")
    model.save(tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager")
    found = pellucid.explain(model, TEXT, target="a", foil="b", methods=["attention"])
    patterns = found.patterns()
    length = len(patterns.tokens)
    ours = np.frombuffer(patterns.data, dtype=np.uint8).reshape(2, 4, length, length) / 255
    with torch.no_grad():
        expected = theirs(torch.tensor([found.question.ids]), output_attentions=True).attentions
    assert np.abs(ours - torch.cat(expected).numpy()).max() < 1 / 255
    mean = torch.cat(expected)[1].mean(dim=0)[-1].numpy()
    words = [mean[list(unit.tokens)].sum() for unit in found.question.units]
    assert np.abs(found.leading.values - words).max() < 1e-5


def test_maps_of_patches_that_were_not_all_made_keep_their_columns(tmp_path):
    model = writer("llama", d_model=64, heads=2, kv_heads=1, d_head=32, d_mlp=128)
    hold(model.network, Holding(precision="int8"))
    asked = ask(model.network, model.tokenizer, "Alice saw the rabbit", target="a", foil="b")
    found = patch(asked, "Alice was the rabbit", most_tokens=15 * len(asked.ids))
    assert len(found.patched) == 15
    stream = next(drawn for title, drawn in patch_maps(found) if title.startswith("the stream"))
    for one in found.patched:
        if one.place.position is not None:
            mine, theirs = found.tokens[one.place.position]
            named = mine if mine == theirs else f"{mine.strip()}/{theirs.strip()}"
            assert escape(f"{one.place.site}, {named}: {one.effect:+.3f}") in stream
    assert stream.count("not known") == 3 * len(asked.ids) - sum(one.place.position is not None for one in found.patched)
