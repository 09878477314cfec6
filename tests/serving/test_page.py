"""The page in a real browser: what a person does there, and what a model, a server or a small screen may do to them."""

from __future__ import annotations

import json
import math
import re
from contextlib import contextmanager

import pytest
import tiny
from browsers import FLAGS, chromium
from playwright.sync_api import expect, sync_playwright
from served import listening, slowed

from pellucid.api import Model
from pellucid.network.families import FAMILIES
from pellucid.text.chat import with_chat_tokens

HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>![a](http://evil.test/a.png)\u202esdrawkcab </div>'
KEYS = ("the-first-key-of-two", "the-second-key-of-two")
ENDED = re.compile("reached its length|ended by itself")
PATIENCE = 20_000  # milliseconds; a shared machine pauses when it likes
FAILED = "Failed to load resource"  # what Chromium itself writes of an answer that is an error


@pytest.fixture(scope="module")
def browser():
    path = chromium()
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def chatty(model):
    """The model with a chat template, with which the page begins with a chat."""
    return Model(model.network, with_chat_tokens(model.tokenizer)[0])


@pytest.fixture(scope="module")
def address(chatty):
    with listening(chatty) as (port, _):
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def long_model(model):
    """One that goes on for long enough to be stopped."""
    network = tiny.randomised(tiny.config(model.config.vocab_size, context_length=8192))
    return Model(network, with_chat_tokens(model.tokenizer)[0])


@contextmanager
def visitor(browser, address, *, failing=False, **options):
    """Somebody at the page, which loads nothing from elsewhere.

    The browser complains of nothing, or only of answers that are `failing`.
    """
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    complaints = []
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(f"a dialog: {dialog.message}") or dialog.dismiss())
    page.on("request", lambda request: request.url.startswith((address, "data:")) or complaints.append(request.url))
    page.goto(address)
    yield page
    context.close()
    assert [complaint for complaint in complaints if not (failing and complaint.startswith(FAILED))] == []


@pytest.fixture
def page(browser, address):
    with visitor(browser, address) as page:
        expect(prompt(page)).to_be_focused()
        yield page


def prompt(page, name="Prompt"):
    return page.get_by_role("textbox", name=name, exact=True)


def choose(page, name):
    page.locator("header label").filter(has_text=name).click()


def say(page, text, *, length=None, seed=1):
    if length is not None:
        page.get_by_label("Length").fill(str(length))
    page.get_by_label("Seed").fill(str(seed))
    prompt(page).fill(text)
    prompt(page).press("Control+Enter")


def wait_for_end(page, ending=ENDED):
    expect(page.locator(".facts:visible").last).to_contain_text(ending)


def tokens(page):
    return page.locator(".token:visible")


def seed_of(page):
    return int(page.get_by_role("button", name=re.compile("^seed")).inner_text().split()[1])


def forced(page, text):
    """Let the model write this text and no other."""

    def change(route):
        route.continue_(post_data=json.dumps({**route.request.post_data_json, "choices": [text]}))

    page.route("**/v1/**completions", change)


def percent(text):
    return float(text.strip("<> %"))


@pytest.mark.parametrize("chats", [True, False])
def test_it_begins_with_what_the_model_was_made_for(browser, model, chatty, chats):
    with listening(chatty if chats else model) as (port, _), visitor(browser, f"http://127.0.0.1:{port}/") as page:
        expect(page.get_by_role("radio", name="Chat" if chats else "Completion")).to_be_checked()
        expect(page.locator("#model")).to_have_attribute("title", re.compile("^[0-9.]+K parameters · "))


def test_a_prompt_is_gone_on_with_as_the_library_does_with_the_seed_that_is_shown(browser, address, model):
    with visitor(browser, address, permissions=["clipboard-read", "clipboard-write"]) as page:
        expect(page).to_have_title("tiny · Pellucid")
        choose(page, "Completion")
        say(page, "Alice was", length=40)
        wait_for_end(page)
        expect(page.locator(".lead")).to_have_text("Alice was")
        expected = model.generate("Alice was", max_tokens=40, temperature=0.8, seed=seed_of(page))
        assert tokens(page).count() == len(expected.tokens)
        page.get_by_role("button", name="Copy").click()
        expect(page.locator("#status")).to_have_text("Copied.")
        assert page.evaluate("navigator.clipboard.readText()") == expected.text


