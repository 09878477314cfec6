"""How long work shows itself: rate, time left and one note, on a terminal; silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class Task(Protocol):
    """One piece of work under way."""

    def advance(self, amount: float, note: str = "") -> None:
        """Say that `amount` more units are done; `note` replaces the text at the end of the line."""

    def say(self, line: str) -> None:
        """Print a line above the bar, to stay."""


class Progress(Protocol):
    """Where long work reports to."""

    def say(self, line: str) -> None:
        """Print a line, to stay."""

    @contextmanager
    def task(self, label: str, total: float | None, unit: str) -> Iterator[Task]:
        """Show a task of `total` units (None: unknown) while the block runs."""


class Silent:
    """Reports to nobody; also a task of itself."""

    def advance(self, amount: float, note: str = "") -> None: ...

    def say(self, line: str) -> None: ...

    @contextmanager
    def task(self, label: str, total: float | None, unit: str) -> Iterator[Task]:
        yield self


class Lines(Silent):
    """Prints what is to stay, to standard error, and draws no bars: for logs."""

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class Bars:
    """Bars on a terminal, drawn by rich on standard error."""

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, label: str, total: float | None, unit: str) -> Iterator[Task]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %" if total else ""),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        )
        with Progress(*columns, console=Console(stderr=True), transient=False) as progress:
            identifier = progress.add_task(label, total=total, rate="", note="")
            yield _Bar(progress, identifier, unit)


class _Bar:
    def __init__(self, progress: RichProgress, identifier: TaskID, unit: str) -> None:
        self.progress, self.identifier, self.unit = progress, identifier, unit

    def advance(self, amount: float, note: str = "") -> None:
        speed = self.progress.tasks[self.identifier].speed
        rate = f"{speed:,.{0 if speed >= 100 else 1}f} {self.unit}/s" if speed else ""
        self.progress.update(self.identifier, advance=amount, rate=rate, note=note)

    def say(self, line: str) -> None:
        self.progress.console.print(line, markup=False, highlight=False)


def console(*, quiet: bool = False) -> Progress:
    """The progress that suits this console: bars on a terminal, lines in a log, nothing with `quiet`."""
    if quiet:
        return Silent()
    return Bars() if sys.stderr.isatty() else Lines()
