"""A fine-tuning run as its user sees it: one page that calls nobody, shows what happened, and treats all text as text."""

import json
import math
import re
import string
from html.parser import HTMLParser
from unittest.mock import patch
from xml.etree import ElementTree

import pupils
import pytest
from pupils import CHOICES, REVIEWS, TALKS, write_rows
from tiny import DOCUMENTS

from pellucid.cli import main
from pellucid.core.run import RunFolder
from pellucid.evaluation.grading import grade
from pellucid.evaluation.spread import Spread
from pellucid.text.corpus import Corpus
from pellucid.text.tokenizer import Tokenizer
from pellucid.training.finetune_report import title, write_finetune_report

EVIL = "</td><script>alert('x')</script><img src=https://example.com/x onerror=alert(1)> & {{ 7*7 }}"
OPTIONS = [
    "--training.threads",
    "1",
    "--training.precision",
    "fp32",
    "--steps",
    "2",
    "--training.evaluate-every",
    "1",
    "--quiet",
]
OPEN = {"meta", "br", "img", "input", "hr", "link"}  # tags that are never closed
MAY_END_ITSELF = {"html", "body", "head", "p", "li", "td", "th", "tr"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; every tag must be closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], "", []
        self.feed(text)
        self.close()
        assert not set(self.open) - MAY_END_ITSELF

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag not in OPEN:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in OPEN:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def assert_alone(text: str) -> Page:
    """The page is whole, fetches nothing and runs nothing."""
    page = Page(text)
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            assert value.startswith(("#", "data:")) or value.endswith("/report.html"), (tag, name, value)
        elif "://" in value:
            assert name.startswith("xmlns") or name == "rdf:resource", (tag, name, value)
    assert all(address.strip("'\"").startswith("#") for address in re.findall(r"url\(([^)]*)\)", text))
    assert "@import" not in text
    for picture in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(picture)
    return page


