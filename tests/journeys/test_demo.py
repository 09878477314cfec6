"""The demo, as a newcomer meets it: real text, samples, a report, and three commands of which the first two work at once."""

import shlex
from pathlib import Path

import pytest
import tiny


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_ends_with_samples_a_report_and_commands_that_work(tmp_path):
    code, out, err = tiny.run_command("demo", "--out", "a demo", "--minutes", 0.3, "--quiet", cwd=tmp_path, timeout=800)
    assert (code, err) == (0, "")
    assert all(prompt in out for prompt in ("This film is", "The acting was", "I watched this with my"))
    run = tmp_path / "a demo"
    assert (run / "report.html").stat().st_size > 20_000
    letters = [c for c in (run / "samples.md").read_text(encoding="utf-8") if c.isalpha()]
    assert len(letters) > 200
    assert sum(c.isascii() for c in letters) / len(letters) > 0.95  # English, or on its way there
    assert "<br" not in (run / "samples.md").read_text(encoding="utf-8")

    suggested = [shlex.split(line)[1:] for line in out.split("Try next:")[1].splitlines() if line.startswith("  pellucid ")]
    assert [words[0] for words in suggested] == ["generate", "predict", "info", "pretrain", "finetune"]
    for words in suggested[:3]:
        code, out, err = tiny.run_command(*words, cwd=tmp_path)
        assert (code, err) == (0, "")
        assert out.strip()
    predicted = (tmp_path / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert len(predicted) == len((run / "labels" / "test.csv").read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("name", ["BAG", "DECODER"])
def test_the_recipes_of_both_readers_are_whole(name):
    """That of ten minutes or more is too long to run here; nothing in it is misspelt, idle or of another family."""
    from pellucid import demo
    from pellucid.training.finetune_recipe import FinetuneRecipe
    from pellucid.training.recipe import Recipe

    reader = getattr(demo, name)
    recipe = Recipe.of(reader.pretraining)
    assert recipe.tokenizer.kind == "wordpiece"
    assert recipe.data.document_masks
    for sections in reader.uses().values():
        assert FinetuneRecipe.of(sections).settled().task.name == "classify"


def test_the_table_is_what_the_runs_say(tmp_path):
    import pellucid
    from pellucid.core.progress import Silent
    from pellucid.demo_budgets import HEAD, SCRATCH, TUNED, compare, drawn, held_out
    from pellucid.text.corpus import Corpus

    rows = [(f"a {word} film number {n}", label) for n in range(60) for word, label in (("fine", "good"), ("dull", "bad"))]
    train, test = held_out(rows, 20)
    assert not {text for text, _ in train} & {text for text, _ in test}
    assert [label for _, label in drawn(train, 10, 3)].count("good") == 5
    base = pellucid.pretrain(
        Corpus.of([text for text, _ in rows]), out=tmp_path / "base", steps=3, **tiny.sections(model={"context_length": 32})
    )
    short = {"training": {"epochs": 1.0}}
    settings = {SCRATCH: {"method": {"fresh": True}, **short}, TUNED: short, HEAD: {"method": {"name": "head"}, **short}}
    table = compare(Path(base.path), train, test, tmp_path / "labels", settings=settings, seeds=2, progress=Silent())
    assert list(table.found) == [SCRATCH, TUNED, HEAD, "TF-IDF + logistic regression", "majority class"]
    assert all(list(row) == [100] and len(row[100]) == 2 for row in table.found.values())
    assert table.found["TF-IDF + logistic regression"][100] == [1.0, 1.0]
    labels = [label for _, label in test]
    assert table.found["majority class"][100][0] in {labels.count(label) / 20 for label in ("good", "bad")}
    assert (tmp_path / "labels" / "classifier" / "report.html").is_file()
    assert "<svg" in (tmp_path / "labels" / "labels.svg").read_text(encoding="utf-8")
