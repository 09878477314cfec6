"""Text to tokens and back: a `tokenizer.json` of the `tokenizers` library, trained here or loaded."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from itertools import accumulate, count, islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pellucid.core.errors import TokenizerError
from pellucid.core.files import write_json, write_text
from pellucid.core.progress import Progress, Silent
from pellucid.text import folders, vocabulary
from pellucid.text.byte_pairs import frame
from pellucid.text.characters import CharacterTable, check_whole, is_characters
from pellucid.text.corpus import Document
from pellucid.text.folders import GENERAL_CLASS, Refusals, token_name
from pellucid.text.sections import sections
from pellucid.text.streaming import ByteStream, TextStream, WindowStream
from pellucid.text.vocabulary import END_OF_TEXT, SPECIAL, UNKNOWN
from pellucid.text.words import begins_word

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

# Learning from 30 MB compresses English 0.1 % better at 8,192 tokens, 0.4 % at 32,000; Chinese takes 0.1 GB of memory per MB.
SAMPLE_BYTES = 10_000_000
# Names of special tokens, where no file says which they are.
ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
BEGINNINGS = ("<s>", "[CLS]", "<bos>", "<|begin_of_text|>")
MASKS = ("[MASK]", "<mask>", "<|mask|>")
PADS = ("[PAD]", "<pad>", "<|pad|>")
SENTINEL = "<extra_id_{}>"  # what stands for a hole in a text, and before what fills it (Raffel et al., 2020)
CONFIG: dict[str, Any] = {
    "tokenizer_class": GENERAL_CLASS,
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
        self.end_of_text = self._find(("eos_token",), ENDS)

    @classmethod
    def train_bpe(
        cls,
        corpus: Iterable[Document | str],
        vocab_size: int,
        *,
        sample_bytes: int = SAMPLE_BYTES,
        extra: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Tokenizer:
        """Learn byte-level byte-pair encoding, which encodes every text without loss.

        A corpus larger than `sample_bytes` is read whole, but learned from a sample: the sections with the smallest hashes.
        `extra` names more special tokens, with the ids 3, 4, ...: "[MASK]" for masked language modelling, "<extra_id_0>",
        "<extra_id_1>", ... for span corruption. Raises `TokenizerError` if `vocab_size` is too small for the bytes (259 with
        no extra) or larger than the corpus supports.
        """
        special = _special(extra)
        return _trained(vocabulary.train_bpe(_texts(corpus, progress), vocab_size, sample_bytes, special), extra)

    @classmethod
    def train_wordpiece(
        cls,
        corpus: Iterable[Document | str],
        vocab_size: int,
        *,
        sample_bytes: int = SAMPLE_BYTES,
        extra: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Tokenizer:
        """Learn uncased words and pieces, as BERT has: short sequences, which suit encoders and bags of words.

        They lose something of a text: capital letters, accents and spacing, and a word with a character that is not among the
        1,000 most frequent, or longer than 100 characters, is [UNK], with the id 3.
        `extra` has the ids 4, 5, ...; otherwise as `train_bpe`.
        """
        special = _special(extra, (*SPECIAL, UNKNOWN))
        backend = vocabulary.train_wordpiece(_texts(corpus, progress), vocab_size, sample_bytes, special)
        return _trained(backend, extra, {"unk_token": UNKNOWN, "do_lower_case": True})

    @classmethod
    def train_chars(
        cls, corpus: Iterable[Document | str], *, extra: Sequence[str] = (), progress: Progress | None = None
    ) -> Tokenizer:
        """Make one token of every distinct character in the corpus, all of which is read. Others cannot be encoded later.

        `extra` names more special tokens, as for `train_bpe`.
        """
        return _trained(vocabulary.train_chars(_texts(corpus, progress), _special(extra)), extra)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a `tokenizer.json`, or a folder that has one or GPT-2's, RoBERTa's or BERT's own files, with what lies beside.

        Raises `TokenizerError`, and `CorruptionError` for a damaged file beside it.
        """
        return cls(*folders.read(Path(path)))

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

    def encode(self, text: str, *, special: bool = False, framed: bool = False) -> list[int]:
        """The tokens of a text. With `special`, the names of special tokens in it become those tokens.

        `framed` adds what the model expects around a text, as transformers does by default: [CLS] and [SEP], or a beginning.
        Raises `TokenizerError` for half a character, and by characters for one that the training text did not have.
        """
        if self._table is not None:
            before, after = self.frame if framed else ([], [])
            return [*before, *self._encode_characters(text, special), *after]
        with _refusals([text]):
            return (self.backend if special else self._plain).encode(text, add_special_tokens=framed).ids

    def encode_places(self, text: str, *, special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        """The tokens of a text, as `encode` gives them, and which characters [start, end) of it each came from."""
        if self._table is None:
            with _refusals([text]):
                encoding = (self.backend if special else self._plain).encode(text, add_special_tokens=False)
            # A token of nothing but spaces, cut off by some tokenizers, came from the character before its end.
            return encoding.ids, [(start, end) if start < end else (max(0, end - 1), end) for start, end in encoding.offsets]
        ids = self._encode_characters(text, special)
        added = self.backend.get_added_tokens_decoder() if special else {}
        ends = list(accumulate(len(added[id].content) if id in added else 1 for id in ids))
        return ids, list(zip([0, *ends], ends, strict=False))

    def encode_batch(self, texts: Sequence[str], *, framed: bool = False) -> list[npt.NDArray[np.uint32]]:
        """The tokens of many texts, on all cores; special tokens in them are plain text."""
        if self._table is not None:
            tokens = [self._table.encode(text).astype(np.uint32) for text in texts]
            before, after = (np.array(ids, dtype=np.uint32) for ids in (self.frame if framed else ([], [])))
            return [np.concatenate([before, ids, after]) for ids in tokens]
        with _refusals(texts):
            encodings = self._plain.encode_batch_fast(list(texts), add_special_tokens=framed)
        return [np.frombuffer(array("I", encoding.ids), dtype=np.uint32) for encoding in encodings]

    def encode_offsets(self, texts: Sequence[str]) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """The tokens of many texts, without a frame, and the characters that each stands for: [tokens] and [tokens 2].

        Offsets are those of the first character and after the last; the tokens that make up one character share them.
        """
        if self._table is not None:
            rows = [self._table.encode(text).astype(np.int64) for text in texts]
            return [(ids, np.arange(len(ids), dtype=np.int64)[:, None] + np.array([0, 1])) for ids in rows]
        with _refusals(texts):
            encodings = self._plain.encode_batch(list(texts), add_special_tokens=False)
        return [
            (np.array(encoding.ids, dtype=np.int64), np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2))
            for encoding in encodings
        ]

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """The tokens that `framed` puts before a text, and those after it."""
        text = "a" if self._table is None else chr(int((self._table.ids >= 0).argmax()))
        with _refusals([text]):
            encoding = self._plain.encode(text)
        inside = [at for at, sequence in enumerate(encoding.sequence_ids) if sequence is not None] or [len(encoding)]
        return encoding.ids[: inside[0]], encoding.ids[inside[-1] + 1 :]

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

    def stream(self, *, special: bool = False, after: Sequence[int] = ()) -> TextStream:
        """Decodes tokens one by one, for text that is shown while it is written; special ones are left out unless `special`.

        `after` are the tokens of a text that it goes on with.
        """
        if not self._byte_level and self._table is None:
            return WindowStream(lambda ids: self.decode(ids, special=special), after)
        hidden = frozenset[int]() if special else self.special_ids
        return ByteStream(lambda id: b"" if id in hidden else self.token_bytes(id))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The tokens that are no text."""
        return frozenset(id for id, token in self.backend.get_added_tokens_decoder().items() if token.special)

    @property
    def mask(self) -> int | None:
        """The token that stands for a hidden one, where a model was trained to find it."""
        return self._find(("mask_token",), MASKS)

    @property
    def pad(self) -> int | None:
        """The token that fills up shorter texts of a batch."""
        return self._find(("pad_token",), PADS)

    @property
    def beginning(self) -> int | None:
        """The token before a text."""
        return self._find(("bos_token", "cls_token"), BEGINNINGS)

    @cached_property
    def sentinels(self) -> list[int]:
        """The tokens <extra_id_0>, <extra_id_1>, ... that stand for holes, as many as there are."""
        found = map(self.backend.token_to_id, map(SENTINEL.format, count()))
        return [id for id in takewhile(lambda id: id is not None, found) if id is not None]

    def word_starts(self) -> npt.NDArray[np.bool_]:
        """Whether each token begins a word; the others go on with one.

        WordPiece marks what goes on ("##ing"). Of other tokens, those go on whose first character is a letter, a digit or an
        accent: a space, a line end and a punctuation mark begin a word, and so does every Chinese or Japanese character,
        whose words nothing separates. A special token is a word.
        """
        starts = np.ones(self.vocab_size, dtype=np.bool_)
        prefix = getattr(self.backend.model, "continuing_subword_prefix", None) if self.kind == "wordpiece" else None
        for token, id in self.backend.get_vocab(with_added_tokens=False).items():
            starts[id] = not token.startswith(prefix) if prefix else begins_word(self.token_bytes(id))
        starts[list(self.special_ids)] = True
        return starts

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

    def _find(self, keys: Sequence[str], names: Sequence[str]) -> int | None:
        """The special token that the config declares under one of the keys; if it declares none, the first one so named."""
        declared = [name for key in keys if (name := token_name(self.config, key)) is not None]
        ids = map(self.backend.token_to_id, declared or names)
        return next((id for id in ids if id is not None), None)


def _special(extra: Sequence[str], usual: Sequence[str] = SPECIAL) -> tuple[str, ...]:
    special = (*usual, *extra)
    for name in extra:
        if len(name) < 2 or special.count(name) > 1:
            raise TokenizerError(f"the extra token {name!r} is a single character or there already; name it otherwise")
    return special


def _trained(backend: Backend, extra: Sequence[str], more: dict[str, Any] | None = None) -> Tokenizer:
    """With what objectives other than the next token need: the frame of a text that has holes, and the names of its tokens."""
    additional = [name for name in (*SPECIAL[1:], *extra) if name != MASKS[0]]
    config = CONFIG | {"additional_special_tokens": additional} | (more or {})
    end = [SPECIAL.index(END_OF_TEXT)]
    if MASKS[0] in extra:
        config |= {"mask_token": MASKS[0], "cls_token": END_OF_TEXT, "sep_token": END_OF_TEXT}
        frame(backend, end, end)
    elif SENTINEL.format(0) in extra:
        frame(backend, [], end)
    return Tokenizer(backend, config)


def _refusals(texts: Sequence[str]) -> Refusals:
    """Turn the library's refusal of a text into a `TokenizerError`: one with half a character, or one it has no token for."""

    def say(error: BaseException) -> TokenizerError:
        for text in texts:
            check_whole(text)
        return TokenizerError(f"this tokenizer cannot encode the text ({error}); use one that can")

    return Refusals(say)


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
