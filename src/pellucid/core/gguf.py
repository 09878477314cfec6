"""GGUF files (llama.cpp's container, versions 2 and 3): read by a strict parser of our own, for the file may be anybody's.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Quantised blocks are decoded, and files are written, by
the package `gguf`. Nothing a file claims decides how much memory is taken: claims are compared with the bytes that it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from pellucid.core.errors import CorruptionError, MissingExtraError, ModelError
from pellucid.core.files import atomic_path

if TYPE_CHECKING:
    from gguf.constants import GGUFValueType

StoredType = Literal["f32", "bf16", "f16", "q8_0", "q4_0", "q4_1"]

BOOL, STRING, ARRAY = 7, 8, 9
NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", BOOL: "u1", 10: "<u8", 11: "<i8", 12: "<f8"}

TYPES = {  # a tensor type's number -> its name, values per block, bytes per block
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    30: ("BF16", 1, 2),
    8: ("Q8_0", 32, 34),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    12: ("Q4_K", 256, 144),
    14: ("Q6_K", 256, 210),
}
BLOCKS = {name: (values, size) for name, values, size in TYPES.values()}
PLAIN = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # read as they are, without a copy
NOT_READ = {
    6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip

DEFAULT_ALIGNMENT, MAX_DIMENSIONS = 32, 4
HEADER_LIMIT = 128_000_000  # bytes before the tensors; a vocabulary of 262,144 tokens with its merges takes a tenth
LARGEST_F16 = 65504
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "bf16": 32}  # llama.cpp's number for "mostly of this type"


@runtime_checkable
class Shaped(Protocol):
    """Tensors whose shapes are known before they are made."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as it lies in the file: its shape (torch's order, outermost first), its type, and its bytes, not yet read."""

    shape: tuple[int, ...]
    type: str
    data: npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class GGUF:
    """An open GGUF file. Metadata are Python scalars, `list[str]` for arrays of strings, numpy arrays for arrays of numbers."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]

    def read(self, name: str) -> npt.NDArray[Any]:
        """A tensor's values: F32 and F16 are views of the file, BF16 its bits as uint16, quantised types become float32."""
        if name not in self.tensors:
            raise ModelError(
                f"{self.path} has no tensor {name}; its {len(self.tensors)} tensors may be those of another architecture"
            )
        tensor = self.tensors[name]
        if tensor.type in PLAIN:
            return tensor.data.view(PLAIN[tensor.type]).reshape(tensor.shape)
        try:
            from gguf.constants import GGMLQuantizationType
            from gguf.quants import dequantize
        except ImportError:
            raise MissingExtraError(f"reading {tensor.type} from a GGUF file", "gguf") from None
        with np.errstate(over="ignore", invalid="ignore"):  # a scale may be infinite; that is the file's value
            rows = dequantize(tensor.data.reshape(prod(tensor.shape[:-1]), -1), GGMLQuantizationType[tensor.type])
        return rows.reshape(tensor.shape)