def test_a_conversation_goes_on_and_its_seed_writes_the_same_again(page):
    say(page, "Who are you?", length=12)
    wait_for_end(page)
    first = page.locator(".tokens").inner_text()
    page.get_by_role("button", name=re.compile("^seed")).click()
    page.get_by_role("button", name="Again").click()
    expect(page.get_by_text("2 of 2")).to_be_visible()
    wait_for_end(page)
    assert page.locator(".tokens:visible").inner_text() == first
    with page.expect_request("**/v1/chat/completions") as asked:
        say(page, "And then?")
    wait_for_end(page)
    roles = [message["role"] for message in asked.value.post_data_json["messages"]]
    assert roles == ["user", "assistant", "user"]
    expect(page.locator(".said:visible")).to_have_text(["Who are you?", "And then?"])


def test_escape_stops_the_page_and_the_server(browser, long_model):
    with listening(long_model) as (port, app), visitor(browser, f"http://127.0.0.1:{port}/") as page:
        slowed(app, 0.02)
        say(page, "Go on and on", length=8000)
        tokens(page).nth(30).wait_for()
        page.keyboard.press("Escape")
        wait_for_end(page, "stopped by you")
        assert 30 < tokens(page).count() < 7000
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        page.wait_for_timeout(500)
        assert not app.state.service.worker.engine.busy


def test_a_token_tells_its_probability_and_what_was_close(page, model):
    choose(page, "Completion")
    say(page, "Down, down", length=10)
    wait_for_end(page)
    expected = model.generate("Down, down", max_tokens=10, temperature=0.8, seed=seed_of(page), top_logprobs=5)
    tokens(page).nth(3).hover()
    peek = page.get_by_role("dialog")
    expect(peek).to_be_visible()
    shares = [percent(text) for text in peek.locator("li .share").all_inner_texts()]
    likely = sorted((100 * math.exp(logprob) for logprob in expected.top_logprobs[3].values()), reverse=True)
    assert shares[:5] == pytest.approx(likely, rel=0.06)  # as it is rounded
    assert percent(peek.locator("b").inner_text()) == pytest.approx(100 * math.exp(expected.logprobs[3]), rel=0.06)
    expect(peek.locator(".written")).to_have_count(1)
    prompt(page).hover()
    expect(peek).to_be_hidden()


@pytest.mark.parametrize("mode", ["Chat", "Completion"])
def test_a_text_branches_from_another_token(page, mode):
    choose(page, mode)
    say(page, "Once", length=12)
    wait_for_end(page)
    before = tokens(page).all_inner_texts()
    tokens(page).nth(4).click()
    other = page.get_by_role("dialog").get_by_role("button").first
    name = other.locator(".what").inner_text()
    other.click()
    expect(page.get_by_text("2 of 2")).to_be_visible()
    wait_for_end(page)
    after = tokens(page).all_inner_texts()
    assert after[:4] == before[:4]
    assert after[4].strip() == name.replace("·", " ").strip()
    assert len(after) == 5 + 12
    expect(page.locator(".chosen:visible")).to_have_count(1)
    page.get_by_role("button", name="Version before").locator("visible=true").click()
    assert tokens(page).all_inner_texts() == before


SHAPE = {"d_model": 24, "layers": 1, "heads": 2, "kv_heads": 2, "d_head": 12, "d_mlp": 30}


def test_an_encoder_decoder_answers_and_is_not_asked_to_go_on(browser, model):
    t5 = FAMILIES["t5"].new(vocab_size=model.config.vocab_size, context_length=64, tied=False, **SHAPE, decoder_layers=1)
    with (
        listening(Model(tiny.randomised(t5), model.tokenizer)) as (port, _),
        visitor(browser, f"http://127.0.0.1:{port}/") as page,
    ):
        choose(page, "Completion")
        say(page, "Alice was", length=8)
        wait_for_end(page)
        expect(page.locator(".said")).to_have_text("Alice was")
        expect(page.get_by_role("button", name="Go on")).to_have_count(0)
        tokens(page).first.hover()
        expect(page.get_by_role("dialog")).to_be_visible()
        expect(page.get_by_role("dialog").get_by_role("button")).to_have_count(0)


