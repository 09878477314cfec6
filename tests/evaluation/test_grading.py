"""Grades: the right verdict, figures beside the floors, a page that shows texts as texts; nonsense is refused."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from sklearn import metrics as sklearn

from pellucid.core.errors import ConfigError
from pellucid.evaluation import figures
from pellucid.evaluation.floors import Predictions
from pellucid.evaluation.grading import Grades, grade
from pellucid.evaluation.intervals import Estimate

LABELS = ["bad", "good", "mixed"]
ROWS = 600


def classes(right, seed=0, rows=ROWS, labels=3):
    """A truth and predictions of which about so many are right."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(labels, size=rows)
    return truth, np.where(rng.random(rows) < right, truth, (truth + 1) % labels)


def logits(predicted, labels=3, height=3.0):
    noise = np.random.default_rng(5).normal(0, 0.5, (len(predicted), labels))
    return noise + height * np.eye(labels)[predicted]


def graded(model=0.9, floor=0.7, **options) -> Grades:
    truth, predicted = classes(model)
    floors = {"majority class": Predictions(values=np.zeros(ROWS, int)), "TF-IDF": Predictions(values=classes(floor, 0)[1])}
    return grade("classify", truth, **{"labels": LABELS, "scores": logits(predicted), "floors": floors} | options)


def assert_figures(text: str, difference: Estimate) -> None:
    """The sentence has the figures of the difference, in points."""
    numbers = [float(number) for number in re.findall(r"-?\d+\.\d", text.split("TF-IDF", 1)[1])]
    for value in (difference.value, difference.low, difference.high):
        assert any(abs(abs(100 * value) - abs(number)) < 0.051 for number in numbers)


def test_a_model_that_wins():
    grades = graded(0.9, 0.7)
    assert re.fullmatch(r"The model beats TF-IDF by \S+ points of accuracy \(95 % interval \S+ to \S+\)\.", grades.verdict)
    assert_figures(grades.verdict, grades.difference.estimate)
    assert grades.difference.estimate.low > 0


def test_a_floor_that_wins():
    grades = graded(0.7, 0.9)
    assert re.fullmatch(
        r"The floor wins: TF-IDF beats the model by \S+ points of accuracy \(95 % interval \S+ to \S+\); "
        "use it instead, or give more labels.",
        grades.verdict,
    )
    assert_figures(grades.verdict, grades.difference.estimate)
    assert grades.difference.estimate.high < 0


def test_a_floor_that_is_as_good():
    truth, predicted = classes(0.8)
    floors = {"TF-IDF": Predictions(values=classes(0.8, 1)[1]), "x": Predictions(values=np.roll(truth, 1))}
    floors["TF-IDF"] = Predictions(values=np.where(np.random.default_rng(3).random(ROWS) < 0.8, truth, (truth + 2) % 3))
    grades = grade("classify", truth, labels=LABELS, scores=logits(predicted), floors=floors)
    assert grades.verdict.startswith("TF-IDF is as good, as far as 600 rows can tell: the difference, ")
    assert "points of accuracy, has a 95 % interval that contains 0 (" in grades.verdict
    assert grades.difference.estimate.low <= 0 <= grades.difference.estimate.high


def test_the_figures_are_those_of_scikit_learn_and_inside_their_intervals():
    grades = graded()
    truth, predicted = classes(0.9)
    found = grades.metrics["model"]
    assert found["accuracy"].value == pytest.approx(sklearn.accuracy_score(truth, predicted))
    assert found["macro_f1"].value == pytest.approx(sklearn.f1_score(truth, predicted, average="macro"))
    assert found["matthews"].value == pytest.approx(sklearn.matthews_corrcoef(truth, predicted))
    assert list(grades.metrics) == ["model", "majority class", "TF-IDF"]
    for system in grades.metrics.values():
        assert all(one.low <= one.value <= one.high for one in system.values())
    report = sklearn.classification_report(truth, predicted, target_names=LABELS, output_dict=True)
    for one in grades.classes:
        theirs = report[one.label]
        assert (one.precision, one.recall, one.f1.value, one.support) == pytest.approx(
            (theirs["precision"], theirs["recall"], theirs["f1-score"], theirs["support"])
        )
    assert grades.confusion.tolist() == sklearn.confusion_matrix(truth, predicted).tolist()


