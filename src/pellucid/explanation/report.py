"""The page of an explanation, and the piece of it that a notebook shows."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from markupsafe import Markup, escape

from pellucid.core.pages import page
from pellucid.explanation.attribution import Attribution
from pellucid.explanation.drawing import heatmap, ink, shortened, tint
from pellucid.explanation.gates import Gates
from pellucid.explanation.lens import Lens
from pellucid.explanation.patching import Patching, Place, places_of
from pellucid.explanation.patterns import Patterns
from pellucid.explanation.question import Question
from pellucid.explanation.shares import Shares

if TYPE_CHECKING:
    from pellucid.explanation.explanation import Explanation

OPEN = 1500  # characters of a text up to which the text is shown once for each method, not only for the leading one
COLUMNS = 64  # positions of a map of patches; with more, those where most happens

REMOVED = {"delete": "deleted", "mask": "replaced by the mask token", "mean": "given the mean of all vectors"}
MEASURED = {
    "comprehensiveness": "goes when the first 5 to 50 % of units are taken away",
    "sufficiency": "is missing when only those are there",
    "deletion": "area while units are taken away",
    "insertion": "area while units are put back",
    "score": "insertion - deletion",
}


def report(found: Explanation, patterns: Patterns | None) -> str:
    """The whole page."""
    shares, patching, chance = found.shares, found.patching, found.attributions.chance
    return page(
        "explanation",
        name=found.name,
        found=found,
        question=found.question,
        texts=[(one, coloured(found.question, one)) for one in found.attributions.found],
        one_open=len(found.question.text) > OPEN,
        largest=largest(found),
        measured=MEASURED,
        chance=chance.intervals,
        orders=chance.orders,
        removal=chance.removal,
        removed=REMOVED[chance.removal.way],
        heads=None if shares is None else head_maps(shares),
        other_parts=None if shares is None else other_parts(shares),
        lens=found.lens,
        lens_map=None if found.lens is None else lens_map(found.lens),
        tint=tint,
        ink=ink,
        shortened=shortened,
        patching=patching,
        maps=[] if patching is None else patch_maps(patching),
        gates=None if found.gates is None else gate_map(found.gates),
        patterns=None if patterns is None else patterns.to_json(),
        facts=facts(found.question),
    )


def fragment(found: Explanation) -> str:
    """The text with the leading attribution, the number, and the verdict: what a notebook shows."""
    return (
        '<div style="font: 15px/1.9 system-ui, sans-serif; color: #1d2328; background: #fff; padding: .6rem">'
        f"<p><b>{escape(found.question.measure)} = {found.difference:+.3f}</b> {escape(found.answer)}</p>"
        f"<p>{coloured(found.question, found.leading)}</p><p><small>{escape(found.verdict)}</small></p></div>"
    )


def coloured(question: Question, one: Attribution) -> Markup:
    """The text, each unit in the colour of its value, which is told where the pointer rests."""
    most, text, at = float(np.abs(one.values).max(initial=0.0)), question.text, 0
    parts = []
    for number, unit in enumerate(question.units):
        value = float(one.values[number])
        error = "" if one.errors is None or not one.errors.any() else f" ± {one.errors[number]:.3f}"
        parts.append(str(escape(text[at : unit.start])))
        decoration = "border-bottom: 2px dotted" if value < 0 else "border-bottom: 2px solid"
        edge = tint(value, most / 2)
        style = f"background:{tint(value, most)};color:{ink(value, most)};{decoration} {edge}"
        parts.append(
            f'<span style="{style};border-radius:3px;padding:.05em .1em" title="{value:+.3f}{error}">{escape(unit.text)}</span>'
        )
        at = unit.end
    parts.append(str(escape(text[at:])))
    return Markup("".join(parts).replace("\n", "<br>"))  # our own markup, of texts that are escaped


def largest(found: Explanation, count: int = 8) -> list[dict[str, Any]]:
    """The units that matter most to the leading method, with their values by all."""
    order = np.argsort(-np.abs(found.leading.values), kind="stable")[:count]
    return [
        {
            "unit": found.question.units[number].text,
            "values": [float(one.values[number]) for one in found.attributions.found],
            "errors": [None if one.errors is None else float(one.errors[number]) for one in found.attributions.found],
        }
        for number in order.tolist()
    ]


def head_maps(shares: Shares) -> list[tuple[str, Markup]]:
    """A map of the heads' shares for each kind of attention."""
    found = []
    for kind, name in (("attn", "heads"), ("cross", "heads that look at the encoder")):
        grid: dict[str, dict[int, float]] = {}
        for part, value in shares.parts.items():
            block, _, head = part.rpartition(".head.")
            if block.endswith(f".{kind}"):
                grid.setdefault(block.removesuffix(f".{kind}"), {})[int(head)] = value
        if grid:
            rows = [[heads[number] for number in sorted(heads)] for heads in grid.values()]
            found.append((name, heatmap(rows, list(grid), [str(n) for n in range(len(rows[0]))], title=name)))
    return found


