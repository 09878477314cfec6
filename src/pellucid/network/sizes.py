"""How large: named sizes, and one dial that derives width, depth and heads from a number of parameters."""

import math
import re
from dataclasses import dataclass
from difflib import get_close_matches

from pellucid.core.errors import ConfigError
from pellucid.network.presets import MODELS


@dataclass(frozen=True, kw_only=True)
class Size:
    """The dimensions that make a network large or small."""

    d_model: int
    layers: int
    heads: int
    d_mlp: int

    @property
    def d_head(self) -> int:
        return self.d_model // self.heads


# The dial at a round number. Published models have their own names, in presets.py.
PRESETS: dict[str, float] = {"tiny": 1e6, "small": 5e6, "base": 25e6, "large": 125e6, "xl": 1.3e9}
EXAMPLES = ("gpt2", "bert-base", "t5-small", "qwen3-0.6b")


def parse_size(text: str, vocab_size: int, *, tied: bool) -> Size:
    """The dimensions that `tiny`, `25M` or `1.3b` stand for."""
    known = PRESETS.get(text.lower())
    return dial(parse_count(text) if known is None else known, vocab_size, tied=tied)


def parse_count(text: str) -> float:
    """A number with an optional ending k, M or B: `25M` is 25,000,000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmb]?)", text.strip().lower())
    if not match:
        close = ", ".join(get_close_matches(text.lower(), [*PRESETS, *MODELS]))
        raise ConfigError(
            f"size {text!r} is not known{f' (did you mean {close}?)' if close else ''}; choose {', '.join(PRESETS)}, "
            f"a published model such as {', '.join(EXAMPLES)}, or a number of parameters such as 25M"
        )
    return float(match[1]) * {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}[match[2]]


def dial(parameters: float, vocab_size: int, *, tied: bool) -> Size:
    """The network of about `parameters` weights, embeddings included, of a customary shape.

    Width over depth is 64 for small networks and grows to 128 at 7B, as in GPT-2, GPT-3 and Llama. A block has
    12 d_model^2 weights (4 in attention, 8 in the gated MLP), so width and depth give the count.
    """
    if parameters > 1e13:
        raise ConfigError(f"{parameters:.3g} parameters are more than this dial is made for (1e13)")
    aspect = 64 * min(2.0, max(1.0, (parameters / 125e6) ** (1 / 6)))
    best: tuple[float, Size] | None = None
    d_model = 32
    embeddings = vocab_size * (1 if tied else 2)
    while d_model * embeddings <= parameters and 12 * d_model**2 <= 1.5 * max(parameters, 12 * 32**2):
        size = shape(d_model, parameters, embeddings)
        error = abs(count(size, vocab_size, tied=tied) / parameters - 1)
        # 2 % off the count costs as much as a shape e times too wide or too deep: the count is what was asked for
        misfit = error / 0.02 + abs(math.log(d_model / size.layers / aspect))
        if best is None or misfit < best[0]:
            best = misfit, size
        d_model += 32 if d_model < 256 else 64 if d_model < 2048 else 256
    if best is None:
        raise ConfigError(
            f"a size of {parameters:,.0f} parameters is too small for a vocabulary of {vocab_size:,}: "
            f"its embedding alone has {32 * embeddings:,}; choose a larger --size or a smaller --vocab-size"
        )
    return best[1]


def shape(d_model: int, parameters: float, embeddings: int) -> Size:
    """The depth that brings a network of this width nearest to `parameters`; the MLP, about 8/3 as wide, takes the rest."""
    rest = parameters - embeddings * d_model
    layers = max(1, round(rest / (12 * d_model**2)))
    d_head = 128 if d_model >= 2048 else 64 if d_model >= 256 and d_model % 64 == 0 else 32
    d_mlp = min(max((rest / layers - 4 * d_model**2) / (3 * d_model), 2 * d_model), 3.5 * d_model)
    return Size(d_model=d_model, layers=layers, heads=d_model // d_head, d_mlp=round(d_mlp / 32) * 32)


def count(size: Size, vocab_size: int, *, tied: bool) -> int:
    """Weights of a network of this size, gains left out."""
    block = 4 * size.d_model**2 + 3 * size.d_model * size.d_mlp
    return size.layers * block + vocab_size * size.d_model * (1 if tied else 2)
