"""`pellucid tokenizer`: train, encode, decode, info."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from cyclopts import App

from pellucid.cli_shared import STDIN, USUAL, ReadingOptions, named, show_json, show_table
from pellucid.core.errors import ConfigError
from pellucid.core.progress import console

tokenizer = App(name="tokenizer", help="Train a tokenizer, use it, and measure how well it compresses.")


@tokenizer.command(name="train")
def tokenizer_train(
    *corpus: str,
    out: Path,
    kind: Literal["bpe", "wordpiece", "chars"] = "bpe",
    vocab_size: int | None = None,
    reading: ReadingOptions = USUAL,
    force: bool = False,
    quiet: bool = False,
) -> None:
    """Train a tokenizer on text.

    Parameters
    ----------
    corpus
        files, folders, globs, - or hf:NAME
    out
        the folder to make, with tokenizer.json
    kind
        byte-level BPE; uncased words and pieces, which lose capitals and rare characters; or one token per character
    vocab_size
        tokens that a bpe or wordpiece tokenizer has; without it 8192
    force
        replace OUT
    quiet
        show no progress
    """
    from pellucid.core.files import atomic_folder
    from pellucid.text.corpus import Corpus
    from pellucid.text.tokenizer import FILES, Tokenizer

    if kind == "chars" and vocab_size is not None:
        raise ConfigError(f"--vocab-size {vocab_size} has no effect with --kind chars, which decides its own; leave it out")
    if out.exists() and not force:
        raise ConfigError(f"{out} exists already; pass --force to replace it, or choose another --out")
    if out.exists() and not {"tokenizer.json"} <= {path.name for path in out.glob("*")} <= set(FILES):
        raise ConfigError(f"{out} is not a tokenizer's folder, so --force will not delete it; choose another --out")
    source, progress = Corpus.open(named(corpus), **reading.given()), console(quiet=quiet)
    if kind == "chars":
        made = Tokenizer.train_chars(source)
    else:
        train = Tokenizer.train_bpe if kind == "bpe" else Tokenizer.train_wordpiece
        made = train(source, vocab_size or 8192, progress=progress)
    with atomic_folder(out, sealed=False) as folder:
        made.save(folder)
    print(f"{out}: {made.vocab_size:,} tokens")


@tokenizer.command(name="encode")
def tokenizer_encode(tokenizer: Path, text: str = STDIN, *, json: bool = False) -> None:
    """Print the token ids of a text.

    Parameters
    ----------
    tokenizer
        a tokenizer.json, or a folder that holds one
    text
        the text; - reads standard input
    json
        print ids and tokens as JSON
    """
    from pellucid.text.tokenizer import Tokenizer

    loaded = Tokenizer.load(tokenizer)
    ids = loaded.encode(sys.stdin.read() if text == STDIN else text)
    if json:
        return show_json({"ids": ids, "tokens": [loaded.decode([i]) for i in ids]})
    print(" ".join(map(str, ids)))


@tokenizer.command(name="decode")
def tokenizer_decode(tokenizer: Path, *ids: int) -> None:
    """Print the text of token ids, given as arguments or on standard input.

    Parameters
    ----------
    tokenizer
        a tokenizer.json, or a folder that holds one
    ids
        token ids
    """
    from pellucid.text.tokenizer import Tokenizer

    try:
        numbers = list(ids) or [int(word) for word in sys.stdin.read().split()]
    except ValueError as error:
        raise ConfigError(f"{error}; token ids are whole numbers separated by spaces") from None
    print(Tokenizer.load(tokenizer).decode(numbers))


@tokenizer.command(name="info")
def tokenizer_info(
    tokenizer: Path,
    *corpus: str,
    reading: ReadingOptions = USUAL,
    json: bool = False,
) -> None:
    """Say what a tokenizer is, and with CORPUS how many bytes of it one token holds.

    Parameters
    ----------
    tokenizer
        a tokenizer.json, or a folder that holds one
    corpus
        text to measure the compression on
    json
        print as JSON
    """
    from pellucid.text.corpus import Corpus
    from pellucid.text.tokenizer import Tokenizer

    loaded = Tokenizer.load(tokenizer)
    facts: dict[str, Any] = {"kind": loaded.kind, "vocab_size": loaded.vocab_size, "end_of_text": loaded.end_of_text}
    facts["sha256"] = loaded.fingerprint
    if corpus:
        facts |= loaded.compression(Corpus.open(named(corpus), **reading.given()))
    if json:
        return show_json(facts)
    show_table(facts)
