"""Characters as tokens, encoded by table: hundreds of megabytes a second; the general way makes a string of each."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pellucid.core.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

EVERY_CHARACTER = r"[\s\S]"


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """The Unicode code points of a text. Raises `TokenizerError` for half a character (a lone surrogate)."""
    check_whole(text)
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def check_whole(text: str) -> None:
    """Raise `TokenizerError` for a text with half a character, which no encoding can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise TokenizerError(f"character {error.start} of the text is half a character (U+{code:04X}); correct it") from None


class CharacterTable:
    """From code point to token."""

    def __init__(self, backend: Backend) -> None:
        self.ids = np.full(0x110000, -1, dtype=np.int32)
        characters = {token: id for token, id in backend.get_vocab(with_added_tokens=False).items() if len(token) == 1}
        for token, id in characters.items():
            self.ids[ord(token)] = id
        self.known = len(characters)

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """One token per character. Raises `TokenizerError` naming the first character that the training text did not have."""
        ids = self.ids[code_points(text)]
        if ids.size and ids.min() < 0:
            at = int((ids < 0).argmax())
            raise TokenizerError(
                f"character {text[at]!r} (U+{ord(text[at]):04X}, at position {at}) is not among the {self.known} that this "
                "tokenizer knows; leave it out, or train on text that has it, or use --tokenizer bpe, which takes any text"
            )
        return ids


def is_characters(backend: Backend) -> bool:
    """Whether a tokenizer has one token per character, as those trained here do."""
    from tokenizers import models, pre_tokenizers

    if not isinstance(backend.model, models.WordLevel) or not isinstance(backend.pre_tokenizer, pre_tokenizers.Split):
        return False
    state = json.loads(backend.pre_tokenizer.__getstate__())
    return backend.normalizer is None and state["pattern"] == {"Regex": EVERY_CHARACTER}
