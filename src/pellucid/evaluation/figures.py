"""Pictures of results, as SVG: who is taken for whom, whether confidence is deserved, what labels buy, what chance does."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.evaluation.calibration import Reliability
from pellucid.evaluation.intervals import Ints

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACCENT, CALM, INK, SOFT = "#b3402a", "#9bb8d3", "#1d2328", "#66717a"
SHADES = ("#fbfcfc", "#9bb8d3", "#1f4e79")
LINES = ("#b3402a", "#1f4e79", "#4d8b5a", "#8a6bb0", "#66717a", "#c98a2b")
MARKS = "os^Dv*"
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in whatever script, and the reader's machine has the font
    "font.family": "sans-serif",
    "svg.hashsalt": "pellucid",
    "text.parse_math": False,  # a label with two dollar signs is no formula
    "axes.spines.top": False,
    "axes.spines.right": False,
}
LONGEST = 24  # characters of a label in a picture
WHOLE = 20  # with more classes than this, the pairs that are confused most are shown instead of the whole matrix
PAIRS = 20


@contextmanager
def picture(width: float, height: float, labels: Sequence[str] = ()) -> Iterator[tuple[Figure, list[str]]]:
    """A figure to draw on, and the list that its SVG is put into.

    The reader's machine has the fonts for `labels` in wide letters; this one may not, and takes them for 0.4 em too narrow.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        edge = 0.4 * 10 / 72 * max((sum(map(wide, label)) for label in labels), default=0)
        figure, drawn = Figure(figsize=(width + edge, height + edge), layout="constrained"), list[str]()
        room = (edge / (width + edge), edge / (height + edge), width / (width + edge), height / (height + edge))
        figure.set_layout_engine("constrained", rect=room)
        yield figure, drawn
        image = io.StringIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            figure.savefig(image, format="svg", transparent=True, metadata={"Date": None})
        drawn.append(image.getvalue()[image.getvalue().index("<svg") :])


def wide(letter: str) -> bool:
    return ord(letter) > 0x2E7F


def short(label: str, longest: int = LONGEST) -> str:
    """A label that fits into a picture, without its middle if need be. Wide characters count twice."""
    label = " ".join(label.split())
    if sum(1 + wide(letter) for letter in label) <= longest:
        return label
    half = (longest - 1) // 2
    return f"{fitting(label, half)}…{fitting(label[::-1], half)[::-1]}"


def fitting(text: str, room: int) -> str:
    """As much of its beginning as has room."""
    sizes = np.cumsum([1 + wide(letter) for letter in text])
    return text[: int((sizes <= room).sum())]


def confusion_picture(counts: Ints, labels: Sequence[str]) -> str:
    """The confusion matrix [true predicted], each row shaded by its shares; for many classes the most confused pairs."""
    return matrix(counts, labels) if len(labels) <= WHOLE else confused_pairs(counts, labels)


def matrix(counts: Ints, labels: Sequence[str]) -> str:
    from matplotlib.colors import LinearSegmentedColormap

    classes, names = len(labels), [short(label) for label in labels]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 1.8 + 0.55 * classes
    with picture(side + 1.6, side + 0.6, names) as (figure, drawn):
        axes = figure.subplots()
        axes.imshow(shares, cmap=LinearSegmentedColormap.from_list("pellucid", SHADES), vmin=0, vmax=1)
        for true, predicted in np.ndindex(classes, classes):
            if counts[true, predicted]:
                ink = "white" if shares[true, predicted] > 0.6 else INK
                size = 10 if counts.max() < 1000 else 8
                axes.text(predicted, true, f"{counts[true, predicted]:,}", ha="center", va="center", color=ink, fontsize=size)
        level = classes <= 3 and max(map(len, names)) <= 10
        axes.set_xticks(
            range(classes), names, rotation=0 if level else 45, ha="center" if level else "right", rotation_mode="anchor"
        )
        axes.set_yticks(range(classes), names)
        axes.set(xlabel="predicted", ylabel="true")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return drawn[0]


