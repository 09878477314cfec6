"""What a network's parts do, and how they came to do it: cards for its heads, over the checkpoints of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from pellucid.core.errors import RunError
from pellucid.core.pages import page
from pellucid.core.progress import Progress, Silent
from pellucid.core.run import RunFolder
from pellucid.evaluation.figures import LINES, MARKS, picture
from pellucid.explanation.ablation import Ablation, Ablator, How
from pellucid.explanation.drawing import heatmap
from pellucid.explanation.heads import (
    LENGTH,
    TRADES,
    WINDOWS,
    HeadCard,
    check_has_heads,
    copying_scores,
    head_cards,
    induction_scores,
    on_text,
)
from pellucid.explanation.neurons import NeuronCard, neuron_cards
from pellucid.explanation.rows import evaluating
from pellucid.explanation.saving import save
from pellucid.explanation.windows import losses, windows_of
from pellucid.network.network import Network
from pellucid.text.tokenizer import Tokenizer
from pellucid.training.checkpoint import all_whole, position

SHOWN = 24  # cards with their examples: the heads without which most is lost
ENOUGH = 50_000  # characters
FOLLOWED = 6  # heads whose rise is drawn


@dataclass(frozen=True)
class Parts:
    """The heads of a model."""

    name: str
    cards: tuple[HeadCard, ...]
    text: str  # what they were watched on
    neurons: tuple[NeuronCard, ...] = ()  # those that were asked for
    ablations: tuple[Ablation, ...] = ()  # of the sites that were asked for

    def to_json(self) -> dict[str, Any]:
        heads, neurons = ([card.to_json() for card in cards] for cards in (self.cards, self.neurons))
        ablations = [asdict(one) for one in self.ablations]
        return {"model": self.name, "watched_on": self.text, "heads": heads, "neurons": neurons, "ablations": ablations}

    def lines(self) -> list[str]:
        """For a terminal: the heads of each trade, and those without which most is lost."""
        said = [f"{len(self.cards)} heads, watched on {self.text}", ""]
        for trade in TRADES:
            named = [f"{card.layer}.{card.head}" for card in self.cards if card.trade == trade]
            if named:
                said.append(f"  {trade:<16} {len(named):>4}   {', '.join(named[:10])}{', ...' if len(named) > 10 else ''}")
        measured = [card for card in self.cards if card.ablation is not None]
        said += ["", "Most is lost without:"] if measured else []
        for card in sorted(measured, key=lambda card: -worth(card))[:8]:
            if card.ablation is not None:
                change = card.ablation.change
                lost = f"{change.value:+.4f} nats a token ({change.low:+.4f} to {change.high:+.4f})"
                said.append(f"  {card.name:<22} {lost}   {card.trade}".rstrip())
        for one in self.ablations:
            lost = f"{one.change.value:+.4f} nats a token ({one.change.low:+.4f} to {one.change.high:+.4f})"
            said.append(f"  {one.part:<22} {lost}   by {one.how}")
        for neuron in self.neurons:
            raised = ", ".join(repr(token) for token, _ in neuron.raises[:5])
            best = neuron.examples[0]
            said += ["", f"{neuron.name}: active at {neuron.active:.0%} of tokens, raises {raised}"]
            said.append(f"  most at {best.token!r} after {best.before[-60:]!r} ({best.activation:+.2f})")
        return said

    def to_html(self) -> str:
        """One page that opens with no network."""
        return page(
            "parts",
            name=self.name,
            text=self.text,
            maps=[(title, self.map(title, value)) for title, value in COLUMNS.items()],
            trades={trade: [card for card in self.cards if card.trade == trade] for trade in TRADES},
            cards=sorted(self.cards, key=lambda card: -worth(card))[:SHOWN],
            neurons=self.neurons,
            ablations=self.ablations,
            version=version("pellucid"),
        )

    def map(self, title: str, value: Callable[[HeadCard], float | None]) -> Markup:
        layers, heads = 1 + max(card.layer for card in self.cards), 1 + max(card.head for card in self.cards)
        rows: list[list[float | None]] = [[None] * heads for _ in range(layers)]
        for card in self.cards:
            rows[card.layer][card.head] = value(card)
        most = 1.0 if title not in ("loss without it, nats",) else None
        return heatmap(rows, [str(n) for n in range(layers)], [str(n) for n in range(heads)], title=title, most=most)

    def _repr_html_(self) -> str:
        return self.to_html()

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the page (`.html`) or the figures (`.json`)."""
        save(self, Path(path), force=force)


COLUMNS: dict[str, Callable[[HeadCard], float | None]] = {
    "induction": lambda card: card.induction.value,
    "previous token": lambda card: card.previous_token,
    "duplicate": lambda card: card.duplicate,
    "first token": lambda card: card.first_token,
    "delimiter": lambda card: card.delimiter,
    "positional": lambda card: card.positional,
    "copying (OV), -1 to 1": lambda card: card.copying,
    "loss without it, nats": lambda card: None if card.ablation is None else card.ablation.change.value,
}


def worth(card: HeadCard) -> float:
    """How much is lost without a head; where that was not measured, its induction score."""
    return card.induction.value if card.ablation is None else card.ablation.change.value