def other_parts(shares: Shares) -> Markup:
    """The MLPs, the embedding and the biases."""
    rest = {name: value for name, value in shares.parts.items() if ".head." not in name}
    return heatmap([[value] for value in rest.values()], list(rest), ["share"], title="MLPs, embedding, biases", cell=(60, 16))


def lens_map(lens: Lens) -> Markup:
    """The difference at each height."""
    rows = [[value] for value in lens.differences]
    return heatmap(rows, [shortened(name, 22) for name in lens.heights], [""], title="the difference there", cell=(90, 14))


def gate_map(gates: Gates) -> Markup:
    """How far each gate of each layer opens at the last tokens, and what the cells hold."""
    rows = [list(values[-COLUMNS:]) for values in gates.values.values()]
    names = [shortened(token) for token in gates.tokens[-COLUMNS:]]
    return heatmap(rows, list(gates.values), names, title="gates and cells", most=1.0)


def patch_maps(patching: Patching) -> list[tuple[str, Markup]]:
    """Maps of the effects: the stream at each position, heads, MLPs; and of the screen, where not all was patched."""
    found = []
    known = [("by patching", patching.effects)]
    if len(patching.effects) < len(patching.screened):
        known.append(("by the screen", patching.screened))
    for said, effects in known:
        for title, places, columns in kinds(patching):
            rows = [[effects.get(place) for place in row] for row in places]
            names = [row[0].site for row in places]
            if rows:
                found.append((f"{title}, {said}", heatmap(rows, names, columns, title=title)))
    return found


def kinds(patching: Patching) -> list[tuple[str, list[list[Place]], list[str]]]:
    """The places by what they are: rows of sites, and the names of their columns."""
    places = list(places_of(patching.question.network, len(patching.tokens)))
    positions = sorted({place.position for place in places if place.position is not None})
    if len(positions) > COLUMNS:
        weight = dict.fromkeys(positions, 0.0)
        for one in patching.patched:
            if one.place.position is not None:
                weight[one.place.position] += abs(one.effect)
        positions = sorted(sorted(positions, key=lambda at: -weight[at])[:COLUMNS])
    streams: dict[str, list[Place]] = {}
    heads: dict[str, list[Place]] = {}
    whole: dict[str, list[Place]] = {}
    for place in places:
        kind = streams if place.position is not None else heads if place.head is not None else whole
        kind.setdefault(place.site, []).append(place)
    tokens = [patching.tokens[at] for at in positions]
    shown = [mine if mine == theirs else f"{mine.strip()}/{theirs.strip()}" for mine, theirs in tokens]
    rows = [[place for place in row if place.position in set(positions)] for row in streams.values()]
    found = [("the stream at each position", rows, shown)]
    most = max((len(row) for row in heads.values()), default=0)
    found.append(("heads, at all positions", list(heads.values()), [str(number) for number in range(most)]))
    found.append(("MLPs, at all positions", list(whole.values()), ["effect"]))
    return found


def facts(question: Question) -> dict[str, str]:
    """With what this was made."""
    network = question.network
    held = network.held.precision if network.held is not None else str(network.dtype).removeprefix("torch.")
    return {
        "network": network.config.describe(),
        "computed in": held,
        "tokens": f"{len(question.ids):,}, in {len(question.units):,} {question.by}",
        "versions": f"pellucid {version('pellucid')}, torch {torch.__version__}",
    }