def test_a_model_that_writes_nothing_says_so(browser, model):
    bert = FAMILIES["bert"].new(vocab_size=model.config.vocab_size, context_length=16, **SHAPE)
    expected = "tiny reads texts but writes none; use it from a program: openapi.json says how."
    encoder = Model(tiny.randomised(bert), model.tokenizer)
    with listening(encoder) as (port, _), visitor(browser, f"http://127.0.0.1:{port}/") as page:
        expect(page.get_by_role("alert")).to_contain_text(expected)


def test_hostile_text_is_only_text(page):
    forced(page, HOSTILE)
    say(page, HOSTILE, length=120)
    wait_for_end(page, "ended by itself")
    shown = HOSTILE.replace("\u202e", "[U+202E]")  # or what follows would be read backwards
    assert page.locator(".tokens").text_content() == shown
    assert page.locator(".said").text_content() == shown
    assert page.locator("article").locator("img, script, a").count() == 0
    tokens(page).first.hover()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.get_by_role("dialog").locator("img, script, a").count() == 0


def test_a_line_break_is_a_token_to_point_at(page):
    choose(page, "Completion")
    forced(page, "One\n\nTwo")
    say(page, "Count:")
    wait_for_end(page, "ended by itself")
    page.locator(".break").first.hover()
    expect(page.get_by_role("dialog").locator("q")).to_contain_text("↵")
    assert page.locator(".tokens").text_content() == "Count:One\n\nTwo"


def test_a_server_that_is_gone_is_said_kindly_and_tried_again(browser, model):
    with listening(model) as (port, _):
        at = f"http://127.0.0.1:{port}/"
        with visitor(browser, at, failing=True) as page:
            expect(prompt(page)).to_be_focused()
            page.route("**/v1/**", lambda route: route.abort("connectionrefused"))
            say(page, "Hello", length=5)
            alert = page.get_by_role("alert")
            expect(alert).to_contain_text("The server does not answer. Start it again with “pellucid serve”, then try again.")
            page.unroute("**/v1/**")
            alert.get_by_role("button", name="Try again").click()
            wait_for_end(page)
            expect(page.get_by_role("alert")).to_be_hidden()


def test_an_error_in_the_middle_keeps_what_is_written(page):
    events = [
        {"choices": [{"index": 0, "delta": {"content": "So far"}, "finish_reason": None}]},
        {"error": {"message": "the engine has died; the server must be started again", "type": "server_error"}},
    ]
    body = ": at work\n\n" + "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    say(page, "Hello")
    expect(page.get_by_role("alert")).to_contain_text("The engine has died; the server must be started again.")
    expect(page.locator(".tokens")).to_have_text("So far")


def test_a_prompt_that_is_too_long_is_said_kindly(browser, address):
    with visitor(browser, address, failing=True) as page:
        say(page, "long " * 400)
        expect(page.get_by_role("alert")).to_contain_text("This model's maximum context length is 256 tokens")
        expect(prompt(page)).to_be_enabled()


def test_a_key_is_asked_for_until_one_fits_and_forgotten_with_the_tab(browser, model):
    with listening(model, keys=KEYS) as (port, _), visitor(browser, f"http://127.0.0.1:{port}/", failing=True) as page:
        dialog = page.get_by_role("dialog", name="asks for an API key")
        dialog.get_by_label("API key").fill("a-key-that-nobody-has")
        dialog.get_by_role("button", name="Use this key").click()
        again = page.get_by_role("dialog", name="did not take this API key")
        again.get_by_label("API key").fill(KEYS[1])
        again.get_by_label("API key").press("Enter")
        say(page, "Hello", length=5)
        wait_for_end(page)
        assert page.evaluate("[localStorage.length, Object.keys(sessionStorage)]") == [0, ["pellucid-key"]]