def parts_of(
    network: Network,
    tokenizer: Tokenizer,
    texts: Iterable[str] | None = None,
    *,
    name: str = "the model",
    neurons: Sequence[tuple[int, int]] = (),
    sites: Sequence[str] = (),
    how: How = "mean",
    windows: int = WINDOWS,
    length: int = LENGTH,
    ablate: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Parts:
    """What the heads of a model do, and some neurons (layer, number), on windows of texts or of what it writes itself.

    `sites` are further parts whose worth is measured, with zeros, their mean, or what passed in another window in their place.
    """
    check_has_heads(network)
    with evaluating(network):
        ids = windows_of(network, tokenizer, texts, count=windows, length=length, seed=seed)
        found = neuron_cards(network, tokenizer, ids, list(neurons)) if neurons else []
        ablator = Ablator(network, ids, seed=seed) if sites else None
        ablations = [] if ablator is None else [ablator(site, how) for site in sites]
        cards = head_cards(network, tokenizer, ids, ablate=ablate, seed=seed, progress=progress)
    said = "what the model itself writes" if texts is None else "the text that was given"
    return Parts(name, tuple(cards), said, tuple(found), tuple(ablations))


@dataclass(frozen=True)
class Moment:
    """A checkpoint: its step, its loss on the windows, and each head's scores [layers heads] by name."""

    step: int
    loss: float
    scores: dict[str, Any]


@dataclass(frozen=True)
class Story:
    """The heads of a run over its checkpoints."""

    name: str
    moments: tuple[Moment, ...]

    def to_json(self) -> dict[str, Any]:
        told = [
            {"step": one.step, "loss": one.loss, "scores": {name: values.tolist() for name, values in one.scores.items()}}
            for one in self.moments
        ]
        return {"run": self.name, "checkpoints": told}

    def lines(self) -> list[str]:
        """For a terminal: the loss and the highest score of each trade at every checkpoint."""
        trades = list(self.moments[0].scores)
        said = [f"{'step':>8} {'loss':>8}  " + "  ".join(f"{trade:>14}" for trade in trades)]
        for one in self.moments:
            best = "  ".join(f"{one.scores[trade].max():>14.2f}" for trade in trades)
            said.append(f"{one.step:>8,} {one.loss:>8.3f}  {best}")
        return [*said, "The highest score of any head."]

    def to_html(self) -> str:
        """One page that opens with no network."""
        curves = [(trade, Markup(self.curves(trade))) for trade in self.moments[0].scores]  # our own SVG
        return page("story", name=self.name, curves=curves, moments=self.moments, version=version("pellucid"))

    def curves(self, trade: str) -> str:
        """How one score rises for the heads that end with most of it, the loss beside it."""
        steps = [one.step for one in self.moments]
        last = self.moments[-1].scores[trade]
        with picture(9, 3.0) as (figure, drawn):
            axes = figure.add_subplot()
            for number, place in enumerate(np.argsort(-last, axis=None)[:FOLLOWED].tolist()):
                layer, head = np.unravel_index(place, last.shape)
                values = [float(one.scores[trade][layer, head]) for one in self.moments]
                axes.plot(steps, values, color=LINES[number], marker=MARKS[number], ms=4, label=f"layer {layer}, head {head}")
            axes.set(title=f"{trade} score", xlabel="step", ylim=(min(0.0, float(last.min())), 1.02))
            beside = axes.twinx()
            beside.plot(steps, [one.loss for one in self.moments], color="#66717a", ls="--", lw=1.5)
            beside.set_ylabel("loss, nats (dashed)")
            axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.09, 1))
            axes.grid(alpha=0.25)
        return drawn[0]

    def _repr_html_(self) -> str:
        return self.to_html()

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the page (`.html`) or the figures (`.json`)."""
        save(self, Path(path), force=force)


def story_of(
    checkpoints: Sequence[tuple[int, Callable[[], tuple[Network, Tokenizer]]]],
    texts: Iterable[str],
    *,
    name: str,
    seed: int = 0,
    progress: Progress | None = None,
) -> Story:
    """The heads at each checkpoint, given as its step and what opens it, on the same windows of text."""
    moments, lines = [], beginning(texts)
    with (progress or Silent()).task("watching", len(checkpoints), "checkpoints") as task:
        for step, opened in checkpoints:
            network, tokenizer = opened()
            check_has_heads(network)
            network.eval()
            ids = windows_of(network, tokenizer, lines, count=8, length=128, seed=seed)
            repeats = induction_scores(network, tokenizer, seed)
            shape = (network.config.layers, network.config.heads)
            scores: dict[str, Any] = {"induction": np.array([found.value for found, _ in repeats.values()]).reshape(shape)}
            scores |= {trade.replace("_", " "): values for trade, values in on_text(network, tokenizer, ids).items()}
            if (copying := copying_scores(network)) is not None:
                scores["copying"] = copying
            moments.append(Moment(step, float(losses(network, ids).mean()), scores))
            task.advance(1)
    return Story(name, tuple(moments))


def beginning(texts: Iterable[str]) -> list[str]:
    """As many of the texts as some windows need, whatever a token is."""
    found, length = [], 0
    for text in texts:
        found.append(text)
        length += len(text)
        if length > ENOUGH:
            break
    return found


def checkpoints_of(run: RunFolder) -> list[tuple[int, Path]]:
    """The whole checkpoints of a run by their steps."""
    if not run.is_run():
        raise RunError(f"{run.path} is no run, so it has no checkpoints to follow; give the folder that pretrain wrote")
    found = sorted((position(path).step, path) for path in all_whole(run))
    if len(found) < 2:
        raise RunError(
            f"{run.path} keeps {len(found)} checkpoint{'s' * (len(found) != 1)}, and a story has two or more; "
            "train with: --checkpoint-every N --training.keep 100"
        )
    return found