def finite(value) -> bool:
    """Whether every number in it is one."""
    if isinstance(value, dict | list):
        return all(map(finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def pupil(folder, name="qwen3"):
    """A model that can read `EVIL`."""
    words = Tokenizer.train_chars(Corpus.of([*DOCUMENTS, EVIL, string.printable]))
    with patch.object(pupils, "tokenizer", lambda: words):
        return pupils.pupil(folder, name)


def finetune(model, data, out, *more) -> int:
    return main(["finetune", str(model), "--data", str(data), "--out", str(out), *OPTIONS, *more])


def read(run) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A classifier of labels and texts that mean harm, some of which are in train and in test."""
    folder = tmp_path_factory.mktemp("classify")
    rows = [row | {"label": EVIL if row["label"] == "poor" else "$x$ <b>字"} for row in REVIEWS]
    model = pupil(folder / "my <i>model & 字", "bert")
    test = write_rows(folder / "test.jsonl", [row | {"text": f"{row['text']} {EVIL}"[:100]} for row in rows] + rows[:3])
    out = folder / "run"
    assert finetune(model, write_rows(folder / "train.jsonl", rows), out, "--test", str(test)) == 0
    return out


def test_the_page_is_one_file_that_fetches_nothing_and_shows_text_as_text(run):
    page = assert_alone(read(run))
    assert EVIL in page.text  # to the letter
    assert "classify, from my <i>model & 字" in page.text
    assert not (run / "curves.svg").exists()


def test_the_page_has_verdict_pictures_curves_and_findings(run):
    page, grades, info = (
        Page(read(run)),
        json.loads((run / "grades.json").read_text()),
        json.loads((run / "run.json").read_text()),
    )
    assert grades["verdict"] in page.text
    assert page.tags.count("svg") == 3  # confusion, reliability, curves
    for word in (
        "loss",
        "accuracy, validation",
        "learning rate, of its peak",
        "How it learnt",
        "The mistakes it was surest of",
    ):
        assert word in page.text
    assert all(finding in page.text for finding in info["findings"])
    warned = [value for tag, name, value in page.attributes if (tag, name) == ("div", "class") and value == "warning"]
    assert len(warned) == 1
    assert re.search(r"3 of the 43 rows in test have texts that train has too", page.text)
    assert page.text.index("3 of the 43 rows") < page.text.index(grades["verdict"])  # before one believes the figures


def test_the_page_has_the_facts_of_the_run(run):
    page, info = Page(read(run)), json.loads((run / "run.json").read_text())
    assert info["model"] in page.text  # the whole path, among the facts
    assert page.text.count(info["model"]) == 1
    for fact in (
        f"full: all {info['parameters']:,} parameters trained",
        "2 of 2 (",
        f"train {info['rows']['train']}, validation {info['rows']['validation']}, test 43",
        info["machine"]["processor"],
        f"torch {info['versions']['torch']}",
        *info["fingerprint"].values(),
    ):
        assert fact in page.text
    assert (run / "recipe.toml").read_text() in page.text
    assert "details" in page.tags


def test_numbers_and_heads_stay_on_one_line(run):
    assert re.search(r"th \{[^}]*white-space: nowrap", read(run))
    assert re.search(r"\.number \{[^}]*white-space: nowrap", read(run))


def test_grades_are_json_that_a_script_can_trust(run, capsys):
    grades = json.loads((run / "grades.json").read_text(), parse_constant=pytest.fail)
    assert finite(grades)
    names = "task name rows labels metrics headline difference verdict classes confusion calibration mistakes answers"
    assert list(grades) == [*names.split(), "taggings", "notes"]
    assert grades["metrics"]["model"]["accuracy"].keys() == {"value", "low", "high"}
    assert json.loads(json.dumps(grades)) == grades


def test_a_run_without_test_rows_says_so(tmp_path, capsys):
    data, out = write_rows(tmp_path / "rows.jsonl"), tmp_path / "run"
    assert finetune(pupil(tmp_path / "model", "bert"), data, out, "--data.test-fraction", "0", "--json") == 0
    said = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert said == {"run": str(out), "model": str(out / "model"), "report": str(out / "report.html"), "grades": None}
    page = assert_alone(read(out))
    assert "No rows were held out to test on, so there are no grades; pass --test FILE." in page.text
    assert page.tags.count("svg") == 1
    assert not (out / "grades.json").exists()


def test_a_run_that_stopped_says_how_to_go_on(run):
    folder = RunFolder(run)
    before, hidden = read(run), folder.model.rename(run / "hidden")
    try:
        folder.rewind_metrics(2)
        write_finetune_report(folder)
        page = assert_alone(read(run))
        assert "The run has not ended: it has done 2 of 2 steps. --resume goes on with it." in page.text
        assert page.tags.count("svg") == 1
    finally:
        hidden.rename(folder.model)
        folder.report.write_text(before, encoding="utf-8")


def test_nothing_held_out_at_all(tmp_path):
    data, out = write_rows(tmp_path / "rows.jsonl"), tmp_path / "run"
    nothing = ("--data.test-fraction", "0", "--data.validation-fraction", "0")
    options = [option for option in OPTIONS if option not in ("--training.evaluate-every", "1")]
    model = pupil(tmp_path / "model", "bert")
    assert (
        main(["finetune", str(model), "--data", str(data), "--out", str(out), *options[:1], "1", *options[1:], *nothing]) == 0
    )
    page = assert_alone(read(out))
    assert "Nothing was held out for validation." in page.text
    assert "step 1, validation loss" not in page.text


def test_answers_are_shown_beside_those_wanted(tmp_path):
    rows = [{"messages": talk} for talk in TALKS * 4]
    rows[0] = {"messages": [{"role": "user", "content": "<script>?"}, {"role": "assistant", "content": "a <b>cat"}]}
    model, data = pupil(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "run"
    assert (
        finetune(
            model, data, out, "--task", "instruct", "--test", str(data), "--validation", str(data), "--data.graded-answers", "4"
        )
        == 0
    )
    page, grades = assert_alone(read(out)), json.loads((out / "grades.json").read_text())
    assert "loss, nats per token" in page.text
    assert [answer["question"] for answer in grades["answers"]][:2] == ["<script>?", "Who fell?"]
    assert "<script>?" in page.text
    assert "are in train too" in page.text
    for answer in grades["answers"]:
        assert answer["wanted"] in page.text
        assert answer["written"] in page.text


def test_choices_have_a_page(tmp_path):
    data, out = write_rows(tmp_path / "rows.jsonl", CHOICES * 3), tmp_path / "run"
    assert (
        finetune(pupil(tmp_path / "model"), data, out, "--task", "prefer", "--test", str(data), "--validation", str(data)) == 0
    )
    page, grades = assert_alone(read(out)), json.loads((out / "grades.json").read_text())
    assert grades["verdict"] in page.text
    assert all(answer["score"] <= 0 for answer in grades["answers"])


def test_wrong_tags_are_marked_in_their_sentence(tmp_path):
    rows = [
        {"words": ["Alice", "fell", "<b>"], "tags": ["B-who", "O", "B-<i>"]},
        {"words": ["a", "cat"], "tags": ["O", "B-who"]},
    ]
    data, out = write_rows(tmp_path / "rows.jsonl", rows * 10), tmp_path / "run"
    assert (
        finetune(pupil(tmp_path / "model", "bert"), data, out, "--task", "tag", "--test", str(data), "--validation", str(data))
        == 0
    )
    page, grades = assert_alone(read(out)), json.loads((out / "grades.json").read_text())
    assert grades["taggings"]
    for row in grades["taggings"]:
        assert row["truth"] != row["predicted"]
        assert len(row["words"]) == len(row["truth"]) == len(row["predicted"])
    assert page.tags.count("mark") >= len(grades["taggings"])
    assert "b" not in page.tags
    assert "i" not in page.tags


def test_several_seeds_have_a_page_that_leads_to_each(tmp_path, capsys):
    data, out = write_rows(tmp_path / "rows.jsonl"), tmp_path / "my runs"
    assert finetune(pupil(tmp_path / "model", "bert"), data, out, "--test", str(data), "--seeds", "2", "--json") == 0
    said = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert finite(said)
    assert said["report"] == str(out / "report.html")
    assert json.loads((out / "seeds.json").read_text()) == {key: value for key, value in said.items() if key != "report"}
    figures = said["metrics"]["model"]["accuracy"]
    assert figures["mean"] == pytest.approx(sum(figures["runs"]) / 2)
    assert figures["sd"] == pytest.approx(abs(figures["runs"][0] - figures["runs"][1]) / math.sqrt(2))
    page = assert_alone(read(out))
    links = [value for _, name, value in page.attributes if name == "href" and value.endswith(".html")]
    assert links == ["seed-0/report.html", "seed-1/report.html"]
    assert all((out / link).is_file() for link in links)
    assert said["verdict"] in page.text
    assert page.tags.count("svg") == 1


def test_lines_of_several_seeds_are_aligned():
    def graded(right):
        floors = {"the floor": type("P", (), {"values": [0] * 50})()}
        return grade("classify", [0, 1] * 25, labels=["a", "b"], scores=[[1, 0], [0, right]] * 25, floors=floors)

    spread = Spread({"a": graded(2), "b": graded(2), "c": graded(0.5)})
    lines = spread.lines()
    assert lines[0] == (
        "Over 3 seeds the model reaches 100.0 % accuracy, and the floor 50.0 %; the model is ahead in 3 of 3 runs."
    )
    table = lines[3:]
    assert len({len(line) for line in table}) == 1
    assert table[1].split() == ["accuracy", "100.0", "%", "50.0", "%"]
    mixed = Spread({"a": graded(2), "b": graded(-1)})
    assert "the model reaches 75.0 ± 35.4 % accuracy" in mixed.verdict()
    assert Spread({"a": None}).lines() == ["No rows were held out to test on, so there are no grades; pass --test FILE."]
    assert "not graded" not in assert_alone(Spread({"a": None}).to_html({"a": "<b>"})).text


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("/runs/tiny/model", "classify, from tiny"),
        ("/models/Small.Q4_1.gguf", "classify, from Small.Q4_1"),
        ("/models/minilm", "classify, from minilm"),
        ("sentence-transformers/all-MiniLM-L6-v2", "classify, from sentence-transformers/all-MiniLM-L6-v2"),
    ],
)
def test_a_title_is_short(model, name):
    assert title(model, None) == name
    assert title(model, "tag") == name.replace("classify", "tag")


def test_the_command_prints_a_verdict_first_and_what_to_do_last(tmp_path, capsys):
    labels = [f"class {number}" for number in range(9)]
    rows = [{"text": f"Alice saw {label} {row}", "label": label} for label in labels for row in range(6)]
    data, out = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "run"
    assert finetune(pupil(tmp_path / "model", "bert"), data, out, "--test", str(data)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(".")
    assert "accuracy" in lines[0]
    assert sum(line.startswith("class ") for line in lines) == 5  # with their head "class, the worst 5 of 9" six
    assert any(line.startswith("class, the worst 5 of 9") for line in lines)
    assert lines[-2:] == [
        f"read the report   {out}/report.html",
        f"use it            pellucid predict {out} --data FILE --out FILE",
    ]
    assert len(lines) < 25
