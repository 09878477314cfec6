"""What can be read off the stream by a linear rule: probes, each beside a control task that it could only learn by heart.

A probe that finds labels may have learnt them by itself. So it is also taught labels that were drawn at random for each word
(Hewitt and Liang, 2019): what it does better than that, its selectivity, was there to be read.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pellucid.core.errors import ConfigError, CorpusError, ModelError
from pellucid.core.pages import page
from pellucid.core.progress import Progress, Silent
from pellucid.evaluation.intervals import Estimate
from pellucid.explanation.ablation import interval
from pellucid.explanation.rows import evaluating, padded
from pellucid.explanation.saving import save
from pellucid.network.network import Network
from pellucid.network.taps import Taps
from pellucid.text.alignment import NO_TOKEN, WordWindow, encode_words
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.word_spans import Words

HELD_OUT = 0.3  # of the texts
MOST_WORDS = 20_000  # that are kept of a site
FEWEST = 20  # texts

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Probe:
    """How well a linear rule reads labels off a site, on texts that it has not seen: shares of words, with 95 % intervals."""

    site: str
    accuracy: Estimate
    control: Estimate  # of labels drawn at random for each word of the vocabulary
    selectivity: Estimate  # the difference of both, of the same words


@dataclass(frozen=True)
class Probes:
    """A probe for each site, and what guessing the commonest label would reach."""

    name: str  # of the model
    labels: tuple[str, ...]
    words: int
    majority: float
    found: tuple[Probe, ...]

    @property
    def best(self) -> Probe:
        return max(self.found, key=lambda probe: probe.selectivity.value)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def to_html(self) -> str:
        """One page that opens with no network."""
        return page("probes", name=self.name, found=self, version=version("pellucid"))

    def _repr_html_(self) -> str:
        return self.to_html()

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the page (`.html`) or the figures (`.json`)."""
        save(self, Path(path), force=force)

    def lines(self) -> list[str]:
        """For a terminal."""
        said = [f"{self.words:,} words held out, {len(self.labels)} labels; always the commonest: {self.majority:.1%}", ""]
        said.append(f"{'site':<24} {'accuracy':>9} {'control':>9} {'selectivity':>12}")
        for one in self.found:
            low, high = 100 * one.selectivity.low, 100 * one.selectivity.high
            mark = " *" if one is self.best else ""
            figures = f"{one.accuracy.value:>9.1%} {one.control.value:>9.1%} {100 * one.selectivity.value:>+11.1f}"
            said.append(f"{one.site:<24} {figures}  ({low:+.1f} to {high:+.1f}){mark}")
        return said


def probe(
    network: Network,
    tokenizer: Tokenizer,
    rows: Sequence[Words],
    labels: Sequence[Sequence[str]],
    *,
    name: str = "the model",
    sites: Sequence[str] = ("*embedding", "*.after"),
    seed: int = 0,
    progress: Progress | None = None,
) -> Probes:
    """Logistic regression of words' labels on what passes at some sites, at each word's last token.

    `labels` has one for each word of each row. Raises `CorpusError` for fewer than 20 texts.
    """
    if len(rows) != len(labels) or any(len(row.spans) != len(named) for row, named in zip(rows, labels, strict=False)):
        raise ConfigError("each word of each text needs one label; give as many as there are words")
    if len(rows) < FEWEST:
        raise CorpusError(f"there are {len(rows)} texts, too few to hold some out; give {FEWEST} or more")
    if network.config.architecture == "encoder-decoder":
        raise ModelError(f"probing a {network.config.family} model is not supported; use a decoder or an encoder")
    random = np.random.default_rng(seed)
    with evaluating(network):
        seen = Seen.of(network, tokenizer, rows, labels, sites)
    held = np.isin(seen.text, random.permutation(len(rows))[: max(1, round(HELD_OUT * len(rows)))])
    kinds, truth = np.unique(seen.label, return_inverse=True)
    if len(kinds) < 2:
        raise CorpusError(f"all words have the label {str(kinds[0])!r}, so there is nothing to tell apart; give others too")
    drawn = control(seen.word, truth, random)
    found = []
    with (progress or Silent()).task("probing", len(seen.values), "sites") as task:
        for site, values in seen.values.items():
            right, by_heart = (learnt(values, target, held) for target in (truth, drawn))
            of = [by_text(one, seen.text[held]) for one in (right, by_heart, right - by_heart)]
            found.append(Probe(site, *(weighted(one, seed) for one in of)))
            task.advance(1)
    majority = float((truth[held] == np.bincount(truth[~held]).argmax()).mean())
    return Probes(name, tuple(map(str, kinds)), int(held.sum()), majority, tuple(found))


