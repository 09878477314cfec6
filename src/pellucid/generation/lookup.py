"""Guesses how a text goes on: as it went on after the same tokens before (prompt lookup; Saxena, 2023)."""

from __future__ import annotations

from collections.abc import Iterable

GRAMS = (3, 2)  # so many tokens are looked up, the longer first


class Lookup:
    """The tokens of a text, and where each few of them stood last."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self.tokens: list[int] = []
        self.after: dict[tuple[int, ...], int] = {}  # what follows these tokens begins here
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Go on with the text."""
        for token in tokens:
            for gram in GRAMS:  # what ends here is only now followed by something
                if len(self.tokens) >= gram:
                    self.after[tuple(self.tokens[-gram:])] = len(self.tokens)
            self.tokens.append(token)

    def guess(self, most: int) -> list[int]:
        """Up to so many tokens that may come next."""
        for gram in GRAMS:
            at = self.after.get(tuple(self.tokens[-gram:])) if len(self.tokens) >= gram else None
            if at is not None:
                return self.tokens[at : at + max(0, most)]
        return []
