"""Text that must be something: JSON of a schema, a match of a regular expression, one of several answers.

llguidance says which tokens may come next. Its grammars are compiled where a text is made, not where texts are written, and
within limits, so that nobody's grammar holds up anybody's text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from pellucid.core.errors import ConfigError, MissingExtraError, ModelError
from pellucid.text.tokenizer import Tokenizer

LAYOUT = {"whitespace_pattern": r"( |\n {0,12})?"}  # of JSON: a weak model would write spaces for ever

STEP = {"step_lexer_fuel": 50_000, "step_max_items": 20_000}  # of work for one token: a tenth of a second, where texts wait


@dataclass(frozen=True)
class Constraint:
    """What a text must be."""

    kind: str  # as messages call it
    grammar: str  # of llguidance

    @classmethod
    def of(
        cls, schema: dict[str, Any] | str | None = None, regex: str | None = None, choices: Sequence[str] | None = None
    ) -> Self | None:
        """One of the three, or None if none is given."""
        given = [name for name, value in (("schema", schema), ("regex", regex), ("choices", choices)) if value is not None]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} are both given; a text can be held to one of them")
        if schema is not None:
            return cls.json(schema)
        if regex is not None:
            return cls("regular expression", library().LLMatcher.grammar_from_regex(regex))
        return None if choices is None else cls.one_of(choices)

    @classmethod
    def json(cls, schema: dict[str, Any] | str) -> Self:
        """JSON that is valid under a schema; a schema without conditions lets it be any JSON."""
        try:
            grammar = library().LLMatcher.grammar_from_json_schema(schema, LAYOUT)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"the JSON schema cannot be used: {reason(error)}; correct it") from None
        return cls("JSON schema", grammar)

    @classmethod
    def one_of(cls, choices: Sequence[str]) -> Self:
        """One of several answers, to the letter."""
        if isinstance(choices, str) or not choices or not all(isinstance(choice, str) and choice for choice in choices):
            raise ConfigError(f"choices must be a list of texts that are not empty, not {choices!r}")
        answers = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
        return cls("list of choices", library().LLMatcher.grammar_from_lark(f"start: {answers}"))


class Matcher:
    """How far one text has come in its grammar."""

    def __init__(self, constraint: Constraint, tokenizer: Tokenizer, vocab_size: int, ends: frozenset[int]) -> None:
        limits, words = library().LLParserLimits(**STEP), vocabulary(tokenizer, vocab_size, ends)
        self.kind, self.matcher = constraint.kind, library().LLMatcher(words, constraint.grammar, log_level=0, limits=limits)
        if self.matcher.is_error():
            problem = reason(self.matcher.get_error())
            raise ConfigError(f"the {constraint.kind} cannot be used: {problem}; correct it, or make it simpler")

    def allowed(self) -> Bool[Tensor, " vocab"]:
        """Which tokens may come next."""
        allowed = np.frombuffer(self.matcher.compute_logit_bias(), dtype=np.uint8) != 0
        self.check()
        return torch.from_numpy(allowed)

    def take(self, token: int) -> None:
        """Go on by a token that was allowed."""
        self.matcher.consume_token(token)
        self.check()

    def check(self) -> None:
        if self.matcher.is_error():
            problem = reason(self.matcher.get_error())
            raise ModelError(f"the text cannot go on within its {self.kind}: {problem}; make that simpler")

    @property
    def ended(self) -> bool:
        """Whether nothing more may come."""
        return bool(self.matcher.is_stopped())


def library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise MissingExtraError("text of a given form", "serve") from None
    return llguidance


@lru_cache(maxsize=4)  # for a large vocabulary it takes a second
def vocabulary(tokenizer: Tokenizer, vocab_size: int, ends: frozenset[int]) -> Any:
    """A tokenizer's tokens as bytes, as llguidance wants them."""
    if type(tokenizer.backend.model).__name__ == "WordPiece":
        raise ModelError("this model's tokenizer (WordPiece) does not keep a text's spaces, so it can be held to no form")
    if not ends:
        raise ModelError("this model has no token that ends a text, so it can be held to no form")
    return library().LLTokenizer(Vocabulary(tokenizer, vocab_size, ends), eos_token=sorted(ends))


class Vocabulary:
    """What llguidance asks a tokenizer for."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, ends: frozenset[int]) -> None:
        self.tokenizer, self.eos_token_id = tokenizer, min(ends)
        self.special_token_ids = sorted(tokenizer.special_ids | ends)
        self.tokens = [tokenizer.token_bytes(id) for id in range(vocab_size)]

    def __call__(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)


def reason(error: object) -> str:
    """What is wrong, without the picture of where."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0]).rstrip(".")
