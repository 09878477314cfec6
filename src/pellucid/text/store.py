"""Tokens on disk, memory-mapped, with the sections that they come from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from pellucid.core.errors import ConfigError, CorpusError, CorruptionError, TokenizerError
from pellucid.core.files import read_json, verify
from pellucid.core.progress import Progress, Silent
from pellucid.text.build import FORMAT, INFO, SECTIONS_FILE, TOKENS_FILE, build_store
from pellucid.text.corpus import Corpus
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.view import SECTIONS, TokenView

__all__ = ["TokenStore", "TokenView"]


class TokenStore:
    """The tokens of a corpus: every section's, each followed by end-of-text, as little-endian uint16 or uint32.

    Which sections form a stream is for `split` and `view` to say.
    """

    def __init__(self, folder: Path) -> None:
        info = read_json(folder / INFO)
        self.folder = folder
        self.tokenizer_fingerprint: str = info["tokenizer"]
        self.corpus_fingerprint: str = info["corpus"]
        self.end_of_text: int = info["end_of_text"]
        self.tokens = np.asarray(np.memmap(folder / TOKENS_FILE, dtype=info["dtype"], mode="r"))
        self.sections = np.asarray(np.memmap(folder / SECTIONS_FILE, dtype=SECTIONS, mode="r"))
        if len(self.sections) != info["sections"] or self.sections["end"][-1] != len(self.tokens):
            raise CorruptionError(f"{folder} is not consistent: its sections do not end where its tokens do; delete it")

    @classmethod
    def build(cls, corpus: Corpus, tokenizer: Tokenizer, cache: str | Path, *, progress: Progress | None = None) -> TokenStore:
        """Encode a corpus into a folder of `cache`, named after the content of corpus and tokenizer, or open the one there.

        Encoding uses all cores. It can be killed at any instant and goes on where it was; the result is the same to the byte.
        Raises `TokenizerError` if the tokenizer has no end-of-text token, `ResourceError` if the disk is full.
        """
        if tokenizer.end_of_text is None:
            raise TokenizerError(
                "this tokenizer has no end-of-text token to keep documents apart; "
                'name one as "eos_token" in a tokenizer_config.json beside its tokenizer.json'
            )
        key = hashlib.sha256(f"{FORMAT}\n{corpus.fingerprint()}\n{tokenizer.fingerprint}".encode()).hexdigest()[:32]
        folder = Path(cache) / key
        if not folder.is_dir():
            build_store(corpus, tokenizer, folder, progress or Silent())
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path, *, verify_hashes: bool = False) -> TokenStore:
        """Open a store; sizes are always checked, every byte with `verify_hashes`. Raises `CorruptionError` naming the file."""
        verify(Path(folder), hashes=verify_hashes)
        return cls(Path(folder))

    def check(self, tokenizer: Tokenizer) -> None:
        """Raise `TokenizerError` unless the store was made with this tokenizer."""
        if tokenizer.fingerprint != self.tokenizer_fingerprint:
            raise TokenizerError(
                f"{self.folder} was made with another tokenizer (fingerprint {self.tokenizer_fingerprint[:12]}, "
                f"this one has {tokenizer.fingerprint[:12]}); encode the text again, or use the tokenizer it was made with"
            )

    def view(self) -> TokenView:
        """All of it as one stream."""
        return self._view(np.ones(len(self.sections), dtype=bool))

    def split(self, validation: float) -> tuple[TokenView, TokenView]:
        """The streams for training and for validation, which is the sections whose hashes are in the lowest `validation` part.

        So copies of a text are on one side, and more text moves no section to the other. Neither side is empty: the lowest hash
        is always for validation, the highest never. Raises `CorpusError` if all sections are copies of one.
        """
        if not 0 < validation < 1:
            raise ConfigError(f"the validation fraction is {validation}; it must lie between 0 and 1")
        hashes = np.asarray(self.sections["hash"])
        if hashes.min() == hashes.max():
            size = int(self.sections["bytes"][0])
            raise CorpusError(
                f"the validation split would be empty: the corpus has only one section of text ({size} bytes); "
                "pass --validation FILE, or give more text"
            )
        chosen = hashes < np.uint64(min(int(validation * 2**64), 2**64 - 1))
        chosen = (chosen | (hashes == hashes.min())) & (hashes != hashes.max())
        return self._view(~chosen), self._view(chosen)

    def _view(self, chosen: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> TokenView:
        return TokenView(self.tokens, self.sections, chosen, self.end_of_text, self.folder.name)
