"""The demo, as a newcomer meets it: real text, samples, a report, and three commands of which the first two work at once."""

import shlex

import pytest
import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


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
    assert [words[0] for words in suggested] == ["generate", "info", "pretrain"]
    for words in suggested[:2]:
        code, out, err = tiny.run_command(*words, cwd=tmp_path)
        assert (code, err) == (0, "")
        assert out.strip()
