"""The run folder: one place for everything about one training run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pellucid.core.errors import CorruptionError, RunError
from pellucid.core.files import atomic_folder, disk_errors, write_text


@dataclass(frozen=True)
class RunFolder:
    """The names inside a run folder, and nothing about what they mean."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def info(self) -> Path:
        return self.path / "run.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def samples(self) -> Path:
        return self.path / "samples.md"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def is_run(self) -> bool:
        return self.recipe.is_file()

    def check_free(self, *, force: bool) -> None:
        """An existing folder is an error, unless it is empty, or is a run and `force` allows to delete it."""
        existing = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not existing.is_dir():
            raise RunError(f"{existing} is a file, so no run folder can be made at {self.path}; choose another --out")
        if self.path.resolve() == Path.cwd():
            raise RunError(f"{self.path} is the working directory, which cannot become a run folder; choose another --out")
        if not self.path.exists() or (not any(self.path.iterdir())):
            return
        if not force:
            way_out = (
                "pass --resume to continue it, or --force to delete it and start anew"
                if self.is_run()
                else "choose another --out"
            )
            raise RunError(f"{self.path} exists already; {way_out}")
        if not self.is_run():
            raise RunError(f"{self.path} is not a run folder, so --force will not delete it; choose another --out")

    @contextmanager
    def creating(self, *, force: bool) -> Iterator[RunFolder]:
        """A run folder to put the first files into; it appears under its name when the block ends well."""
        self.check_free(force=force)
        with ExitStack() as stack:
            if self.is_run():  # to be replaced, unless somebody is training in it
                stack.enter_context(self.locked())
            yield RunFolder(stack.enter_context(atomic_folder(self.path, sealed=False, replace=force)))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; a second trainer in it is an error."""
        import fcntl

        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(f"another process is training in {self.path}; wait for it, or choose another --out") from None
            yield

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every line of `metrics.jsonl`; a last line cut short by a kill is dropped."""
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = []
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                break
            try:
                rows.append(json.loads(line))
                rows[-1]["step"]
            except (json.JSONDecodeError, TypeError, KeyError):
                raise CorruptionError(f"{self.metrics}:{number} is not a line of metrics; delete the line") from None
        return rows

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add one line to `metrics.jsonl`."""
        with disk_errors(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rewind_metrics(self, step: int) -> None:
        """Forget every line after `step`, so that a resumed run writes each step once."""
        kept = [row for row in self.read_metrics() if row["step"] <= step]
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))
