"""What the difference becomes when parts of the text are taken away: the ground on which attributions are made and judged."""

from __future__ import annotations

from functools import cached_property
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from torch import Tensor

from pellucid.core.errors import ConfigError
from pellucid.core.progress import Silent, Task
from pellucid.evaluation.likelihood import opening
from pellucid.explanation.question import Question
from pellucid.explanation.rows import BATCH_TOKENS, Row, differences

Way = Literal["auto", "delete", "mask", "mean"]
Kept = npt.NDArray[np.bool_]  # [sets units]: which units stay
Floats = npt.NDArray[np.float64]


class Removal:
    """The difference as a function of which units stay; what has been read once is remembered.

    `way` is what happens to the tokens of the others: they are deleted, as if never written; become the tokenizer's mask token;
    or get the mean of all tokens' vectors. Tokens that are no text (a frame, a mask that is asked about) always stay. Left to
    "auto", tokens are deleted, but for a tagger, whose answer stands at a token, masked, or set to the mean without a mask.
    """

    def __init__(
        self, question: Question, way: Way = "auto", *, task: Task | None = None, batch_tokens: int = BATCH_TOKENS
    ) -> None:
        self.question, self.batch_tokens = question, batch_tokens
        self.task: Task = task or Silent()  # hears of every text that is read
        if way not in get_args(Way):
            raise ConfigError(f"remove by {', '.join(get_args(Way))}, not {way!r}")
        self.way = usual(question) if way == "auto" else way
        if self.way == "delete" and question.network.config.head == "tag":
            raise ConfigError("the word that is asked about cannot be deleted; remove by mask or mean")
        if self.way == "mask" and question.tokenizer.mask is None:
            raise ConfigError("this model's tokenizer has no mask token; remove by delete or mean")
        self.units = len(question.units)
        self.known: dict[bytes, float] = {}

    @cached_property
    def whole(self) -> float:
        """The difference that is explained."""
        return float(self(np.ones((1, self.units), dtype=np.bool_))[0])

    @cached_property
    def nothing(self) -> float:
        """The difference without any of the text."""
        return float(self(np.zeros((1, self.units), dtype=np.bool_))[0])

    @cached_property
    def vector(self) -> Float[Tensor, " d_model"]:
        """The mean of all tokens' vectors."""
        return self.question.network.embedding.weight.detach().float().mean(dim=0)

    def __call__(self, kept: Kept) -> Floats:
        """The difference for each set of units that stay [sets]."""
        keys = [np.packbits(row).tobytes() for row in kept]
        new = {key: number for number, key in enumerate(keys) if key not in self.known}
        rows = [self.rows(kept[number]) for number in new.values()]
        flat = [row for group in rows for row in group]
        vector = self.vector if self.way == "mean" else None
        options = {"vector": vector, "batch_tokens": self.batch_tokens, "task": self.task}
        found = iter(differences(self.question.network, flat, **options).tolist())  # type: ignore[arg-type]
        for key, group in zip(new, rows, strict=True):
            self.known[key] = sum(next(found) for _ in group)
        return np.array([self.known[key] for key in keys])

    def rows(self, kept: npt.NDArray[np.bool_]) -> list[Row]:
        """What is to be read where only some units stay."""
        question = self.question
        gone = [token for unit, stays in zip(question.units, kept, strict=True) if not stays for token in unit.tokens]
        if self.way == "mean":
            return question.rows(question.ids, blank=gone)
        if self.way == "mask":
            mask = question.tokenizer.mask
            assert mask is not None, "seen to before"
            absent = set(gone)
            return question.rows([mask if number in absent else id for number, id in enumerate(question.ids)])
        stay = sorted(set(range(len(question.ids))) - set(gone))
        ids = [question.ids[number] for number in stay]
        at = None if question.at is None else stay.index(question.at)
        return question.rows(ids or opening(question.tokenizer), at=at)


def usual(question: Question) -> Literal["delete", "mask", "mean"]:
    """How tokens are taken away where the user does not say."""
    if question.network.config.head != "tag":
        return "delete"
    return "mean" if question.tokenizer.mask is None else "mask"


def blank_vector(question: Question) -> Float[Tensor, " d_model"]:
    """The vector of a token that says nothing: of the mask token where there is one, else the mean over the vocabulary."""
    weight, mask = question.network.embedding.weight.detach(), question.tokenizer.mask
    return weight.float().mean(dim=0) if mask is None else weight[mask].float()


def leave_one_out(removal: Removal) -> Floats:
    """What each unit changes when it alone is taken away, [units] (Li et al., 2016)."""
    return removal.whole - removal(~np.eye(removal.units, dtype=np.bool_))


def orders(units: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Random orders of the units, [count units], each followed by its reverse; more begin with the same as fewer.

    So what is read for one purpose need not be read again for another.
    """
    random = np.random.default_rng(seed)
    drawn = [random.permutation(units) for _ in range(-(-count // 2))]
    return np.array([order for one in drawn for order in (one, one[::-1])])[:count]


def prefixes(order: npt.NDArray[np.int64]) -> Kept:
    """The sets that its first 0, 1, 2 ... units make, [units + 1 units]."""
    rank = np.argsort(order)
    return rank[None] < np.arange(len(order) + 1)[:, None]


def every_set(units: int) -> Kept:
    """All sets of units, [2^units units], in the order of the numbers that their bits make."""
    return (np.arange(2**units)[:, None] >> np.arange(units) & 1).astype(np.bool_)