def test_equal_systems_differ_by_nothing():
    truth, predicted = classes(0.8)
    grades = grade("classify", truth, labels=LABELS, scores=logits(predicted), floors={"same": Predictions(values=predicted)})
    assert grades.difference.estimate == Estimate(0, 0, 0)
    assert grades.verdict.startswith("Same is as good")


def test_all_right_is_still_uncertain():
    truth, _ = classes(1, rows=40)
    grades = grade("classify", truth, labels=LABELS, scores=logits(truth))
    assert grades.metrics["model"]["accuracy"].value == grades.metrics["model"]["accuracy"].high == 1
    assert grades.metrics["model"]["accuracy"].low == pytest.approx(0.912, abs=0.001)  # Wilson
    assert grades.notes == ("There are only 40 rows: intervals from so few are too narrow.",)
    assert grades.verdict == "The model reaches 100.0 % [91.2, 100.0] accuracy; no floor was given to compare it with."


def test_the_temperature_comes_from_validation_alone():
    truth, predicted = classes(0.7)
    other, said = classes(0.7, seed=9)
    scores = 4 * logits(predicted)
    with_it = grade("classify", truth, labels=LABELS, scores=scores, validation=(4 * logits(said), other))
    calibration = with_it.calibration
    assert calibration.temperature > 2
    assert calibration.after["ece"].value < calibration.before["ece"].value / 2
    assert calibration.after["nll"].high < calibration.before["nll"].low
    moved = grade("classify", np.roll(truth, 1), labels=LABELS, scores=scores, validation=(4 * logits(said), other))
    assert moved.calibration.temperature == calibration.temperature
    assert grade("classify", truth, labels=LABELS, scores=scores).calibration.temperature is None
    assert with_it.metrics == grade("classify", truth, labels=LABELS, scores=scores).metrics


def test_the_same_seed_gives_the_same_grades():
    assert graded(seed=3).to_json() == graded(seed=3).to_json()
    assert graded(seed=3).to_json() != graded(seed=4).to_json()


def test_the_surest_mistakes_come_first_and_texts_stay_texts():
    truth, predicted = classes(0.9)
    texts = [f"<script>alert({row})</script> & 文本" for row in range(ROWS)]
    grades = graded(texts=texts, name="<i>run</i>", labels=["<b>", "good", "mixed"])
    assert len(grades.mistakes) == 20
    chances = [one.probability for one in grades.mistakes]
    assert chances == sorted(chances, reverse=True)
    assert all(truth[one.row] != predicted[one.row] and one.text == texts[one.row] for one in grades.mistakes)
    page = grades.to_html()
    assert "<script" not in page
    assert "<b>" not in page.replace("<b></b>", "")
    assert "<i>run" not in page
    assert "&lt;script&gt;alert(" in page
    assert "http" not in re.sub(
        r'(xmlns(:\w+)?|rdf:\w+)="[^"]*"|<metadata>.*?</metadata>|<!DOCTYPE[^>]*>', "", page, flags=re.DOTALL
    )


def every_task():
    rng = np.random.default_rng(0)
    flags = rng.random((80, 3)) < 0.4
    numbers = rng.normal(size=80)
    tags = [["B-A", "I-A", "O", "B-B"]] * 60
    said = [["B-A", "O", "O", "B-B"]] * 30 + tags[:30]
    return {
        "multi": (flags, {"labels": LABELS, "scores": (flags - 0.4) * 3 + rng.normal(size=(80, 3)), "texts": ["a"] * 80},
                  flags & False, "micro-F1"),
        "regress": (numbers, {"predicted": numbers + 0.1}, numbers * 0, "R2"),
        "tag": (tags, {"predicted": said}, [["O"] * 4] * 60, "span F1"),
        "text": (["a cat"] * 60, {"predicted": ["a cat"] * 60}, [""] * 60, "ROUGE-L"),
        "prefer": (None, {"scores": rng.normal(1, 1, 60)}, -np.ones(60), "accuracy"),
    }  # fmt: skip


