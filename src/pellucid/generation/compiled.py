"""One more token of each of several texts as one compiled graph.

Without it a layer is some forty small operations, each of which takes longer to begin than to do. torch's inductor makes five
kernels of them and packs the matrices, for any number of texts, lengths and slots; that takes a minute, and is kept on disk.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import BadZipFile

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache
from torch.export import Dim

from pellucid.core.errors import ConfigError, PellucidError
from pellucid.core.files import atomic_folder, remove_folder
from pellucid.core.machine import cache_folder, compiler, cpu_name
from pellucid.generation.graph import Graph
from pellucid.generation.slots import BLOCK, LEAST
from pellucid.network.attention import Seen
from pellucid.network.layers import Linear
from pellucid.network.masks import Mask
from pellucid.network.network import Network, Step
from pellucid.network.transformer import Transformer

LARGEST = 1_000_000_000  # bytes of matrices up to which a step is compiled unasked: with more, products take most of the time
KEPT = 4 * LARGEST  # bytes of compiled steps that stay on disk, each as large as its model: the latest used
STEP = "step.pt2"
SIZES = (2, 4, 8, 16, 32, 64)  # numbers of rows
MOST = SIZES[-1]
FREE = 8  # rows that take hardly longer than two

# q, k and v in one product; and what all layers use, as sines and cosines, is worked out once and not in each of them
OPTIONS = {
    "freezing": True,
    "cpp.enable_concat_linear": True,
    "realize_opcount_threshold": 10,
    "assert_indirect_indexing": False,
}


@dataclass(frozen=True)
class Rows:
    """One layer's slots, as a compiled step sees them: each row at one position of its slot."""

    keys: Float[Tensor, "slots kv_heads length d_head"]
    values: Float[Tensor, "slots kv_heads length d_head"]
    slots: Int[Tensor, " rows"]
    positions: Int[Tensor, " rows"]
    span: int  # keys that any row can see

    def extend(
        self, k: Float[Tensor, "rows kv_heads 1 d_head"], v: Float[Tensor, "rows kv_heads 1 d_head"], mask: Mask
    ) -> list[Seen]:
        """Write at each row's place; return what the rows see."""
        for buffer, new in ((self.keys, k), (self.values, v)):
            buffer[self.slots, :, self.positions] = new[:, :, 0]
        k, v = (buffer[self.slots].narrow(2, 0, self.span) for buffer in (self.keys, self.values))
        return [Seen(slice(None), k, v, mask)]


class OneStep(nn.Module):
    """What is compiled: the hidden states of tokens that follow the first `positions` ones in their slots.

    Rows see the first keys of their slots up to their own position; `index` counts those that any of them can see. It has rows
    of `BLOCK`, so that loops over them need not look for an end.
    """

    def __init__(self, decoder: Transformer) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        tokens: Int[Tensor, " rows"],
        slots: Int[Tensor, " rows"],
        positions: Int[Tensor, " rows"],
        index: Int[Tensor, "blocks block"],
        keys: Sequence[Float[Tensor, "slots kv_heads length d_head"]],
        values: Sequence[Float[Tensor, "slots kv_heads length d_head"]],
    ) -> Float[Tensor, "rows d_model"]:
        allowed: Bool[Tensor, "rows 1 1 keys"] = (index.flatten() <= positions[:, None])[:, None, None]
        mask = Mask(positions=positions[:, None].clamp(max=self.decoder.config.context_length - 1), allowed=allowed)
        layers = [Rows(k, v, slots, positions, index.shape[0] * BLOCK) for k, v in zip(keys, values, strict=True)]
        return self.decoder.encode(tokens[:, None], mask, cache=layers)[:, 0]


def why_not(network: Network) -> str | None:
    """Why steps of this network are not compiled; None if they are."""
    if not isinstance(network, Transformer) or not network.config.causal:
        return f"steps of a {network.config.family} model are not compiled: only those of plain decoders are"
    if network.standing:
        return "steps of a model that is edited or recorded are not compiled: they know no taps"
    if network.device.type != "cpu":
        return f"steps are compiled for the CPU, and the model is on {network.device}"
    return None


def compile_steps(network: Network, told: Callable[[str], None]) -> None:
    """Have the steps of a held network compiled; that it takes a while is `told`. Raises `ConfigError` if it cannot be done."""
    held = network.held
    assert held is not None, "what is compiled is a network that only reads"
    if (reason := why_not(network)) is not None:
        raise ConfigError(f"{reason}; leave --compile out")
    if compiler() is None:
        raise ConfigError("there is no C++ compiler here to compile steps with; install g++, or use --compile no")
    assert isinstance(network, Transformer), "`why_not` says so"
    try:
        run = load_or_compile(network, told)
        sizes = steady(run, network)
    except PellucidError:
        raise
    except Exception as error:  # whatever a compiler does on machines we do not know
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"steps could not be compiled here ({lines[0][:200]}); use --compile no") from error
    if not sizes:
        raise ConfigError("compiled steps would not give a text the same bits in any company here; use --compile no")
    network.held = replace(held, free=min(FREE, held.free), step=Step(run=run, sizes=sizes))


def compile_if_it_pays(network: Network, told: Callable[[str], None]) -> None:
    """The same for networks for which it pays; what fails is told, and leaves them as they are."""
    if why_not(network) is None and network.held is not None and network.held.nbytes <= LARGEST:
        try:
            compile_steps(network, told)
        except PellucidError as error:
            told(f"{error} (without, they are slower)")


