"""Text to tokens and back: a `tokenizer.json` of the `tokenizers` library, trained here or loaded."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pellucid.core.errors import TokenizerError
from pellucid.core.files import read_json, write_json, write_text
from pellucid.core.progress import Progress, Silent
from pellucid.text import vocabulary
from pellucid.text.characters import CharacterTable, check_whole, is_characters
from pellucid.text.corpus import Document
from pellucid.text.sections import sections
from pellucid.text.streaming import ByteStream, TextStream, WindowStream
from pellucid.text.vocabulary import END_OF_TEXT, SPECIAL

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

# Learning from 30 MB compresses English 0.1 % better at 8,192 tokens, 0.4 % at 32,000; Chinese takes 0.1 GB of memory per MB.
SAMPLE_BYTES = 10_000_000
ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")  # names of the end of a text, where no file says which
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",  # the one that takes tokenizer.json as it is
    "eos_token": END_OF_TEXT,
    "pad_token": END_OF_TEXT,
    "additional_special_tokens": list(SPECIAL[1:]),
    "clean_up_tokenization_spaces": False,
}


FILES = ("tokenizer.json", "tokenizer_config.json")  # what `save` writes


class Tokenizer:
    """Encodes and decodes text. `backend` is the `tokenizers.Tokenizer`, `config` the contents of `tokenizer_config.json`.

    Text is data: characters that spell a special token are encoded as characters, unless a template passes `special=True`.
    """

    def __init__(self, backend: Backend, config: dict[str, Any]) -> None:
        backend.no_truncation()  # nothing is cut in silence
        backend.no_padding()
        self.backend, self.config = backend, config
        self.end_of_text = self._find_end_of_text()

    @classmethod
    def train_bpe(
        cls,
        corpus: Iterable[Document | str],
        vocab_size: int,
        *,
        sample_bytes: int = SAMPLE_BYTES,
        progress: Progress | None = None,
    ) -> Tokenizer:
        """Learn byte-level byte-pair encoding, which encodes every text without loss.

        A corpus larger than `sample_bytes` is read whole, but learned from a sample: the sections with the smallest hashes.
        Raises `TokenizerError` if `vocab_size` is below 259 or larger than the corpus supports.
        """
        return cls(vocabulary.train_bpe(_texts(corpus, progress), vocab_size, sample_bytes), dict(CONFIG))

    @classmethod
    def train_chars(cls, corpus: Iterable[Document | str], *, progress: Progress | None = None) -> Tokenizer:
        """Make one token of every distinct character in the corpus, all of which is read. Others cannot be encoded later."""
        return cls(vocabulary.train_chars(_texts(corpus, progress)), dict(CONFIG))

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a `tokenizer.json`, or a folder that has one, with what lies beside it. Raises `TokenizerError`."""
        from tokenizers import Tokenizer as Backend

        file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise TokenizerError(f"{file} does not exist; name a tokenizer.json or a folder that has one")
        try:
            backend = Backend.from_file(str(file))
        except Exception as error:  # the library raises nothing narrower
            raise TokenizerError(f"{file} is not a tokenizer that the tokenizers library can read ({error})") from None
        return cls(backend, _config_beside(file))

    def save(self, folder: str | Path, *, context_length: int | None = None) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, which transformers' `AutoTokenizer` opens.

        `context_length` is noted there as the longest text, in tokens, that the model takes.
        """
        config = dict(self.config)
        if context_length is not None:
            config["model_max_length"] = context_length
        write_text(Path(folder) / "tokenizer.json", self.to_json())
        write_json(Path(folder) / "tokenizer_config.json", config)

    def to_json(self) -> str:
        """The contents of `tokenizer.json`."""
        return self.backend.to_str(pretty=True)

    @cached_property
    def kind(self) -> str:
        """`chars`, or the kind of the model: `bpe`, `wordpiece`, `unigram`, `wordlevel`."""
        return "chars" if is_characters(self.backend) else type(self.backend.model).__name__.lower()

    @cached_property
    def vocab_size(self) -> int:
        """The number of rows that an embedding needs: the largest id and one."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of `tokenizer.json` and of which token ends a text."""
        return hashlib.sha256(f"{self.backend.to_str()}\n{self.end_of_text}".encode()).hexdigest()

    @property
    def chat_template(self) -> str | None:
        """The Jinja template for conversations, if this tokenizer came with one."""
        template = self.config.get("chat_template")
        return template if isinstance(template, str) else None

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The tokens of a text, nothing added. With `special`, the names of special tokens in it become those tokens.

        Raises `TokenizerError` for half a character, and by characters for one that the training text did not have.
        """
        if self._table is not None:
            return self._encode_characters(text, special)
        with _whole_characters([text]):
            return (self.backend if special else self._plain).encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """The tokens of many texts, on all cores; special tokens are plain text."""
        if self._table is not None:
            return [self._table.encode(text).astype(np.uint32) for text in texts]
        with _whole_characters(texts):
            encodings = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.frombuffer(array("I", encoding.ids), dtype=np.uint32) for encoding in encodings]

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]], *, special: bool = False) -> str:
        """The text of tokens, special ones left out unless `special`. Raises `TokenizerError` for a number that is no token."""
        numbers = [int(id) for id in ids]
        if numbers and not 0 <= min(numbers) <= max(numbers) < self.vocab_size:
            wrong = next(id for id in numbers if not 0 <= id < self.vocab_size)
            raise TokenizerError(
                f"{wrong} is not a token of this tokenizer, which has {self.vocab_size} (0 to {self.vocab_size - 1})"
            )
        return self.backend.decode(numbers, skip_special_tokens=not special)

    def compression(self, corpus: Iterable[Document | str]) -> dict[str, int | float]:
        """How many UTF-8 bytes a token holds on average in some text: `bytes`, `tokens`, `bytes_per_token`."""
        size = tokens = 0
        texts = _texts(corpus, None)
        while batch := list(islice(texts, 256)):
            size += sum(len(text.encode()) for text in batch)
            tokens += sum(map(len, self.encode_batch(batch)))
        if not tokens:
            raise TokenizerError("there is no text to measure the compression on; give some")
        return {"bytes": size, "tokens": tokens, "bytes_per_token": size / tokens}

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for (a special token: its name)."""
        token = self.backend.id_to_token(id)
        if token is None:
            return b""
        if self._byte_level:
            alphabet = byte_alphabet()
            return bytes(map(alphabet.__getitem__, token)) if alphabet.keys() >= set(token) else token.encode()
        if self._table is None and re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            return bytes([int(token[3:5], 16)])
        return (token if self._table is not None else token.replace("\u2581", " ")).encode()

    def stream(self, *, special: bool = False) -> TextStream:
        """Decodes tokens one by one, for text that is shown while it is written; special ones are left out unless `special`."""
        if not self._byte_level and self._table is None:
            return WindowStream(lambda ids: self.decode(ids, special=special))
        hidden = frozenset[int]() if special else self.special_ids
        return ByteStream(lambda id: b"" if id in hidden else self.token_bytes(id))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The tokens that are no text."""
        return frozenset(id for id, token in self.backend.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def _plain(self) -> Backend:
        """A copy for which special tokens are plain text: a setting of the whole object, which threads could not share."""
        from tokenizers import Tokenizer as Backend

        plain = Backend.from_str(self.backend.to_str())
        plain.encode_special_tokens = True
        return plain

    @cached_property
    def _table(self) -> CharacterTable | None:
        return CharacterTable(self.backend) if self.kind == "chars" else None

    @cached_property
    def _byte_level(self) -> bool:
        from tokenizers import decoders

        return isinstance(self.backend.decoder, decoders.ByteLevel)

    def _encode_characters(self, text: str, special: bool) -> list[int]:
        assert self._table is not None
        if not special:
            return list(self._table.encode(text).tolist())
        names = {token.content: id for id, token in self.backend.get_added_tokens_decoder().items()}
        pieces = re.split(f"({'|'.join(map(re.escape, names))})", text)
        return [id for piece in pieces for id in ([names[piece]] if piece in names else self._table.encode(piece).tolist())]

    def _find_end_of_text(self) -> int | None:
        declared = self.config.get("eos_token")
        if isinstance(declared, dict):
            declared = declared.get("content")
        for name in ENDS if declared is None else (declared,):
            if (id := self.backend.token_to_id(name)) is not None:
                return id
        return None


def _config_beside(file: Path) -> dict[str, Any]:
    """What the files beside a `tokenizer.json` say, as one `tokenizer_config.json`; without any, what suits every tokenizer."""
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (beside := file.with_name(name)).is_file():
            config.update(read_json(beside))
    if (template := file.with_name("chat_template.jinja")).is_file():
        config["chat_template"] = template.read_text(encoding="utf-8")
    config.setdefault("tokenizer_class", CONFIG["tokenizer_class"])
    config.setdefault("clean_up_tokenization_spaces", False)
    config.pop("auto_map", None)  # it names code to run, and we pass on no code
    return config


@contextmanager
def _whole_characters(texts: Sequence[str]) -> Iterator[None]:
    """Turn the library's refusal of a text with half a character, which it calls no text at all, into a `TokenizerError`."""
    try:
        yield
    except TypeError:
        for text in texts:
            check_whole(text)
        raise


@cache
def byte_alphabet() -> dict[str, int]:
    """Which byte each character of a byte-level token stands for (Radford et al., 2019)."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = sorted(set(range(256)) - set(visible))
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


def _texts(corpus: Iterable[Document | str], progress: Progress | None) -> Iterator[str]:
    size = getattr(corpus, "bytes", None)
    read = 0
    with (progress or Silent()).task("reading for the tokenizer", size and size / 1e6, "MB") as task:
        for document in corpus:
            for text in sections([document]) if isinstance(document, str) else [document.text]:
                read += len(text)
                yield text
            if read > 1_000_000:
                task.advance(read / 1e6)
                read = 0
        task.advance(read / 1e6)