@pytest.mark.parametrize("task", list(every_task()))
def test_every_task_has_a_verdict_a_table_and_a_page(task):
    truth, options, floor, metric = every_task()[task]
    grades = grade(task, truth, **options, floors={"the floor": Predictions(values=floor)})
    assert grades.verdict.startswith("The model beats the floor by ")
    assert metric in grades.verdict
    assert json.loads(json.dumps(grades.to_json(), allow_nan=False))["verdict"] == grades.verdict
    assert grades.lines()[0] == grades.verdict
    assert grades.verdict in grades.to_html()


def test_preferences_without_a_floor_are_held_against_a_coin():
    verdicts = [grade("prefer", None, scores=np.array([sign] * 60 + [1, -1] * 5)).verdict for sign in (1.0, -1.0)]
    assert ["better than tossing a coin" in verdicts[0], "worse than tossing a coin" in verdicts[1]] == [True, True]
    assert "no better than tossing a coin" in grade("prefer", None, scores=[1, -1] * 30).verdict


def test_tables_are_aligned_in_any_script():
    from rich.cells import cell_len

    truth, predicted = classes(0.8)
    grades = grade("classify", truth, labels=["坏的评价", "good", "x"], scores=logits(predicted))
    start = next(n for n, line in enumerate(grades.lines()) if line.startswith("class, worst first"))
    assert len({cell_len(line) for line in grades.lines()[start : start + 4]}) == 1


def test_classes_without_a_row_are_said():
    truth, predicted = classes(0.8)
    scores = np.hstack([logits(predicted), np.full((ROWS, 1), -9.0)])
    grades = grade("classify", truth, labels=[*LABELS, "never"], scores=scores)
    assert grades.notes == ("1 of 4 classes have no row in the test set: never.",)


