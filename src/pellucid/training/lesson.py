"""A task with nothing left open, and the model that it begins with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pellucid.network.config import ModelConfig
from pellucid.network.network import Network
from pellucid.text.chat import ChatTemplate, encode_chat
from pellucid.text.conversations import Conversation
from pellucid.text.labelled import Labelled
from pellucid.text.pairs import Pair
from pellucid.text.preferences import Preference as Choice
from pellucid.text.tokenizer import Tokenizer
from pellucid.training.loop import Score, Source
from pellucid.training.objectives import Objective

PARTS = ("train", "validation", "test")
Answer = Conversation | Pair | Choice


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A task with nothing left open: what is learnt, from what, by which network."""

    tokenizer: Tokenizer
    objective: Objective
    batches: Source
    batches_per_epoch: int
    validate: Callable[[Network], Score] | None  # None: nothing is held out
    fit: Callable[[Network], Network] = lambda network: network  # the network with the head, or the vocabulary, for the task
    rows: Mapping[str, Sequence[Labelled | Answer]] = field(default_factory=dict)  # of each part, for grades
    labels: tuple[str, ...] = ()
    multi: bool = False
    group: int = 1  # rows that belong together
    unit: float = 1.0  # in which the head counts: its rate is multiplied by this, and so are its gradients
    ends: frozenset[int] = frozenset()  # tokens at which an answer ends
    findings: tuple[str, ...] = ()  # about the data, in sentences
    fingerprint: Mapping[str, str] = field(default_factory=dict)

    def asked(self, prompt: str | Conversation, config: ModelConfig) -> list[int]:
        """The tokens after which the network is to write: of a prompt, or of a conversation up to its last turn."""
        if isinstance(prompt, str) and not self.ends:
            return self.tokenizer.encode(prompt, framed=config.architecture == "encoder-decoder")
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt.messages[:-1]
        return encode_chat(self.tokenizer, ChatTemplate.of(self.tokenizer), turns, add_generation_prompt=True)


@dataclass(frozen=True, kw_only=True)
class Start:
    """The model that a lesson begins with."""

    network: Callable[[], Network]
    config: ModelConfig
    tokenizer: Tokenizer

    @property
    def pad(self) -> int:
        found = self.tokenizer.pad if self.tokenizer.pad is not None else self.tokenizer.end_of_text
        return 0 if found is None else found


def digest(value: Any) -> str:
    """SHA-256 of lists of texts and numbers."""
    return hashlib.sha256(repr(value).encode("utf-8", "surrogatepass")).hexdigest()
