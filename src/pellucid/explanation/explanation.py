"""Everything that is found about one answer, to be looked at, sent and compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pellucid.core.progress import Progress
from pellucid.explanation.attribution import Attribution, Attributions, Method, attribute
from pellucid.explanation.contrast import is_sum
from pellucid.explanation.drawing import shortened
from pellucid.explanation.faithfulness import Faithfulness
from pellucid.explanation.flow import attends
from pellucid.explanation.gates import Gates, gates_of
from pellucid.explanation.lens import Lens, logit_lens
from pellucid.explanation.patching import Patching, patch
from pellucid.explanation.patterns import Patterns, patterns_of
from pellucid.explanation.question import Question, ask
from pellucid.explanation.removal import Removal, Way
from pellucid.explanation.rows import evaluating
from pellucid.explanation.saving import check_path, save
from pellucid.explanation.shares import Shares, direct_shares
from pellucid.explanation.units import By
from pellucid.network.network import Network
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.word_spans import Span

PICTURES = (".png", ".svg", ".pdf")
KINDS = (".html", ".json", *PICTURES)
PRINTED = 8  # units and places


@dataclass(frozen=True)
class Explanation:
    """Why a model says this, not that: attributions with their faithfulness, shares, lens and, of two prompts, causes."""

    name: str  # of the model
    question: Question
    attributions: Attributions
    shares: Shares | None  # None, and so the lens: this network has no stream
    lens: Lens | None
    patching: Patching | None  # None: no other prompt was given
    gates: Gates | None  # of an LSTM

    @property
    def difference(self) -> float:
        """The number that is explained, in nats."""
        return self.attributions.chance.removal.whole

    @property
    def leading(self) -> Attribution:
        """The attribution that is most faithful to this input."""
        return self.attributions.leading

    @property
    def faithfulness(self) -> Faithfulness:
        """That of the leading attribution."""
        return self.leading.faithfulness

    @property
    def verdict(self) -> str:
        """How far the leading attribution can be trusted, in a sentence."""
        return self.attributions.verdict

    @property
    def answer(self) -> str:
        """What the number means, in a sentence."""
        question, config = self.question, self.question.network.config
        if config.problem == "regression" and config.head == "classify":
            return f"The model gives the text {self.difference:.3g}."
        odds = f"{math.exp(abs(self.difference)):,.3g}" if abs(self.difference) < 50 else "more than 10^20"
        if question.foil is None:
            if config.scores_labels:
                return (
                    f"The model holds {question.target.name!r} to be {'true' if self.difference > 0 else 'false'}, {odds} to 1."
                )
            return f"The model gives {question.target.name!r} a probability of {math.exp(self.difference):.2g}."
        first, second = (question.target, question.foil) if self.difference >= 0 else (question.foil, question.target)
        return f"The model finds {first.name!r} {odds} times as likely as {second.name!r}."

    def to_json(self) -> dict[str, Any]:
        """All figures, for programs. Values of units are in their order in the text."""
        question, removal = self.question, self.attributions.chance.removal
        shares, lens, patching = self.shares, self.lens, self.patching
        return {
            "model": self.name,
            "text": question.text,
            "target": question.target.name,
            "foil": None if question.foil is None else question.foil.name,
            "measure": question.measure,
            "difference": self.difference,
            "without_text": removal.nothing,
            "removal": removal.way,
            "verdict": self.verdict,
            "units": [{"text": unit.text, "start": unit.start, "end": unit.end} for unit in question.units],
            "attributions": [told(one) for one in self.attributions.found],
            "left_out": self.attributions.left_out,
            "chance": {name: asdict(found) for name, found in self.attributions.chance.intervals.items()},
            "random_orders": self.attributions.chance.orders,
            "shares": None if shares is None else shares.to_json(),
            "lens": None if lens is None else lens.to_json(),
            "patching": None if patching is None else patching.to_json(),
            "gates": None if self.gates is None else self.gates.to_json(),
        }

    def lines(self) -> list[str]:
        """For a terminal: the answer, the verdict, the units that matter most, how each method fares, and causes."""
        question, best, attributions = self.question, self.leading, self.attributions
        said = [f"{question.measure} = {self.difference:+.3f} nats. {self.answer}", self.verdict, ""]
        order = sorted(range(len(question.units)), key=lambda number: -abs(best.values[number]))[:PRINTED]
        names = [shortened(question.units[number].text, 40) for number in order]
        for name, number in zip(names, order, strict=True):
            error = "" if best.errors is None or not best.errors.any() else f" ± {best.errors[number]:.3f}"
            said.append(f"  {name:<{max(map(len, names))}}  {best.values[number]:+.3f}{error}")
        chance = attributions.chance.intervals["score"]
        said += ["", f"{'faithfulness':<22} {'score':>7}   random orders {chance.low:+.2f} to {chance.high:+.2f}"]
        for one in attributions.found:
            better = " *" if one.faithfulness.beats_chance else ""
            said.append(f"  {one.method:<20} {one.faithfulness.score:+7.2f}{better:<2}   {one.note}".rstrip())
        said += [f"  {method:<20} {'':>7}   {why}" for method, why in attributions.left_out.items()]
        if any(one.faithfulness.beats_chance for one in attributions.found):
            said.append("  * better than chance")
        if self.patching is not None:
            said += ["", f"Against {self.patching.other!r}, where it is {self.patching.after:+.3f}, these places move it most:"]
            said += [f"  {one.place.name}  {one.effect:+.3f}" for one in self.patching.patched[:PRINTED]]
        return said

    def to_html(self) -> str:
        """One page that opens with no network."""
        from pellucid.explanation.report import report

        return report(self, self.patterns())

    def patterns(self) -> Patterns | None:
        """What every head looks at; None without attention or for more than 2,048 tokens."""
        return patterns_of(self.question)

    def _repr_html_(self) -> str:
        """What a notebook shows: the text with the leading attribution, and how far it can be trusted."""
        from pellucid.explanation.report import fragment

        return fragment(self)

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the page (`.html`), the figures (`.json`), or a picture of the most important (`.png`, `.svg`, `.pdf`)."""
        from pellucid.explanation.pictures import picture_of

        path = Path(path)
        check_path(path, KINDS, force=force)
        if path.suffix in PICTURES:
            picture_of(self, path)
        else:
            save(self, path, force=force)