@pytest.mark.parametrize(
    ("task", "truth", "options", "message"),
    [
        ("rank", [0], {}, "the task 'rank' is not known; choose classify"),
        ("classify", [0, 1], {"labels": LABELS, "predicted": [0, 1]}, "the task 'classify' is graded from scores"),
        ("regress", [0, 1], {"scores": [0, 1]}, "the task 'regress' is graded from predicted"),
        ("classify", [0, 1], {"scores": np.eye(3)[:2]}, "the task 'classify' needs the names of its labels"),
        ("regress", [0, 1], {"predicted": [0, 1], "labels": LABELS}, "the task 'regress' has no labels; leave them out"),
        ("regress", [0, 1], {"predicted": [0, 1], "texts": ["a", "b"]}, "texts have no effect"),
        ("regress", [0, 1], {"predicted": [0, float("nan")]}, "the predictions of model, row 1: nan is not a finite number"),
        ("regress", [0, 1], {"predicted": [0]}, "there are 1 predictions for 2 rows"),
        ("regress", [], {"predicted": []}, "there are no rows"),
        ("classify", [0, 1], {"labels": LABELS, "scores": np.eye(2)}, "with 3 labels does not fit logits of shape"),
        ("classify", [0, 3], {"labels": LABELS, "scores": np.eye(3)[:2]}, "the truth, row 1: 3 is none of the 3 classes"),
        ("classify", [[0, 1, 0]], {"labels": LABELS, "scores": np.eye(3)[:1]}, "does not fit"),
        ("multi", [0, 1], {"labels": LABELS, "scores": np.eye(3)[:2]}, "does not fit"),
        ("classify", [0, 1], {"labels": LABELS, "scores": np.eye(3)[:2], "texts": ["a"]}, "there are 1 texts for 2 rows"),
        ("classify", [0], {"labels": LABELS, "scores": [[0, 0, 1]], "validation": (np.eye(2), [0, 1])}, "not for the 3 labels"),
        ("tag", [["O"]], {"predicted": [["X"]]}, "'X' is no tag of spans"),
        ("text", ["a"], {"predicted": ["a", "b"]}, "there are 2 predictions for 1 rows"),
        ("prefer", [1], {"scores": [1.0]}, "preferences have no truth"),
        ("prefer", None, {"scores": [[1.0]]}, "the margins of model must be a list of numbers"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(task, truth, options, message):
    with pytest.raises(ConfigError, match=message):
        grade(task, truth, **options)


def test_a_floor_of_another_length_is_refused():
    with pytest.raises(ConfigError, match="there are 2 predictions for 600 rows"):
        graded(floors={"short": Predictions(values=[0, 1])})


# Pictures


@pytest.mark.parametrize("count", [2, 7, 77])
@pytest.mark.filterwarnings("error")
def test_confusion_pictures_are_svg_whatever_the_labels(count):
    truth, predicted = classes(0.6, labels=count, rows=3000)
    counts = sklearn.confusion_matrix(truth, predicted)
    names = [f"{'很长的中文标签' * 3} $x_{n}$ & <b>" for n in range(count)]
    picture = figures.confusion_picture(counts, names)
    ElementTree.fromstring(picture)
    assert "<b>" not in picture
    if count == 77:
        assert len(re.findall(r"\d of \d", picture)) == figures.PAIRS + 1  # of the pairs, and of all mistakes


def test_a_picture_of_no_mistakes():
    assert "no mistakes" in figures.confusion_picture(np.eye(30, dtype=int), [str(n) for n in range(30)])


def test_the_most_confused_pair_comes_first():
    counts = np.eye(30, dtype=int) * 10
    counts[3, 4], counts[5, 6] = 7, 2
    pairs = re.findall(r"l\d+ → l\d+", figures.confusion_picture(counts, [f"l{n}" for n in range(30)]))
    assert pairs[:2] == ["l3 → l4", "l5 → l6"]


def test_long_labels_lose_their_middle():
    assert figures.short("short") == "short"
    assert figures.short("card_payment_wrong_exchange_rate_12", 21) == "card_payme…ge_rate_12"
    assert figures.short("很长很长的中文标签", 9) == "很长…标签"


def test_a_curve_over_label_budgets():
    picture = figures.label_curve([200, 1000], {"from scratch": ([0.5, 0.6], [0.01, 0.02]), "TF-IDF": ([0.6, 0.7], [0, 0])})
    ElementTree.fromstring(picture)
    assert all(word in picture for word in ("from scratch", "TF-IDF", "1,000", "accuracy, %"))


# Rows to read


def test_answers_are_the_first_and_choices_the_worst():
    said = [f"answer {number}" for number in range(12)]
    found = grade("text", ["answer 1"] * 12, predicted=said, texts=["<b>?"] * 12).answers
    assert [one.row for one in found] == list(range(10))
    assert [found[1].score, found[2].score] == pytest.approx([1.0, 0.5])
    margins = [0.5, -2.0, 1.0, -3.0]
    worst = grade("prefer", None, scores=margins, texts=[("q", f"chosen {n}", "rejected") for n in range(4)]).answers
    assert [(one.row, one.wanted, one.score) for one in worst] == [(3, "chosen 3", -3.0), (1, "chosen 1", -2.0)]


def test_tagged_rows_with_the_most_wrong_words_come_first():
    truth = [["B-A", "I-A", "O"], ["O", "O", "B-B"], ["O", "O", "O"]]
    said = [["O", "O", "O"], ["O", "O", "O"], ["O", "O", "O"]]
    words = [["New", "York", "<b>"]] * 3
    grades = grade("tag", truth, predicted=said, texts=words)
    assert [one.row for one in grades.taggings] == [0, 1]
    assert "<mark>New York <small>A</small></mark>" in grades.to_html()
    assert "&lt;b&gt;" in grades.to_html()
    with pytest.raises(ConfigError, match="row 0 has 2 words, but 3 tags"):
        grade("tag", truth, predicted=said, texts=[["New", "York"]] * 3)


def test_many_classes_are_folded_away_and_the_command_prints_the_worst():
    truth, predicted = classes(0.6, labels=77, rows=3000)
    grades = grade("classify", truth, labels=[f"l{n}" for n in range(77)], scores=logits(predicted, 77))
    assert "the other 57" in grades.to_html()
    lines = grades.lines()
    start = next(n for n, line in enumerate(lines) if line.startswith("class, the worst 5 of 77"))
    assert lines[start + 6] == ""
