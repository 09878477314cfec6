"""Tokens to text as they come, never half a character."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol


class TextStream(Protocol):
    """Joined, what `push` and `finish` return is the text of all tokens."""

    def push(self, id: int) -> str:
        """The text that this token completes, which may be none."""

    def finish(self) -> str:
        """What is left, with a replacement character for an unfinished one."""


class ByteStream:
    """For tokens that are bytes: an incremental UTF-8 decoder, constant work per token."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self.token_bytes = token_bytes
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        return self.decoder.decode(self.token_bytes(id))

    def finish(self) -> str:
        return self.decoder.decode(b"", final=True)


class WindowStream:
    """For other tokens, whose text depends on their neighbours: decodes the last tokens together, and emits what they add.

    A character that some tokens leave unfinished is waited for, but not for longer than `LONGEST_WAIT` tokens. The first goes
    on from the tokens `after` which it comes: a space that belongs between the two is not lost.
    """

    LONGEST_WAIT = 16

    def __init__(self, decode: Callable[[Sequence[int]], str], after: Sequence[int] = ()) -> None:
        self.decode = decode
        before = list(after[-self.LONGEST_WAIT :])
        whole = not decode(before).endswith("\ufffd")
        self.context: list[int] = before if whole else []  # tokens emitted last, which shape the next ones
        self.waiting: list[int] = []

    def push(self, id: int) -> str:
        self.waiting.append(id)
        text = self._new()
        if not text or (text.endswith("\ufffd") and len(self.waiting) < self.LONGEST_WAIT):
            return ""
        self.context, self.waiting = self.waiting, []
        return text

    def finish(self) -> str:
        text = self._new()
        self.context, self.waiting = [], []
        return text

    def _new(self) -> str:
        return self.decode([*self.context, *self.waiting])[len(self.decode(self.context)) :]
