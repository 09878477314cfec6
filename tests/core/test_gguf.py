"""GGUF files: `gguf.GGUFReader` and formulas written out here are the judges; a damaged or hostile file is one sentence."""

import os
import random
import struct
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.gguf_reader import GGUFReader
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp import smollm2

from pellucid.core.errors import CorruptionError, MissingExtraError, ModelError, PellucidError, ResourceError
from pellucid.core.gguf import TYPES, open_gguf, write_gguf

UINT32, INT32, BOOL, STRING, ARRAY = 4, 5, 7, 8, 9
DTYPES = ("f32", "bf16", "f16", "q8_0", "q4_0", "q4_1")


def text(value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


def array(kind: int, count: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + payload


def info(name: str, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    """A tensor's description; `dims` innermost first, as in the file."""
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def container(pairs=(), infos=(), data=b"", *, version=3, counts=None, alignment=32) -> bytes:
    """A GGUF file, written out by hand."""
    tensors, keys = counts or (len(infos), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(pairs) + b"".join(infos)
    return head + bytes(-len(head) % alignment) + data


def opened(tmp_path: Path, content: bytes):
    (tmp_path / "x.gguf").write_bytes(content)
    return open_gguf(tmp_path / "x.gguf")


def assert_same(value, expected) -> None:
    assert (value.tolist() if isinstance(value, np.ndarray) else value) == expected


def assert_agrees_with_ggufs_reader(path: Path) -> None:
    """The same metadata, shapes and values as the official reader finds."""
    ours, theirs = open_gguf(path), GGUFReader(path)
    fields = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for name, field in fields.items():
        assert_same(ours.metadata[name], field.contents())
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        stored = ours.tensors[tensor.name]
        assert stored.type == tensor.tensor_type.name
        assert stored.shape == tuple(tensor.shape[::-1])
        assert stored.data.tobytes() == tensor.data.tobytes()
        values = ours.read(tensor.name)
        if stored.type == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        assert values.shape == stored.shape
        assert (
            values.tobytes()
            == (tensor.data if stored.type in ("F32", "F16") else dequantize(tensor.data, tensor.tensor_type)).tobytes()
        )


def test_a_real_model_is_read_as_ggufs_own_reader_reads_it():
    path = smollm2()
    assert_agrees_with_ggufs_reader(path)
    model = open_gguf(path)
    assert {tensor.type for tensor in model.tensors.values()} == {"Q4_1", "Q8_0", "F32"}
    assert model.tensors["token_embd.weight"].shape == (49152, 576)


class TestRoundTrip:
    scalars = (
        st.booleans()
        | st.integers(0, 2**32 - 1)
        | st.floats(width=32, allow_nan=False)
        | st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
    )
    lists = st.one_of(
        st.lists(kind, min_size=1, max_size=5)
        for kind in (
            st.booleans(),
            st.integers(-(2**31), 2**31 - 1),
            st.floats(width=32, allow_nan=False),
            st.text("aé字", max_size=3),
        )
    )
    keys = st.text("abc.", min_size=1, max_size=9)
    shapes = st.lists(st.integers(1, 5), max_size=2).flatmap(
        lambda outer: st.sampled_from([1, 7, 32, 64, 96]).map(lambda inner: (*outer, inner))
    )

    @settings(max_examples=60)
    @given(
        metadata=st.dictionaries(keys, scalars | lists, max_size=5),
        shapes=st.dictionaries(keys, shapes, max_size=5),
        dtype=st.sampled_from(DTYPES),
    )
    def test_what_is_written_is_what_both_readers_read(self, metadata, shapes, dtype, tmp_path_factory):
        path = tmp_path_factory.mktemp("gguf") / "x.gguf"
        values = np.random.default_rng(len(shapes))
        tensors = {name: values.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        write_gguf(path, metadata, tensors, dtype)
        assert_agrees_with_ggufs_reader(path)
        file = open_gguf(path)
        for key, value in metadata.items():
            assert_same(file.metadata[key], value)
        for name, tensor in tensors.items():
            kind = (
                "f32" if tensor.ndim == 1 else "f16" if dtype in ("q8_0", "q4_0", "q4_1") and tensor.shape[-1] % 32 else dtype
            )
            assert file.tensors[name].type == kind.upper()
            assert file.read(name).tobytes() == expected_bytes(tensor, kind)
        assert [entry.name for entry in path.parent.iterdir()] == ["x.gguf"]

    def test_the_types_of_numbers_are_those_that_llama_cpp_expects(self, tmp_path):
        metadata = {"a": True, "b": 3, "c": 0.5, "d": "é", "e": [1, -1], "f": [0.5], "g": ["x"], "h": [True]}
        write_gguf(tmp_path / "x.gguf", metadata, {}, "f16")
        fields = GGUFReader(tmp_path / "x.gguf").fields
        assert {key: [kind.name for kind in fields[key].types] for key in metadata} == {
            "a": ["BOOL"],
            "b": ["UINT32"],
            "c": ["FLOAT32"],
            "d": ["STRING"],
            "e": ["ARRAY", "INT32"],
            "f": ["ARRAY", "FLOAT32"],
            "g": ["ARRAY", "STRING"],
            "h": ["ARRAY", "BOOL"],
        }

    @pytest.mark.parametrize(("dtype", "number"), [("f32", 0), ("f16", 1), ("q4_0", 2), ("q4_1", 3), ("q8_0", 7), ("bf16", 32)])
    def test_the_file_says_its_type_unless_the_caller_does(self, tmp_path, dtype, number):
        write_gguf(tmp_path / "x.gguf", {}, {}, dtype)
        assert open_gguf(tmp_path / "x.gguf").metadata == {"general.file_type": number, "general.quantization_version": 2}
        write_gguf(tmp_path / "x.gguf", {"general.file_type": 5}, {}, dtype)
        assert open_gguf(tmp_path / "x.gguf").metadata["general.file_type"] == 5

    def test_one_tensor_at_a_time_is_in_memory(self, tmp_path):
        size = 1_000_000

        class Lazy(dict):
            shapes = dict.fromkeys("abcdefgh", (size // 32, 32))

            def __getitem__(self, name):
                made.append(name)
                return np.ones(self.shapes[name], np.float32)

        made = []
        tracemalloc.start()
        try:
            write_gguf(tmp_path / "x.gguf", {}, Lazy.fromkeys("abcdefgh"), "f16")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert len(open_gguf(tmp_path / "x.gguf").tensors) == 8
        assert made == list("abcdefgh")
        assert peak < 3 * 4 * size  # all eight would be 32 MB


def expected_bytes(tensor, kind: str) -> bytes:
    match kind:
        case "f32":
            return tensor.tobytes()
        case "f16":
            return tensor.astype(np.float16).tobytes()
        case "bf16":
            return torch.from_numpy(tensor).bfloat16().view(torch.uint16).numpy().tobytes()
    type_ = GGMLQuantizationType[kind.upper()]
    return dequantize(quantize(tensor, type_), type_).tobytes()


class TestDequantisation:
    def formula(self, kind: str, block: bytes) -> list[float]:
        """The 32 values of one block, by the definition of its type."""
        nibbles = lambda raw: [byte & 15 for byte in raw] + [byte >> 4 for byte in raw]  # noqa: E731
        if kind == "Q8_0":
            scale, *values = struct.unpack("<e32b", block)
            return [scale * value for value in values]
        if kind == "Q4_0":
            (scale,) = struct.unpack("<e", block[:2])
            return [scale * (value - 8) for value in nibbles(block[2:])]
        scale, least = struct.unpack("<ee", block[:4])
        return [scale * value + least for value in nibbles(block[4:])]

    def blocks(self, kind: str, count: int) -> bytes:
        size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
        return np.random.default_rng(7).integers(0, 256, count * size, np.uint8).tobytes()

    @pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"])
    def test_random_bytes_of_each_type(self, tmp_path, kind):
        type_ = GGMLQuantizationType[kind]
        values, size = GGML_QUANT_SIZES[type_]
        raw = self.blocks(kind, 6)
        file = opened(tmp_path, container(infos=[info("w", (values * 2, 3), int(type_))], data=raw))
        got = file.read("w")
        assert (got.dtype, got.shape) == (np.float32, (3, values * 2))
        if values == 32:
            expected = [self.formula(kind, raw[i * size : (i + 1) * size]) for i in range(6)]
            np.testing.assert_allclose(got.ravel(), np.ravel(expected), rtol=1e-6)
        else:
            np.testing.assert_array_equal(got, dequantize(np.frombuffer(raw, np.uint8).reshape(3, -1), type_))

    def test_plain_types_are_views_of_the_file(self, tmp_path):
        kinds = {"F32": (0, np.float32), "F16": (1, np.float16), "BF16": (30, np.uint16)}
        for kind, (number, dtype) in kinds.items():
            raw = np.arange(6, dtype=dtype)
            file = opened(tmp_path, container(infos=[info("w", (3, 2), number)], data=raw.tobytes()))
            got = file.read("w")
            assert file.tensors["w"].type == kind
            assert np.shares_memory(got, file.tensors["w"].data)
            np.testing.assert_array_equal(got, raw.reshape(2, 3))

    def test_without_the_package_gguf_plain_types_are_read_and_others_ask_for_it(self, tmp_path, monkeypatch):
        infos = [info("plain", (8,)), info("quantised", (32,), 8, 32)]
        file = opened(tmp_path, container(infos=infos, data=bytes(66)))
        for name in [name for name in sys.modules if name.split(".")[0] == "gguf"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "gguf", None)
        assert file.read("plain").tolist() == [0] * 8
        with pytest.raises(MissingExtraError) as caught:
            file.read("quantised")
        assert str(caught.value) == (
            "reading Q8_0 from a GGUF file needs the extra `gguf`, which is not installed; run: pip install 'pellucid[gguf]'"
        )
        with pytest.raises(MissingExtraError, match=r"^writing a GGUF file needs the extra"):
            write_gguf(tmp_path / "y.gguf", {}, {}, "f32")


def test_version_2_and_all_scalar_types_are_read(tmp_path):
    formats = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    pairs = [pair(f"one.{kind}", kind, struct.pack(f"<{form}", 1)) for kind, form in formats.items()]
    pairs += [pair(f"two.{kind}", ARRAY, array(kind, 2, struct.pack(f"<2{form}", 1, 0))) for kind, form in formats.items()]
    pairs += [pair("none", ARRAY, array(STRING, 0)), pair("zero", ARRAY, array(INT32, 0)), pair("empty", STRING, text(""))]
    metadata = opened(tmp_path, container(pairs, version=2)).metadata
    for kind in formats:
        assert metadata[f"one.{kind}"] == 1
        assert metadata[f"two.{kind}"].tolist() == [1, 0]
    assert metadata["one.7"] is True
    assert metadata["two.7"].dtype == bool
    assert (metadata["none"], metadata["zero"].tolist(), metadata["empty"]) == ([], [], "")


HUGE = 2**60
DAMAGE = {
    "an empty file": (b"", "4 bytes of its header follow byte 0, but it can reach no further than 0"),
    "not GGUF": (b"PK\3\4" + bytes(40), "it does not begin with the letters GGUF"),
    "a header cut short": (container()[:20], "8 bytes of its header follow byte 16, but it can reach no further than 20"),
    "a count of metadata of 2^60": (
        container(counts=(0, HUGE)),
        "4 bytes of its header follow byte 32, but it can reach no further than 32",
    ),
    "a count of tensors of 2^60": (
        container(counts=(HUGE, 0)),
        "4 bytes of its header follow byte 32, but it can reach no further than 32",
    ),
    "a string beyond the end": (
        container([struct.pack("<Q", HUGE)]),
        f"{HUGE} bytes of its header follow byte 32, but it can reach no further than 32",
    ),
    "an array beyond the end": (
        container([pair("a", ARRAY, array(UINT32, HUGE))]),
        f"{4 * HUGE} bytes of its header follow byte 49, but it can reach no further than 64",
    ),
    "an array of 2^60 texts": (
        container([pair("a", ARRAY, array(STRING, HUGE))]),
        "8 bytes of its header follow byte 57, but it can reach no further than 64",
    ),
    "an array of arrays": (container([pair("a", ARRAY, array(ARRAY, 1))]), "'a' is an array of arrays"),
    "an unknown type of value": (container([pair("a", 13, b"")]), "'a' is of the unknown type 13"),
    "an array of an unknown type": (container([pair("a", ARRAY, array(13, 1))]), "'a' is of the unknown type 13"),
    "a key twice": (container([pair("a", BOOL, b"\1")] * 2), "'a' occurs twice"),
    "a truth value of 2": (container([pair("a", BOOL, b"\2")]), "'a' is 2, neither true (1) nor false (0)"),
    "a text that is not UTF-8": (container([pair("a", STRING, text(b"\xff"))]), "the text at byte 37 is not UTF-8"),
    "a tensor twice": (container(infos=[info("w", (1,)), info("w", (1,), 0, 32)], data=bytes(64)), "'w' occurs twice"),
    "no dimensions": (container(infos=[info("w", ())], data=bytes(64)), "'w' has 0 dimensions, not 1 to 4"),
    "five dimensions": (container(infos=[info("w", (1,) * 5)], data=bytes(64)), "'w' has 5 dimensions, not 1 to 4"),
    "2^32 - 1 dimensions": (
        container(infos=[text("w") + struct.pack("<I", 2**32 - 1)], data=bytes(64)),
        "'w' has 4294967295 dimensions, not 1 to 4",
    ),
    "a dimension of 0": (
        container(infos=[info("w", (4, 0))], data=bytes(64)),
        "'w' has the shape (0, 4), which F32 cannot have",
    ),
    "half a block": (container(infos=[info("w", (48,), 8)], data=bytes(64)), "'w' has the shape (48,), which Q8_0 cannot have"),
    "dimensions whose product overflows": (
        container(infos=[info("w", (2**32, 2**32))], data=bytes(64)),
        f"the data of 'w' end at byte {96 + 2**66}, but the file at 160",
    ),
    "an unknown tensor type": (container(infos=[info("w", (32,), 99)], data=bytes(64)), "'w' is stored as the unknown type 99"),
    "data that end beyond the file": (
        container(infos=[info("w", (17,))], data=bytes(64)),
        "the data of 'w' end at byte 132, but the file at 128",
    ),
    "an offset beyond the file": (
        container(infos=[info("w", (1,), 0, HUGE)], data=bytes(64)),
        f"the data of 'w' end at byte {HUGE + 68}, but the file at 128",
    ),
    "an offset that is not aligned": (
        container(infos=[info("w", (1,), 0, 4)], data=bytes(64)),
        "the data of 'w' at 4 overlap others, or are not aligned to 32 bytes",
    ),
    "tensors that overlap": (
        container(infos=[info("v", (9,)), info("w", (1,), 0, 32)], data=bytes(64)),
        "the data of 'w' at 32 overlap others, or are not aligned to 32 bytes",
    ),
} | {
    f"an alignment of {alignment}": (
        container([pair("general.alignment", UINT32, struct.pack("<I", alignment))]),
        f"general.alignment is {alignment}, not a power of two from 8 up",
    )
    for alignment in (0, 4, 24, 2**32 - 1)
}
DAMAGE["an alignment in words"] = (
    container([pair("general.alignment", STRING, text("32"))]),
    "general.alignment is '32', not a power of two from 8 up",
)


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_one_sentence_that_names_the_file(tmp_path, case):
    content, what = DAMAGE[case]
    with pytest.raises(CorruptionError) as caught:
        opened(tmp_path, content)
    assert str(caught.value) == (
        f"{tmp_path / 'x.gguf'} is not a whole GGUF file: {what}; download it again, or convert the model again"
    )


def test_a_header_without_end_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("pellucid.core.gguf.HEADER_LIMIT", 1000)
    pairs = [pair("a", ARRAY, array(STRING, 200, text("") * 200))]
    with pytest.raises(CorruptionError, match="8 bytes of its header follow byte 993, but it can reach no further than 1000"):
        opened(tmp_path, container(pairs))


def test_an_alignment_of_64_is_honoured(tmp_path):
    pairs = [pair("general.alignment", UINT32, struct.pack("<I", 64))]
    data = struct.pack("<f", 1) + bytes(60) + struct.pack("<f", 2)
    file = opened(tmp_path, container(pairs, [info("v", (1,)), info("w", (1,), 0, 64)], data, alignment=64))
    assert (file.read("v").tolist(), file.read("w").tolist()) == ([1], [2])


def test_what_is_whole_but_not_for_us_says_so(tmp_path):
    path = tmp_path / "x.gguf"
    with pytest.raises(ModelError) as caught:
        opened(tmp_path, container(infos=[info("w", (256,), 13)], data=bytes(176)))
    assert str(caught.value) == (
        f"{path}: 'w' is stored as Q5_K, but only F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K can be read; "
        "choose a file of another quantisation"
    )
    for version in (1, 4, 3 << 24):  # the last is version 3 with big-endian numbers
        with pytest.raises(ModelError) as caught:
            opened(tmp_path, container(version=version))
        assert str(caught.value) == (
            f"{path} is GGUF version {version}, but little-endian versions 2 and 3 are read; convert it again"
        )
    with pytest.raises(ModelError) as caught:
        opened(tmp_path, container()).read("w")
    assert str(caught.value) == f"{path} has no tensor w; its 0 tensors may be those of another architecture"
    with pytest.raises(ModelError) as caught:
        open_gguf(tmp_path)
    assert str(caught.value) == f"{tmp_path} is not a file; give the path of a .gguf file"


def test_our_table_of_types_is_that_of_the_package_gguf():
    for number, (name, values, size) in TYPES.items():
        assert GGML_QUANT_SIZES[GGMLQuantizationType(number)] == (values, size)
        assert GGMLQuantizationType(number).name == name


class TestWhatCannotBeWritten:
    def message(self, tmp_path, metadata, tensors, dtype="f16") -> str:
        (tmp_path / "x.gguf").write_text("old")
        with pytest.raises(ModelError) as caught:
            write_gguf(tmp_path / "x.gguf", metadata, tensors, dtype)
        assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]
        assert (tmp_path / "x.gguf").read_text() == "old"
        return str(caught.value).removeprefix(f"{tmp_path / 'x.gguf'}: ")

    @pytest.mark.parametrize("value", [[], [1, 2.5], None, [[1]], {"a": 1}, [True, 1]])
    def test_metadata_of_no_type(self, tmp_path, value):
        assert self.message(tmp_path, {"a": value}, {}) == (
            f"the value of a, {value!r}, is not of one GGUF type; use bool, int, float, str or a list"
        )

    @pytest.mark.parametrize(
        ("value", "kind"), [(-1, "UINT32"), (2**32, "UINT32"), ([2**31], "INT32"), ([-(2**31) - 1], "INT32")]
    )
    def test_an_integer_that_is_too_large(self, tmp_path, value, kind):
        expected = f"the value of a, {value!r}, does not fit {kind}; use a smaller number"
        assert self.message(tmp_path, {"a": value}, {}) == expected

    @pytest.mark.parametrize("dtype", ["f16", "q8_0", "q4_0", "q4_1"])
    @pytest.mark.parametrize("value", [np.nan, -np.inf, 7e4])
    def test_weights_beyond_half_precision(self, tmp_path, dtype, value):
        tensors = {"w": np.full((2, 32), value, np.float32)}
        expected = f"w has values beyond ±65504 or not a number, too much for {dtype}; use bf16"
        assert self.message(tmp_path, {}, tensors, dtype) == expected
        write_gguf(tmp_path / "x.gguf", {}, tensors, "bf16")  # the way out

    def test_a_full_disk(self, tmp_path):
        (tmp_path / f".x.gguf.{os.getpid()}.partial").symlink_to("/dev/full")
        with pytest.raises(ResourceError, match="the disk is full"):
            write_gguf(tmp_path / "x.gguf", {}, {"w": np.zeros((64, 32), np.float32)}, "f16")
        assert list(tmp_path.iterdir()) == []


def test_blocks_of_almost_nothing_become_zeros(tmp_path):
    write_gguf(tmp_path / "x.gguf", {}, {"w": np.full((1, 32), 1e-40, np.float32), "z": np.zeros((1, 32), np.float32)}, "q4_0")
    file = open_gguf(tmp_path / "x.gguf")
    assert not file.read("w").any()
    assert not file.read("z").any()


def mutate(content: bytes, random: random.Random) -> bytes:
    """Flip bits, cut, grow, splice, or write an extreme number; mostly in the header, where everything is decided."""
    damaged = bytearray(content)
    place = random.randrange(len(damaged) if random.random() < 0.2 else len(damaged) // 2)
    match random.choice(["flip", "cut", "grow", "splice", "number"]):
        case "flip":
            for _ in range(random.randint(1, 4)):
                damaged[random.randrange(len(damaged))] ^= 1 << random.randrange(8)
            damaged[place] ^= 1 << random.randrange(8)
        case "cut":
            del damaged[place:]
        case "grow":
            damaged[place:place] = random.randbytes(random.randint(1, 64))
        case "splice":
            source = random.randrange(len(damaged))
            damaged[place : place + random.randint(1, 64)] = damaged[source : source + random.randint(1, 64)]
        case "number":
            damaged[place : place + 8] = struct.pack("<Q", random.choice([0, 1, 2**31, 2**32 - 1, HUGE, 2**63, 2**64 - 1]))
    return bytes(damaged)


def open_and_read(path: Path) -> str:
    """What the file is refused with, or nothing. Any other error than ours fails the test."""
    try:
        file = open_gguf(path)
        for name in file.tensors:
            file.read(name)
    except PellucidError as error:
        return str(error)
    return ""


def test_three_thousand_mutations_open_or_are_refused_in_bounded_time_and_memory(tmp_path):
    path = tmp_path / "x.gguf"
    metadata = {
        "general.architecture": "llama",
        "n": 3,
        "r": 0.5,
        "b": True,
        "tokens": ["a", "bé", ""] * 5,
        "types": [1, 2] * 9,
    }
    tensors = {"w": np.ones((4, 32), np.float32), "norm": np.ones(5, np.float32), "odd": np.ones((3, 7), np.float32)}
    write_gguf(path, metadata, tensors, "q8_0")
    content, source = path.read_bytes(), random.Random(3)
    outcomes = {"opened": 0, "refused": 0}
    tracemalloc.start()
    try:
        for number in range(3000):
            path.write_bytes(mutate(content, source))
            tracemalloc.reset_peak()
            before, start = tracemalloc.get_traced_memory()[0], time.process_time()
            outcome = open_and_read(path)
            outcomes["refused" if outcome else "opened"] += 1
            assert len(outcome) < 400
            assert time.process_time() - start < 2, number
            assert tracemalloc.get_traced_memory()[1] - before < 200_000, number
    finally:
        tracemalloc.stop()
    assert min(outcomes.values()) > 200, outcomes  # both paths were walked
