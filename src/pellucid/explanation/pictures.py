"""A picture of an explanation for papers and slides: the leading attribution, and the lens beside it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.core.files import atomic_path
from pellucid.evaluation.figures import STYLE
from pellucid.explanation.drawing import AGAINST, FOR, shortened

if TYPE_CHECKING:
    from pellucid.explanation.explanation import Explanation

BARS = 20  # units: those that matter most


def picture_of(found: Explanation, path: Path) -> None:
    """Draw it, in the format of the path's ending."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    one, units = found.leading, found.question.units
    order = np.sort(np.argsort(-np.abs(one.values), kind="stable")[:BARS])
    colours = [tuple(part / 255 for part in (FOR if one.values[number] >= 0 else AGAINST)) for number in order]
    with rc_context(STYLE | {"axes.titlesize": 11}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(10, 1.6 + 0.24 * max(8, len(order))), layout="constrained")
        axes: Any
        axes, *others = figure.subplots(
            1, 1 if found.lens is None else 2, width_ratios=None if found.lens is None else (3, 2), squeeze=False
        )[0]
        places = np.arange(len(order))[::-1]
        errors = None if one.errors is None else one.errors[order]
        axes.barh(places, one.values[order], color=colours, xerr=errors, ecolor="#66717a", capsize=2)
        axes.set_yticks(places, [shortened(units[number].text, 30) for number in order])
        axes.axvline(0, color="#66717a", lw=0.8)
        axes.set(
            title=f"{one.method}: {found.question.measure} = {found.difference:+.2f}",
            xlabel="nats; dark blue for, orange against",
        )
        if found.lens is not None:
            lens = others[0]
            lens.plot(found.lens.differences, range(len(found.lens.heights)), color="#b3402a", marker="o", ms=3)
            lens.axvline(0, color="#66717a", lw=0.8)
            lens.set(title="after each layer (logit lens)", ylabel="layers read", xlabel=found.lens.contrast.measure)
        figure.suptitle(found.verdict, fontsize=9, wrap=True)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=150)