def open_gguf(path: Path) -> GGUF:
    """Open a GGUF file and check every claim it makes; tensors are read from the disk when they are asked for."""
    if not path.is_file():
        raise ModelError(f"{path} is not a file; give the path of a .gguf file")
    # copy-on-write: whoever changes a tensor, as training does, changes a copy and never the file
    data = np.memmap(path, np.uint8, mode="c").view(np.ndarray) if path.stat().st_size else np.empty(0, np.uint8)
    cursor = _Cursor(path, data[:HEADER_LIMIT].data)
    if bytes(cursor.take(4)) != b"GGUF":
        raise cursor.damage("it does not begin with the letters GGUF")
    if (version := cursor.integer(4)) not in (2, 3):
        raise ModelError(f"{path} is GGUF version {version}, but little-endian versions 2 and 3 are read; convert it again")
    tensor_count, pair_count = cursor.integer(8), cursor.integer(8)
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = cursor.new_name(metadata)
        metadata[key] = cursor.value(key)
    places: dict[str, tuple[tuple[int, ...], str, int, int]] = {}
    for _ in range(tensor_count):
        name = cursor.new_name(places)
        places[name] = cursor.place(name)

    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        raise cursor.damage(f"general.alignment is {alignment!r:.80}, not a power of two from 8 up")
    start, end = -(-cursor.position // alignment) * alignment, 0
    for name, (_, _, offset, size) in sorted(places.items(), key=lambda item: item[1][2]):
        if offset % alignment or offset < end:
            raise cursor.damage(f"the data of {name!r:.80} at {offset} overlap others, or are not aligned to {alignment} bytes")
        end = offset + size
        if start + end > len(data):
            raise cursor.damage(f"the data of {name!r:.80} end at byte {start + end}, but the file at {len(data)}")
    tensors = {
        name: StoredTensor(shape, kind, data[start + offset : start + offset + size])
        for name, (shape, kind, offset, size) in places.items()
    }
    return GGUF(path, metadata, tensors)


class _Cursor:
    """Reads one thing after another; whatever the file does not hold is damage."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path, self.data, self.position = path, data, 0

    def damage(self, what: str) -> CorruptionError:
        return CorruptionError(f"{self.path} is not a whole GGUF file: {what}; download it again, or convert the model again")

    def take(self, size: int) -> memoryview:
        start, self.position = self.position, self.position + size
        if self.position > len(self.data):
            raise self.damage(
                f"{size} bytes of its header follow byte {start}, but it can reach no further than {len(self.data)}"
            )
        return self.data[start : self.position]

    def integer(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def string(self) -> str:
        start, text = self.position, self.take(self.integer(8))
        try:
            return str(text, "utf-8")
        except UnicodeDecodeError:
            raise self.damage(f"the text at byte {start} is not UTF-8") from None

    def new_name(self, known: Mapping[str, object]) -> str:
        if (name := self.string()) in known:
            raise self.damage(f"{name!r:.80} occurs twice")
        return name

    def value(self, key: str) -> Any:
        kind = self.integer(4)
        if kind == ARRAY:
            return self.values(key, self.integer(4), self.integer(8))
        values = self.values(key, kind, 1)
        return values[0] if isinstance(values, list) else values[0].item()

    def values(self, key: str, kind: int, count: int) -> list[str] | npt.NDArray[Any]:
        if kind == STRING:
            return [self.string() for _ in range(count)]
        if kind not in NUMBERS:
            raise self.damage(f"{key!r:.80} is {'an array of arrays' if kind == ARRAY else f'of the unknown type {kind}'}")
        dtype = np.dtype(NUMBERS[kind])
        numbers = np.frombuffer(self.take(count * dtype.itemsize), dtype)
        if kind == BOOL and (numbers > 1).any():
            raise self.damage(f"{key!r:.80} is {numbers.max()}, neither true (1) nor false (0)")
        return numbers.astype(bool if kind == BOOL else dtype.newbyteorder("="))

    def place(self, name: str) -> tuple[tuple[int, ...], str, int, int]:
        """Shape, type, offset and size in bytes of the tensor described here."""
        if not 1 <= (dimensions := self.integer(4)) <= MAX_DIMENSIONS:
            raise self.damage(f"{name!r:.80} has {dimensions} dimensions, not 1 to {MAX_DIMENSIONS}")
        shape = tuple(self.integer(8) for _ in range(dimensions))[::-1]
        number, offset = self.integer(4), self.integer(8)
        if number in NOT_READ:
            raise ModelError(
                f"{self.path}: {name!r:.80} is stored as {NOT_READ[number]}, but only {', '.join(BLOCKS)} can be read; "
                "choose a file of another quantisation"
            )
        if number not in TYPES:
            raise self.damage(f"{name!r:.80} is stored as the unknown type {number}")
        kind, values, size = TYPES[number]
        if 0 in shape or shape[-1] % values:
            raise self.damage(f"{name!r:.80} has the shape {shape}, which {kind} cannot have")
        return shape, kind, offset, prod(shape) // values * size


def write_gguf(
    path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[np.float32]], dtype: StoredType
) -> None:
    """Write a GGUF file (version 3), whole or not at all.

    bool, int, float and str are stored as BOOL, UINT32, FLOAT32 and STRING, lists of them as arrays, of INT32 for int. Vectors
    (norms, biases) are always F32; a matrix goes as `dtype`, or as F16 if its rows do not divide into quantised blocks of 32,
    as in llama.cpp. Tensors are asked for one at a time; lazy ones, `Shaped`, once each.
    """
    try:
        from gguf.constants import GGML_QUANT_VERSION, GGMLQuantizationType
        from gguf.gguf_writer import GGUFWriter
        from gguf.quants import quantize
    except ImportError:
        raise MissingExtraError("writing a GGUF file", "gguf") from None
    own = {"general.file_type": FILE_TYPES[dtype], "general.quantization_version": GGML_QUANT_VERSION}
    kinds: dict[str, str] = {}
    with atomic_path(path) as temporary, closing(GGUFWriter(temporary, arch="")) as writer:
        for key, value in {**own, **metadata}.items():
            writer.add_key_value(key, value, *_value_type(path, key, value))
        shapes = tensors.shapes if isinstance(tensors, Shaped) else {name: array.shape for name, array in tensors.items()}
        for name, shape in shapes.items():
            kinds[name] = _kind(shape, dtype)
            values, size = BLOCKS[kinds[name]]
            nbytes = prod(shape) // values * size
            writer.add_tensor_info(name, shape, np.dtype(np.float32), nbytes, GGMLQuantizationType[kinds[name]])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        (file,) = writer.fout
        writer.write_padding(file, file.tell())
        for name in shapes:
            array = tensors[name]
            assert array.shape == shapes[name], name
            if kinds[name] not in ("F32", "BF16") and not np.abs(array).max() <= LARGEST_F16:
                raise ModelError(
                    f"{path}: {name} has values beyond ±{LARGEST_F16} or not a number, too much for {dtype}; use bf16"
                )
            with np.errstate(over="ignore", invalid="ignore"):  # a block of almost zeros; it becomes zeros
                stored = np.ascontiguousarray(quantize(array, GGMLQuantizationType[kinds[name]]))
            file.write(stored.data)  # not numpy's tofile, which does not say that the disk is full
            writer.write_padding(file, stored.nbytes)


def _kind(shape: tuple[int, ...], dtype: StoredType) -> str:
    """The type that a tensor of this shape is stored as in a file of this dtype."""
    if len(shape) < 2:
        return "F32"
    values, _ = BLOCKS[dtype.upper()]
    return "F16" if shape[-1] % values else dtype.upper()


def _value_type(path: Path, key: str, value: Any) -> tuple[GGUFValueType, GGUFValueType | None]:
    """How a metadata value is stored, and for a list how its items are."""
    from gguf.constants import GGUFValueType as Types

    scalars = {bool: Types.BOOL, int: Types.UINT32, float: Types.FLOAT32, str: Types.STRING}
    items, integers, low = (value, Types.INT32, -(2**31)) if isinstance(value, list) else ([value], Types.UINT32, 0)
    kinds = {type(item) for item in items}
    if len(kinds) != 1 or not kinds <= scalars.keys():
        raise ModelError(
            f"{path}: the value of {key}, {value!r:.80}, is not of one GGUF type; use bool, int, float, str or a list"
        )
    kind = (scalars | {int: integers})[kinds.pop()]
    if kind == integers and not low <= min(items) <= max(items) < low + 2**32:
        raise ModelError(f"{path}: the value of {key}, {value!r:.80}, does not fit {kind.name}; use a smaller number")
    return (Types.ARRAY, kind) if isinstance(value, list) else (kind, None)
