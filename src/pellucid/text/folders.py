"""Tokenizers in folders: `tokenizer.json`, and the files of GPT-2, RoBERTa and BERT from before there was one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.core.errors import CorruptionError, TokenizerError
from pellucid.core.files import format_bytes, own_file, read_json
from pellucid.text.byte_pairs import LARGEST_ID, add_tokens, byte_level, check_vocabulary, frame, is_text, parse_merges

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

LARGEST_FILE = 256_000_000  # bytes; the largest tokenizer.json in use has 40 MB
GENERAL_CLASS = "PreTrainedTokenizerFast"  # the class of transformers that takes a tokenizer.json as it is
BYTE_LEVEL_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
BYTE_LEVEL_CLASSES = {"GPT2Tokenizer", "RobertaTokenizer", GENERAL_CLASS, "BartTokenizer", "LongformerTokenizer"}
WORDPIECE_CLASSES = {"BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer", GENERAL_CLASS}
SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
GPT2 = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
ROBERTA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
BERT = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
CONVERT = "run transformers' AutoTokenizer.from_pretrained(folder).save_pretrained(folder), which writes tokenizer.json"


def read(path: Path) -> tuple[Backend, dict[str, Any]]:
    """The tokenizer in a file or folder and what its `tokenizer_config.json` says. Raises `TokenizerError`."""
    if not path.is_dir():
        if not path.is_file():
            raise TokenizerError(f"{path} does not exist; name a tokenizer.json or a folder that has one")
        return read_fast(path), read_config(path.parent)
    if file := own_file(path, "tokenizer.json"):
        return read_fast(file), read_config(path)
    for vocabulary, merges in BYTE_LEVEL_FILES:
        if (first := own_file(path, vocabulary)) and (second := own_file(path, merges)):
            return _read_byte_level(first, second, read_config(path))
    if file := own_file(path, "vocab.txt"):
        return _read_wordpiece(file, read_config(path))
    if found := next((name for name in SENTENCEPIECE_FILES if (path / name).is_file()), None):
        raise TokenizerError(f"{path / found} is a sentencepiece model, which we do not read; {CONVERT}")
    looked = ["tokenizer.json", *(" with ".join(files) for files in BYTE_LEVEL_FILES), "vocab.txt"]
    raise TokenizerError(f"{path} has no tokenizer ({', '.join(looked[:-1])} or {looked[-1]}); name a folder that has one")


def read_fast(file: Path) -> Backend:
    """A `tokenizer.json`. Raises `TokenizerError` for all that would crash later."""
    from tokenizers import Tokenizer, models, processors

    _check_size(file)
    with Refusals(lambda error: TokenizerError(f"{file} is not a tokenizer that the tokenizers library can read ({error})")):
        backend = Tokenizer.from_file(str(file))
    vocabulary = backend.get_vocab(with_added_tokens=True)
    if (largest := max(vocabulary.values(), default=0)) > LARGEST_ID:
        raise TokenizerError(f"{file} has a token with the id {largest}, more than {LARGEST_ID}; get the file anew")
    if isinstance(backend.model, models.WordPiece) and backend.model.unk_token not in vocabulary:
        raise TokenizerError(f"{file}: the token for unknown words, {backend.model.unk_token!r}, is missing; get the file anew")
    if isinstance(backend.post_processor, processors.TemplateProcessing):
        template = json.loads(backend.post_processor.__getstate__())
        wanted = {piece["SpecialToken"]["id"] for piece in template["single"] + template["pair"] if "SpecialToken" in piece}
        if unknown := wanted - template["special_tokens"].keys():
            raise TokenizerError(f"{file}: the template around a text needs {min(unknown)!r}, which is missing; get it anew")
    return backend


class Refusals:
    """Around calls of the tokenizers library: what it raises becomes the error that `say` makes of it.

    It raises `Exception`, nothing narrower, and where it crashes a class that it does not export.
    """

    def __init__(self, say: Callable[[BaseException], TokenizerError]) -> None:
        self.say = say

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            assert error is not None
            raise self.say(error) from None


def read_config(folder: Path) -> dict[str, Any]:
    """What the files beside a tokenizer say, as one `tokenizer_config.json`; without any, what suits every tokenizer."""
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if file := own_file(folder, name):
            config.update(_read_object(file))
    if file := own_file(folder, "chat_template.jinja"):
        config["chat_template"] = _read_text(file)
    config.setdefault("tokenizer_class", GENERAL_CLASS)
    config.setdefault("clean_up_tokenization_spaces", False)
    config.pop("auto_map", None)  # it names code to run, and we pass on no code
    return config


def token_name(config: Mapping[str, Any], key: str) -> str | None:
    """The name of a special token: files write it as a string, or as an object with more about it."""
    value = config.get(key)
    name = value.get("content") if isinstance(value, dict) else value
    return name if isinstance(name, str) and is_text(name) else None


def _read_byte_level(first: Path, second: Path, config: dict[str, Any]) -> tuple[Backend, dict[str, Any]]:
    from tokenizers import processors

    _check_class(first, config, BYTE_LEVEL_CLASSES)
    vocabulary = _read_object(first)
    merges = parse_merges(line for line in _read_text(second).split("\n") if line and not line.startswith("#version"))
    prefix_space = config.get("add_prefix_space") is True
    backend = byte_level(vocabulary, merges, "gpt-2", prefix_space=prefix_space, where=str(first))
    if not vocabulary.keys() >= set(ROBERTA.values()):
        return backend, _with_special(backend, config, GPT2, first)
    begin, end = ((name, vocabulary[name]) for name in (ROBERTA["bos_token"], ROBERTA["eos_token"]))
    backend.post_processor = processors.RobertaProcessing(end, begin, trim_offsets=True, add_prefix_space=prefix_space)
    return backend, _with_special(backend, config, ROBERTA, first)


def _read_wordpiece(file: Path, config: dict[str, Any]) -> tuple[Backend, dict[str, Any]]:
    """BERT (Devlin et al., 2019). Where no file says so, text is lower-cased if no token but a marker has a capital letter."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    _check_class(file, config, WORDPIECE_CLASSES)
    tokens = _read_text(file).removesuffix("\n").split("\n")
    vocabulary = {token: id for id, token in enumerate(tokens)}
    check_vocabulary(vocabulary, str(file))
    names = {key: token_name(config, key) or name for key, name in BERT.items()}
    for name in (names["unk_token"], names["cls_token"], names["sep_token"]):
        if name not in vocabulary:
            raise TokenizerError(f"{file} has no token {name}, so it is not BERT's; {CONVERT}")
    lower, chinese, accents = (config.get(key) for key in ("do_lower_case", "tokenize_chinese_chars", "strip_accents"))
    if not isinstance(lower, bool):
        lower = not any(re.search("[A-Z]", token) for token in tokens if not re.fullmatch(r"\[.*\]|<.*>", token))
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token=names["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=chinese is not False, strip_accents=accents if isinstance(accents, bool) else None, lowercase=lower
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    frame(backend, [vocabulary[names["cls_token"]]], [vocabulary[names["sep_token"]]])
    return backend, _with_special(backend, config, BERT, file)


def _check_class(file: Path, config: dict[str, Any], known: set[str]) -> None:
    name = str(config["tokenizer_class"])
    if name.removesuffix("Fast") not in known and name not in known:
        raise TokenizerError(f"{file} is for the class {name:.80}, which reads it in a way of its own; {CONVERT}")


def _with_special(backend: Backend, config: dict[str, Any], defaults: dict[str, str], file: Path) -> dict[str, Any]:
    """Mark the special tokens and add those that were added later; return the config that names them."""
    from tokenizers import AddedToken

    declared = {key: token_name(config, key) or name for key, name in defaults.items()}
    names = {key: name for key, name in declared.items() if backend.token_to_id(name) is not None}
    add_tokens(backend, names.values())
    later = config.get("added_tokens_decoder")
    if later is None and (listed := own_file(file.parent, "added_tokens.json")):
        later = {str(id): {"content": name} for name, id in _read_object(listed).items()}
    later = {id: token for id, token in later.items() if isinstance(token, dict)} if isinstance(later, dict) else {}
    for id, token in sorted(later.items(), key=lambda item: item[0].zfill(9)):
        if name := token_name(later, id):
            flags = {key: token.get(key) is True for key in ("special", "normalized", "single_word", "lstrip", "rstrip")}
            backend.add_tokens([AddedToken(name, **flags)])
        if not name or str(backend.token_to_id(name)) != id:
            raise TokenizerError(f"{file}: the added token {id:.20} ({name!r:.80}) is not the next one; correct its number")
    return config | names | {"tokenizer_class": GENERAL_CLASS}


def _check_size(file: Path) -> None:
    if (size := file.stat().st_size) > LARGEST_FILE:
        raise TokenizerError(f"{file} has {format_bytes(size)}, more than any tokenizer's; name another")


def _read_text(file: Path) -> str:
    _check_size(file)
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorruptionError(f"{file}: byte {error.start} is not UTF-8; get the file anew") from None


def _read_object(file: Path) -> dict[str, Any]:
    value = read_json(file)
    if not isinstance(value, dict):
        raise CorruptionError(f"{file} holds a {type(value).__name__}, not an object with names; get it anew")
    return value
