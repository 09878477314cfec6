"""Runs that differ in their seed only: what chance has to do with their grades."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from markupsafe import Markup

from pellucid.core.pages import page
from pellucid.evaluation.comparing import MODEL
from pellucid.evaluation.grading import NAMES, PLAIN, Grades, aligned


@dataclass(frozen=True)
class Spread:
    """The grades of at least one run by the path of its folder; None for a run without test rows."""

    runs: Mapping[str, Grades | None]

    @property
    def grades(self) -> list[Grades]:
        return [found for found in self.runs.values() if found is not None]

    def values(self, system: str, metric: str) -> list[float]:
        """What each run has."""
        return [found.metrics[system][metric].value for found in self.grades]

    @property
    def systems(self) -> list[str]:
        """Those that every run was graded with, the model first."""
        return [system for system in self.grades[0].metrics if all(system in found.metrics for found in self.grades)]

    @property
    def metrics(self) -> list[str]:
        return list(self.grades[0].metrics[MODEL])

    def to_json(self) -> dict[str, Any]:
        """`runs`: the folders; `headline`: the metric of the verdict; `metrics`: system -> metric -> mean, sd, runs."""
        if not self.grades:
            return {"runs": list(self.runs), "headline": None, "verdict": self.verdict(), "metrics": {}}

        def figures(found: list[float]) -> dict[str, Any]:
            return {"mean": mean(found), "sd": deviation(found), "runs": found}

        return {
            "runs": list(self.runs),
            "headline": self.grades[0].headline,
            "verdict": self.verdict(),
            "metrics": {
                system: {metric: figures(self.values(system, metric)) for metric in self.metrics} for system in self.systems
            },
        }

    def verdict(self) -> str:
        """One plain sentence."""
        if not self.grades:
            return "No rows were held out to test on, so there are no grades; pass --test FILE."
        metric, many = self.grades[0].headline, len(self.grades)
        own, floors = self.values(MODEL, metric), self.systems[1:]
        said = f"Over {many} seeds the model reaches {spread(metric, own)} {NAMES[metric]}"
        if not floors:
            return f"{said}; no floor was given to compare it with."
        best = max(floors, key=lambda system: mean(self.values(system, metric)))
        theirs = self.values(best, metric)
        ahead = sum(a > b for a, b in zip(own, theirs, strict=True))
        return f"{said}, and {best} {spread(metric, theirs)}; the model is ahead in {ahead} of {many} runs."

    def rows(self) -> list[list[str]]:
        """A table of means and standard deviations: a head, and a row for each metric."""
        head = ["", *self.systems]
        return [head] + [
            [NAMES[metric], *(spread(metric, self.values(system, metric)) for system in self.systems)]
            for metric in self.metrics
        ]

    def lines(self) -> list[str]:
        """What a command prints: the verdict, mean and standard deviation of each metric."""
        if not self.grades:
            return [self.verdict()]
        return [self.verdict(), "", "mean ± standard deviation over seeds", *aligned(self.rows())]

    def to_html(self, folders: Mapping[str, str]) -> str:
        """One self-contained page, with links to the runs: `folders` are their paths as the page sees them."""
        from pellucid.evaluation.figures import dots

        picture, name, headline = None, "several seeds", ""
        if self.grades:
            metric = self.grades[0].headline
            name, headline = f"{self.grades[0].name}: {len(self.grades)} seeds", NAMES[metric]
            scale = 1 if metric in PLAIN else 100
            systems = {system: [scale * value for value in self.values(system, metric)] for system in self.systems}
            picture = Markup(dots(systems, measure=NAMES[metric] + ("" if scale == 1 else ", %")))  # our own SVG
        return page(
            "seeds",
            name=name,
            verdict=self.verdict(),
            picture=picture,
            headline=headline,
            table=self.rows() if self.grades else [],
            runs=[(folders[path], found, found and spread(found.headline, [own(found)])) for path, found in self.runs.items()],
        )


def own(grades: Grades) -> float:
    """The model's headline metric."""
    return grades.metrics[MODEL][grades.headline].value


def deviation(found: list[float]) -> float:
    """The standard deviation of a sample; 0 of a single one."""
    return stdev(found) if len(found) > 1 else 0.0


def spread(metric: str, found: list[float]) -> str:
    """Mean and standard deviation: 81.2 ± 0.7 %. Without a deviation where there is none: 81.2 %."""
    scale, digits, unit = (1, 4, "") if metric in PLAIN else (100, 1, " %")
    more = f" ± {scale * deviation(found):.{digits}f}" if deviation(found) else ""
    return f"{scale * mean(found):.{digits}f}{more}{unit}"