def test_the_keyboard_alone_is_enough(browser, address):
    with visitor(browser, address) as page:
        expect(prompt(page)).to_be_focused()
        page.get_by_label("Seed").fill("1")  # of a text with other tokens that can be chosen
        skip = page.get_by_role("link", name="Skip to the prompt")
        while not skip.evaluate("link => link === document.activeElement"):
            page.keyboard.press("Shift+Tab")
        page.keyboard.press("Enter")
        expect(prompt(page)).to_be_focused()
        page.keyboard.type("Hello")
        page.keyboard.press("Control+Enter")
        wait_for_end(page)
        while page.evaluate("!document.activeElement.matches('.token')"):
            page.keyboard.press("Shift+Tab")
        for key in ("End", "Home", "ArrowRight", "ArrowRight", "ArrowLeft"):
            page.keyboard.press(key)
        expect(tokens(page).nth(1)).to_be_focused()
        peek = page.get_by_role("dialog")
        expect(peek).to_be_visible()
        page.keyboard.press("Escape")
        expect(peek).to_be_hidden()
        page.keyboard.press("Enter")
        expect(peek.get_by_role("button").first).to_be_focused()
        page.keyboard.press("ArrowDown")
        expect(peek.get_by_role("button").nth(1)).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.get_by_text("2 of 2")).to_be_visible()
        wait_for_end(page)


def test_the_same_prompt_with_several_settings_has_one_seed(page):
    for _ in range(2):
        page.get_by_role("button", name="One column more").click()
    choose(page, "Several settings")
    page.get_by_label("Length").fill("8")
    page.locator("#edited label").nth(1).click()
    page.get_by_label("Length").fill("6")
    expect(page.locator(".column-head span")).to_have_text(["length 8", "length 6", "default settings"])
    prompt(page, "Prompt for all columns").fill("Hello")
    prompt(page, "Prompt for all columns").press("Control+Enter")
    expect(page.locator(".facts").nth(0)).to_contain_text("8 tokens")
    expect(page.locator(".facts").nth(1)).to_contain_text("6 tokens")
    expect(page.locator(".actions:visible")).to_have_count(3)
    assert len({*page.get_by_role("button", name=re.compile("^seed")).all_inner_texts()}) == 1


def test_several_prompts_are_sent_at_once(page):
    page.get_by_label("Length").fill("5")
    page.get_by_role("button", name="One column more").click()
    for number in (1, 2):
        prompt(page, f"Prompt of column {number}").fill(f"Prompt {number}")
    page.get_by_role("button", name="Send all").click()
    expect(page.locator(".facts")).to_contain_text([ENDED] * 2)
    expect(page.locator(".said")).to_have_text(["Prompt 1", "Prompt 2"])


def test_settings_are_sent_as_they_are_reset_as_they_were_and_refused_where_they_are_none(page):
    page.get_by_label("Temperature").fill("0")
    expect(page.get_by_label("Top-p")).to_be_disabled()
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Stop at").fill("one\ntwo")
    with page.expect_request("**/v1/chat/completions") as asked:
        say(page, "Hello", length=3)
    wait_for_end(page)
    sent = asked.value.post_data_json
    assert {name: sent[name] for name in ("temperature", "max_tokens", "stop")} == {
        "temperature": 0,
        "max_tokens": 3,
        "stop": ["one", "two"],
    }
    assert not {"top_p", "top_k", "min_p"} & sent.keys()
    page.get_by_role("button", name="Reset to defaults").click()
    expect(page.get_by_label("Length")).to_have_value("128")
    expect(page.get_by_label("Temperature")).to_have_value("0.8")
    say(page, "Hello", length=0)
    expect(page.get_by_label("Length")).to_be_focused()
    expect(page.locator(".said")).to_have_count(1)


def test_a_narrow_screen_scrolls_in_one_direction(browser, address):
    with visitor(browser, address, viewport={"width": 360, "height": 640}, has_touch=True) as page:

        def fits():
            boxes = page.locator("html, main, .scroll, #settings")
            return boxes.evaluate_all("boxes => boxes.every((box) => box.scrollWidth <= box.clientWidth)")

        assert fits()
        forced(page, "W" * 100)
        prompt(page).fill("x" * 60)
        page.get_by_role("button", name="Send").tap()
        wait_for_end(page, "ended by itself")
        assert fits()
        tokens(page).nth(8).tap()
        box = page.get_by_role("dialog").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
        page.get_by_role("button", name="Settings").tap()
        assert fits()
        page.get_by_role("button", name="Settings").tap()
        page.get_by_role("button", name="One column more").tap()
        assert fits()
        assert page.evaluate("document.documentElement.scrollHeight") == 640