def load_or_compile(network: Transformer, told: Callable[[str], None]) -> Callable[..., Tensor]:
    """The step from disk, or compiled and put there."""
    with opened(network):
        folder = cache_folder() / "compiled" / fingerprint(network)
        if (loaded := load(folder)) is None:
            told("compiling the model's step; this takes a minute, once")
            write(network, folder)
            loaded = Graph(folder / STEP)

    def step(*inputs: Tensor | Sequence[Tensor]) -> Tensor:
        return loaded([tensor for part in inputs for tensor in ([part] if isinstance(part, Tensor) else part)])

    return step


def load(folder: Path) -> Graph | None:
    """A step that was written, with the date of this use; None if it is not there, or damaged."""
    if not (folder / STEP).exists():
        return None
    try:
        os.utime(folder)
        return Graph(folder / STEP)
    except (OSError, BadZipFile, RuntimeError):
        return None


@contextmanager
def opened(network: Network) -> Iterator[None]:
    """The network's products in plain tensors, for as long."""
    parts = [(part, part.held) for part in network.modules() if isinstance(part, Linear) and part.held is not None]
    for part, held in parts:
        part.held = held.opened()
    try:
        yield
    finally:
        for part, held in parts:
            part.held = held


def fingerprint(network: Transformer) -> str:
    """Of all that a compiled step depends on: weights, our code, torch and the processor."""
    told = hashlib.sha256(f"{torch.__version__} {cpu_name()} {network.config} {OPTIONS}".encode())
    for folder in (Path(__file__).parent, Path(__file__).parents[1] / "network"):
        for file in sorted(folder.glob("*.py")):
            told.update(file.read_bytes())
    for name, module in network.named_modules():
        tensors = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        for key, tensor in tensors.items():
            if tensor.device.type != "meta":
                told.update(f"{name}.{key} {tensor.dtype} {[*tensor.shape]}".encode())
                told.update(tensor.detach().contiguous().view(torch.uint8).numpy())
    return told.hexdigest()[:32]


@torch.no_grad()
def write(network: Transformer, folder: Path) -> None:
    """Compile the step of a network whose products are `opened` into a folder; older ones go."""
    rows, slots, length, blocks = (
        Dim("rows", min=2, max=MOST),
        Dim("slots", min=2),
        Dim("length", min=LEAST + 1),
        Dim("blocks", min=2),
    )
    example = (*rows_at(network, 4, 2 * LEAST), *drawn(network))
    buffers = [{0: slots, 2: length}] * network.config.layers
    shapes = ({0: rows}, {0: rows}, {0: rows}, {0: blocks}, buffers, buffers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(OneStep(network), example, dynamic_shapes=shapes, strict=False)
        with atomic_folder(folder, sealed=False) as new, scratch():
            torch._inductor.aoti_compile_and_package(exported, package_path=str(new / STEP), inductor_configs={**OPTIONS})
    files = sorted(folder.parent.glob(f"*/{STEP}"), key=lambda file: -file.parent.stat().st_mtime)
    for file, size in zip(files, accumulate(file.stat().st_size for file in files), strict=True):
        if size > KEPT and file.parent != folder:
            remove_folder(file.parent)


@contextmanager
def scratch() -> Iterator[None]:
    """A place for what the compiler leaves behind, which would stay for ever; it is removed, also where the compiler fails."""
    logger = logging.getLogger("torch._inductor.utils")
    with TemporaryDirectory() as folder:
        logger.disabled = True  # it tells where it keeps what is not kept
        try:
            with fresh_cache(dir=folder):
                yield
        finally:
            logger.disabled = False


def rows_at(network: Transformer, rows: int, span: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A token each of several slots, at positions below `LEAST`."""
    number = torch.arange(rows)
    tokens = torch.randint(network.config.vocab_size, (rows,), generator=torch.Generator().manual_seed(0))
    return tokens, number, number % LEAST, torch.arange(span).view(-1, BLOCK)


def drawn(network: Transformer) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values at random."""
    config, draw = network.config, torch.Generator().manual_seed(0)
    shape = (MOST, config.kv_heads, 4 * LEAST + 1, config.d_head)
    keys, values = ([torch.randn(shape, generator=draw).to(network.dtype) for _ in range(config.layers)] for _ in range(2))
    return keys, values


@torch.inference_mode()
def steady(step: Callable[..., Tensor], network: Transformer) -> tuple[int, ...]:
    """The numbers of rows for which a row has the same bits as among two, wherever it stands and whatever keys it may not see.

    Found by trying, with a row for each of `MOST` slots.
    """
    *rows, _ = rows_at(network, MOST, LEAST)
    state = drawn(network)

    def found(count: int, span: int) -> Tensor:
        """What all rows become, so many at a time."""
        index = torch.arange(span).view(-1, BLOCK)
        parts = zip(*(torch.split(part, count) for part in rows), strict=True)
        return torch.cat([step(*part, index, *state) for part in parts])

    alone = found(2, LEAST)
    return tuple(count for count in SIZES if all(torch.equal(found(count, span), alone) for span in (LEAST, 4 * LEAST)))


def packed_shape(weight: Tensor, shape: Sequence[int] | None) -> Tensor:  # noqa: ARG001
    """What a compiler must know of packing bytes, which torch does not say itself."""
    return weight.new_empty(weight.shape[1], weight.shape[0])


torch.library.register_fake("onednn::qlinear_prepack", packed_shape)