def confused_pairs(counts: Ints, labels: Sequence[str]) -> str:
    """Bars of the pairs (true, predicted) with the most mistakes."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[: min(PAIRS, int((wrong > 0).sum()))]
    pairs = [divmod(int(place), len(labels)) for place in order]
    names = [f"{short(labels[true], 32)} → {short(labels[predicted], 32)}" for true, predicted in pairs]
    with picture(9, 1.2 + 0.3 * max(1, len(pairs)), names) as (figure, drawn):
        axes = figure.subplots()
        lengths = [wrong[pair] for pair in pairs]
        axes.barh(range(len(pairs)), lengths, color=CALM)
        axes.set_yticks(range(len(pairs)), names)
        for place, ((true, _), length) in enumerate(zip(pairs, lengths, strict=True)):
            said: Any = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "color": SOFT, "fontsize": 9}
            axes.annotate(f"{length:,} of {counts[true].sum():,}", (length, place), **said)
        shown = f"{sum(lengths):,} of {wrong.sum():,} mistakes" if pairs else "no mistakes"
        axes.set(title=f"true → predicted, {shown}", xlim=(0, max(lengths, default=1) * 1.15))
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.set_xticks([])
        axes.spines[:].set_visible(False)
    return drawn[0]


def reliability_picture(curves: Mapping[str, Reliability]) -> str:
    """How often the model was right against how sure it was, and how many decisions were that sure; a panel for each curve."""
    with picture(4.2 * len(curves), 4.6) as (figure, drawn):
        grid = figure.subplots(2, len(curves), squeeze=False, sharex=True, height_ratios=(4, 1))
        for (title, curve), axes, below in zip(curves.items(), grid[0], grid[1], strict=True):
            bins = len(curve.rows)
            middles, there = (np.arange(bins) + 0.5) / bins, curve.rows > 0
            axes.bar(middles[there], curve.accuracy[there], width=0.9 / bins, color=CALM)
            axes.plot([0, 1], [0, 1], color=SOFT, lw=1, ls="--")
            axes.plot(curve.confidence[there], curve.accuracy[there], color=ACCENT, marker="o", ms=4, lw=1.2)
            axes.set(title=title, xlim=(0, 1), ylim=(0, 1.02))
            below.bar(middles, curve.rows, width=0.9 / bins, color=SOFT, alpha=0.5)
            below.set(xlabel="how sure the model was", yticks=[])
            axes.grid(alpha=0.25)
        grid[0][0].set_ylabel("share that was right")
        grid[1][0].set_ylabel("rows")
    return drawn[0]


def dots(systems: Mapping[str, Sequence[float]], *, measure: str) -> str:
    """A line for each system, with a dot for each of its runs and a stroke at their mean."""
    with picture(8, 1 + 0.45 * len(systems), list(systems)) as (figure, drawn):
        axes = figure.subplots()
        for place, values in enumerate(systems.values()):
            color = ACCENT if place == 0 else "#1f4e79"
            axes.scatter(values, [place] * len(values), s=36, color=color, alpha=0.55, lw=0)
            mean = float(np.mean(values))
            axes.plot([mean, mean], [place - 0.28, place + 0.28], color=color, lw=1.8)
        axes.set_yticks(range(len(systems)), [short(name, 40) for name in systems])
        axes.set(xlabel=measure, ylim=(len(systems) - 0.5, -0.5))
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", alpha=0.25)
    return drawn[0]


def label_curve(
    budgets: Sequence[int], rows: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, measure: str = "accuracy"
) -> str:
    """What more labels buy: for each system its mean at each budget with one standard deviation up and down.

    Shares in 0 ... 1 are shown as per cent.
    """
    with picture(7.2, 4) as (figure, drawn):
        axes = figure.subplots()
        for number, (name, (means, sds)) in enumerate(rows.items()):
            color = LINES[number % len(LINES)]
            centre, spread = 100 * np.asarray(means), 100 * np.asarray(sds)
            axes.fill_between(budgets, centre - spread, centre + spread, color=color, alpha=0.12, lw=0)
            axes.plot(budgets, centre, color=color, marker=MARKS[number % len(MARKS)], ms=5, lw=1.8, label=short(name, 40))
        axes.set(xscale="log", xlabel="labelled examples", ylabel=f"{measure}, %")
        axes.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return drawn[0]