def told(one: Attribution) -> dict[str, Any]:
    """An attribution as JSON."""
    return {
        "method": one.method,
        "values": one.values.tolist(),
        "standard_errors": None if one.errors is None else one.errors.tolist(),
        "total": one.total,
        "gap": one.gap,
        "note": one.note,
        "faithfulness": asdict(one.faithfulness),
    }


def explain_answer(
    network: Network,
    tokenizer: Tokenizer,
    text: str | Sequence[int],
    *,
    name: str = "the model",
    target: str | None = None,
    foil: str | None = None,
    word: str | int | None = None,
    against: str | Sequence[int] | None = None,
    by: By = "auto",
    spans: Iterable[str | Span] = (),
    methods: Sequence[Method] | None = None,
    removal: Way = "auto",
    samples: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Explanation:
    """Explain what a network answers to a text; with another prompt, `against`, also where the difference of both arises."""
    with evaluating(network):
        question = ask(network, tokenizer, text, target=target, foil=foil, word=word, by=by, spans=spans)
        options: dict[str, Any] = {"methods": methods, "samples": samples, "steps": steps, "seed": seed, "progress": progress}
        return explained(question, name, against, removal, options)


def explained(
    question: Question, name: str, against: str | Sequence[int] | None, removal: Way, options: dict[str, Any]
) -> Explanation:
    """The answer to a question."""
    network = question.network
    streams = attends(question) and is_sum(network)
    attributions = attribute(question, removal=Removal(question, removal), **options)
    patching = None if against is None else patch(question, against, seed=options["seed"], progress=options["progress"])
    return Explanation(
        name=name,
        question=question,
        attributions=attributions,
        shares=direct_shares(question) if streams else None,
        lens=logit_lens(question) if streams else None,
        patching=patching,
        gates=gates_of(question),
    )
