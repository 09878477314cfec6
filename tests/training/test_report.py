"""The report is one file that calls nobody, shows what happened, and treats all text as text."""

import html
import json
import re
from html.parser import HTMLParser

import pytest
import tiny

from pellucid.core.run import RunFolder
from pellucid.training.report import spread, write_report, write_samples

EVIL = "</blockquote><script>alert('x')</script><img src=https://example.com/x onerror=alert(1)> & {{ 7*7 }}"


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def run(tmp_path):
    changes = {"training": {"evaluate_every": 1, "batch_size": 2}, "schedule": {"kind": "cosine"}}
    return RunFolder(tiny.pretrain(tmp_path / "my <b>run & 字", **changes).path)


def read(run):
    return run.report.read_text(encoding="utf-8")


def test_it_is_one_file_that_fetches_nothing(run):
    text = read(run)
    page = Page(text)
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(page.tags)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            assert value.startswith(("#", "data:")), (tag, name, value)
        elif "://" in value:
            assert name.startswith("xmlns") or name == "rdf:resource", (tag, name, value)
    for address in re.findall(r"url\(([^)]*)\)", text):
        assert address.strip("'\"").startswith("#")
    assert "@import" not in text


def test_it_shows_curves_and_numbers(run):
    page, rows = Page(read(run)), run.read_metrics()
    assert page.tags.count("svg") == 1
    best = min((row for row in rows if "validation_loss" in row), key=lambda row: row["validation_loss"])
    for number in (f"{best['bits_per_byte']:.3f}", f"{best['perplexity']:.1f}", f"{best['validation_loss']:.3f}", "4 of 4"):
        assert number in page.text
    info = json.loads(run.info.read_text())
    assert info["fingerprint"]["corpus"] in page.text
    assert f"{info['parameters']:,}" in page.text
    for title in ("loss, nats per token", "bits per byte, validation", "learning rate, of its peak"):
        assert title in page.text
    assert "energy" not in page.text.lower()  # it is not measured


def test_the_facts_are_those_of_the_run(run):
    page = Page(read(run))
    info = json.loads(run.info.read_text())
    done, all_tokens = 4 * 2 * 16, info["tokens"]["training"]
    assert f"{done:,} ({done / all_tokens:.2f} epochs of {all_tokens:,})" in page.text
    assert f"{done * info['training_flops_per_token']:.3g} FLOPs" in page.text


def test_text_is_shown_and_never_run(run):
    run.append_metrics({"step": 5, "validation_loss": 1.0, "perplexity": 2.7, "bits_per_byte": 1.4, "sample": EVIL})
    write_report(run)
    text = read(run)
    page = Page(text)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert EVIL in page.text  # to the letter
    assert html.escape(EVIL, quote=False).split("'")[0] in text
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert "my <b>run & 字" in page.text  # the folder's name too
    assert "b" in page.tags  # our own bold figures


def test_the_names_of_the_corpus_are_text_too(run):
    info = json.loads(run.info.read_text())
    info["corpus"]["names"] = [EVIL]
    run.info.write_text(json.dumps(info))
    write_report(run)
    assert "script" not in Page(read(run)).tags


def test_it_is_drawn_the_same_again(run):
    before = read(run)
    write_report(run)
    assert read(run) == before


def test_samples_are_in_one_file_in_order(run):
    lines = run.samples.read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in lines if line.startswith("## ")] == [f"## Step {step}" for step in (1, 2, 3, 4)]
    write_samples(run)
    assert run.samples.read_text(encoding="utf-8").splitlines() == lines


def test_a_run_that_was_not_evaluated_yet_says_so(run):
    rows = [row for row in run.read_metrics() if "loss" in row][:2]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report(run)
    assert "The run has not been evaluated yet." in Page(read(run)).text


def test_a_run_that_got_worse_says_where_it_was_best(run):
    row = {"step": 9000, "validation_loss": 99.0, "perplexity": 1e43, "bits_per_byte": 142.8, "sample": "x", "seconds": 1.0}
    run.append_metrics(row)
    write_report(run)
    assert "at the last, step 9,000, the loss was 99.000: the model began to learn its text by heart" in Page(read(run)).text


@pytest.mark.parametrize(("count", "picks"), [(0, []), (1, [0]), (3, [2, 1, 0]), (4, [3, 2, 1, 0]), (20, [19, 13, 6, 0])])
def test_samples_are_spread_over_the_run_newest_first(count, picks):
    assert spread(count, 4) == picks


def test_tensorboard_is_told_what_the_metrics_say(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tiny.pretrain(tmp_path / "run", training={"tensorboard": True, "evaluate_every": 2})
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    for name in ("loss", "gradient_norm", "rate", "validation_loss", "bits_per_byte"):
        expected = [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in run.metrics if name in row]
        assert [(event.step, event.value) for event in events.Scalars(name)] == expected