CONTRASTS = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const read = (...layers) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const layer of layers) { canvas.fillStyle = layer; canvas.fillRect(0, 0, 1, 1); }
    const linear = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const text = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!text || !e.checkVisibility() || e.matches(".unseen, .unseen *, :disabled, option")) continue;
    const behind = [];
    for (let at = e; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
    const [ink, paper] = [read(...behind, getComputedStyle(e).color), read(...behind)];
    found.push([(Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05), e.className || e.tagName]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read(browser, address, scheme):
    """WCAG AA: 4.5 to 1, measured on what is drawn, the strongest tint and an error included."""
    with visitor(browser, address, failing=True, color_scheme=scheme) as page:
        say(page, "Hello", length=200)
        wait_for_end(page)
        say(page, "long " * 400)
        expect(page.get_by_role("alert")).to_be_visible()
        tokens(page).first.focus()
        expect(page.get_by_role("dialog")).to_be_visible()
        assert page.locator(".t5").count()
        assert page.evaluate(CONTRASTS)[0][0] >= 4.5, page.evaluate(CONTRASTS)[:5]


def test_the_theme_and_nothing_else_is_remembered(page):
    say(page, "Hello", length=5)
    wait_for_end(page)
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate("getComputedStyle(document.body).colorScheme") == "dark"
    assert page.evaluate("[{...localStorage}, {...sessionStorage}, document.cookie]") == [{"theme": "dark"}, {}, ""]
    page.reload()
    expect(page.get_by_role("button", name="Light")).to_be_visible()
    expect(tokens(page)).to_have_count(0)


def test_ten_thousand_tokens_stay_usable(page):
    def chunk(at):
        token = {"token": f" w{at}", "bytes": [*f" w{at}".encode()], "logprob": -at / 5000, "top_logprobs": []}
        return {
            "choices": [
                {"index": 0, "delta": {"content": token["token"]}, "logprobs": {"content": [token]}, "finish_reason": None}
            ]
        }

    body = "".join(f"data: {json.dumps(chunk(at))}\n\n" for at in range(10_000)) + "data: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    say(page, "Hello")
    expect(page.locator(".facts")).to_contain_text("10,000 tokens")
    began = page.evaluate("performance.now()")
    tokens(page).nth(9_990).click()
    expect(page.get_by_role("dialog")).to_contain_text("w9990")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("dialog")).to_contain_text("w9991")
    assert page.evaluate("performance.now()") - began < 5000


def ask_why(page):
    """Ask about the first token that is whole, beside another that is: few are, where most of a vocabulary are bytes."""
    button = page.locator("#peek [name=why]")
    for token in tokens(page).all():
        token.click()
        if button.is_visible():
            return button.click()
    raise AssertionError("no token can be asked about")


def test_why_a_token_was_written(page):
    choose(page, "Completion")
    forced(page, " Alice was late")
    say(page, "Alice was beginning", length=12)
    wait_for_end(page)
    ask_why(page)
    panel = page.locator("#why")
    expect(panel.locator(".words")).to_be_visible()
    expect(panel.locator("h2")).to_have_text(re.compile("^Why “.+”\\?$"))
    expect(panel.locator(".verdict")).not_to_be_empty()
    expect(panel.locator(".words")).to_have_text(re.compile("^Alice was beginning"))
    assert re.fullmatch(r"[+−][0-9.]+( ± [0-9.]+)?", panel.locator(".words span").first.get_attribute("title"))
    assert panel.locator(".methods button").count() == 3
    panel.locator(".methods button").nth(2).click()
    expect(panel.locator(".methods button").nth(2)).to_have_attribute("aria-pressed", "true")
    panel.locator(".foils button").last.click()
    expect(panel.locator(".foils button").last).to_have_attribute("aria-pressed", "true")
    expect(panel.locator(".words")).to_be_visible()
    page.keyboard.press("Escape")
    expect(panel).to_be_hidden()


def test_why_in_a_chat_reads_the_conversation(page):
    forced(page, " Alice was late")
    say(page, "Who are you?", length=12)
    wait_for_end(page)
    ask_why(page)
    panel = page.locator("#why")
    expect(panel.locator(".words")).to_have_text(re.compile("Who are you?"))
    assert "Who" in panel.locator(".words span").all_inner_texts()
    panel.get_by_role("button", name="Close").click()
    expect(panel).to_be_hidden()
