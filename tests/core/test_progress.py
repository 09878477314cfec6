"""Bars on a terminal, lines in a log, silence when it is asked for."""

import io
import sys

import pytest

from pellucid.core.progress import Bars, Lines, Silent, console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(progress, total=100.0):
    progress.say("before")
    with progress.task("training", total, "tokens") as task:
        for number in range(4):
            task.advance(25, note=f"loss {number}")
        task.say("inside [bold]brackets[/bold] 3.14")


def test_quiet_says_nothing(capsys):
    work(console(quiet=True))
    assert isinstance(console(quiet=True), Silent)
    assert capsys.readouterr() == ("", "")


def test_a_log_gets_plain_lines_and_no_bars(capsys):
    work(console())
    assert type(console()) is Lines
    assert capsys.readouterr() == ("", "before\ninside [bold]brackets[/bold] 3.14\n")


@pytest.mark.parametrize("total", [100.0, None])
def test_a_terminal_gets_bars_on_standard_error_only(monkeypatch, capsys, total):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = console()
    assert type(progress) is Bars
    work(progress, total)
    shown = terminal.getvalue()
    assert "training" in shown
    assert "loss 3" in shown
    assert "tokens/s" in shown
    assert "inside [bold]brackets[/bold] 3.14" in shown  # what is said is not markup
    assert ("100 %" in shown) == (total is not None)
    assert capsys.readouterr().out == ""


def test_bars_to_something_that_is_no_terminal_do_not_fail(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    work(Bars())
    assert "inside" in log.getvalue()
    assert "\x1b[" not in log.getvalue()