@dataclass(frozen=True)
class Seen:
    """What passes at each site, [words d_model], at every word: the number of its text, what it is, and its label."""

    values: dict[str, npt.NDArray[np.float32]]
    text: Ints
    word: list[str]
    label: list[str]

    @staticmethod
    @torch.no_grad()
    def of(
        network: Network, tokenizer: Tokenizer, rows: Sequence[Words], labels: Sequence[Sequence[str]], sites: Sequence[str]
    ) -> Seen:
        windows = encode_words(tokenizer, rows, longest=network.config.context_length).windows
        taps = Taps(tuple(sites))
        network.check(taps)
        text, word, label = list[int](), list[str](), list[str]()
        parts: dict[str, list[npt.NDArray[np.float32]]] = {}
        for window in windows:
            ids, present = padded([window.ids.tolist()], network.device)
            network.encode(ids, network.padding(present), taps)
            there = [number for number, start in enumerate(window.starts.tolist()) if start != NO_TOKEN]
            ends = [last_token(tokenizer, window, number) for number in there]
            for site in taps:
                parts.setdefault(site, []).append(taps[site][0][ends].float().cpu().numpy())
            text += [window.row] * len(there)
            word += [rows[window.row].words()[window.first + number] for number in there]
            label += [labels[window.row][window.first + number] for number in there]
            if len(text) >= MOST_WORDS:
                break
        return Seen({site: np.concatenate(values) for site, values in parts.items()}, np.array(text), word, label)


def last_token(tokenizer: Tokenizer, window: WordWindow, word: int) -> int:
    """The last token of a word: before the next word's first, or before the frame's end, and not a space between."""
    after = [start for start in window.starts[word + 1 :].tolist() if start != NO_TOKEN]
    at = (after[0] if after else len(window.ids) - len(tokenizer.frame[1])) - 1
    while at > window.starts[word] and not tokenizer.decode([window.ids[at]]).strip():
        at -= 1
    return at


def control(words: Sequence[str], truth: Ints, random: np.random.Generator) -> Ints:
    """A label for each word of the vocabulary, the same wherever it stands, drawn as often as the true ones occur."""
    vocabulary, of = np.unique(list(words), return_inverse=True)
    drawn: Ints = random.permutation(truth)[: len(vocabulary)]
    return drawn[of]


def learnt(values: npt.NDArray[np.float32], target: Ints, held: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Whether a logistic regression, taught on the other texts, is right about each word held out."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if len(known := np.unique(target[~held])) < 2:
        return np.asarray(target[held] == known[0], dtype=np.float64)
    scaler = StandardScaler().fit(values[~held])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a rule that is not quite the best is a rule
        model = LogisticRegression(max_iter=200, C=0.1).fit(scaler.transform(values[~held]), target[~held])
    right = model.predict(scaler.transform(values[held])) == target[held]
    return np.asarray(right, dtype=np.float64)


def by_text(right: npt.NDArray[np.float64], text: Ints) -> npt.NDArray[np.float64]:
    """Sums and counts of each text, [texts 2]: words of one text are drawn together."""
    _, of = np.unique(text, return_inverse=True)
    return np.stack([np.bincount(of, right), np.bincount(of)], axis=1)


def weighted(texts: npt.NDArray[np.float64], seed: int) -> Estimate:
    """A share of words, and its interval over texts."""
    share = texts[:, 0].sum() / texts[:, 1].sum()
    around = interval((texts[:, 0] - share * texts[:, 1]) / texts[:, 1].mean(), seed)
    return Estimate(float(share), float(share + around.low), float(share + around.high))
