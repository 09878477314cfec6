"""What attention heads do: cards with a score for each known trade, what is lost without the head, and examples.

Scores are shares of attention from 0 to 1 unless they say otherwise. Induction (Olsson et al., 2022) is measured on random
tokens that are said twice, beside the same tokens in another order, on which the same look would find nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.core.errors import ModelError
from pellucid.core.progress import Progress, Silent
from pellucid.evaluation.intervals import Estimate
from pellucid.explanation.ablation import Ablation, Ablator, interval
from pellucid.explanation.windows import decoded, repeated
from pellucid.network.adapters import LowRank
from pellucid.network.layers import Linear, RMSNorm
from pellucid.network.network import Network
from pellucid.network.taps import Taps
from pellucid.network.transformer import Transformer
from pellucid.text.tokenizer import Tokenizer

Floats = npt.NDArray[np.float64]

WINDOWS, LENGTH = 16, 128  # of text: enough for means of patterns to two digits
REPEATS = 24  # random sequences, each of at most HALF tokens said twice
HALF = 32
EXAMPLES = 3
AROUND = 12  # tokens before the one that looks
CLEAR = 0.4  # share of attention from which a head is called by a trade
ON_TEXT = ("previous_token", "duplicate", "first_token", "positional", "delimiter")
TRADES = ("induction", "previous token", "duplicate", "first token", "delimiter", "positional")


@dataclass(frozen=True)
class Example:
    """A place where a head adds much: the tokens before it, the token itself, and the one that it looks at most."""

    before: str
    token: str
    looks_at: str
    weight: float
    strength: float  # length of what it adds to the stream


@dataclass(frozen=True)
class HeadCard:
    """One head. `copying` is from -1 to 1: whether what it moves raises the same tokens (sum of eigenvalues of OV over that of
    their sizes; Elhage et al., 2021); `induction_null` is what the induction score is on shuffled repeats."""

    layer: int
    head: int
    previous_token: float
    duplicate: float
    induction: Estimate
    induction_null: Estimate
    first_token: float
    positional: float
    delimiter: float
    copying: float | None
    ablation: Ablation | None
    examples: tuple[Example, ...] = ()

    @property
    def name(self) -> str:
        return f"blocks.{self.layer}.attn.head.{self.head}"

    @property
    def is_induction(self) -> bool:
        """Whether it looks to what came after the last time, and clearly more than where there was none."""
        return self.induction.low > self.induction_null.high and self.induction.value >= CLEAR

    @property
    def trade(self) -> str:
        """What the head is called: its clearest trade, or nothing."""
        if self.is_induction:
            return "induction"
        scores = {name: getattr(self, name.replace(" ", "_")) for name in TRADES[1:]}
        best = max(scores, key=scores.__getitem__)
        return best if scores[best] >= CLEAR else ""

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "trade": self.trade, **asdict(self)}


def check_has_heads(network: Network) -> None:
    """Refuse a network that has no heads which continue a text."""
    if not (isinstance(network, Transformer) and network.config.generates):
        raise ModelError(
            f"a {network.config.family} model of this kind has no heads that continue a text, which cards are about; "
            "use a decoder, such as GPT-2 or Llama"
        )


def head_cards(
    network: Network,
    tokenizer: Tokenizer,
    ids: Int[Tensor, "windows seq"],
    *,
    ablate: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[HeadCard]:
    """A card for every head of a decoder, on windows of text.

    Raises `ModelError` for a network without heads that write text: a bag of words, an LSTM, an encoder.
    """
    check_has_heads(network)
    layers, heads = network.config.layers, network.config.heads
    seen = on_text(network, tokenizer, ids)
    repeats = induction_scores(network, tokenizer, seed)
    copying = copying_scores(network)
    found = examples(network, tokenizer, ids)
    ablations: dict[tuple[int, int], Ablation] = {}
    if ablate:
        with (progress or Silent()).task("ablating", layers * heads, "heads") as task:
            ablator = Ablator(network, ids, seed=seed)
            for layer in range(layers):
                for head in range(heads):
                    ablations[layer, head] = ablator(f"blocks.{layer}.attn.head.{head}")
                    task.advance(1)
    return [
        HeadCard(
            layer=layer,
            head=head,
            **{name: float(values[layer, head]) for name, values in seen.items()},
            induction=repeats[layer, head][0],
            induction_null=repeats[layer, head][1],
            copying=None if copying is None else float(copying[layer, head]),
            ablation=ablations.get((layer, head)),
            examples=found[layer][head],
        )
        for layer in range(layers)
        for head in range(heads)
    ]


@torch.no_grad()
def on_text(network: Network, tokenizer: Tokenizer, ids: Int[Tensor, "windows seq"]) -> dict[str, Floats]:
    """The scores that text shows, each [layers heads]."""
    taps, seq = Taps("*.attn.pattern"), ids.shape[1]
    network.encode(ids, None, taps)
    later = torch.arange(seq, device=ids.device)
    same = (ids[:, :, None] == ids[:, None]) & (later[:, None] > later)  # an earlier place of the same token
    again = same.any(dim=-1)
    between = torch.tensor([is_delimiter(tokenizer, id) for id in range(network.config.vocab_size)], device=ids.device)[ids]
    between[:, 0] = False  # which is counted as the first token
    found: dict[str, list[Tensor]] = {name: [] for name in ON_TEXT}
    for layer in range(network.config.layers):
        weights = taps.take(f"blocks.{layer}.attn.pattern").float()  # windows heads seq keys
        steps = weights.diagonal(offset=-1, dim1=-2, dim2=-1)  # those from 1 on, each to the one before it
        found["previous_token"].append(steps[..., 1:].mean(dim=(0, 2)))  # not from 1 to 0, the first token
        at = weights.masked_fill(~same[:, None], 0).sum(dim=-1).transpose(0, 1)[:, again]
        found["duplicate"].append(at.mean(dim=1) if again.any() else torch.zeros(len(at)))
        found["first_token"].append(weights[:, :, 1:, 0].mean(dim=(0, 2)))
        overlap = torch.minimum(weights, weights.roll(1, dims=0))[..., seq // 2 :, 1:].sum(dim=-1)  # the first token apart
        found["positional"].append(overlap.mean(dim=(0, 2)))
        found["delimiter"].append(weights.masked_fill(~between[:, None, None], 0).sum(dim=-1)[:, :, 1:].mean(dim=(0, 2)))
    return {name: torch.stack(values).double().cpu().numpy() for name, values in found.items()}


def is_delimiter(tokenizer: Tokenizer, id: int) -> bool:
    """Whether a token is nothing but punctuation, a line's end, or no text."""
    if id in tokenizer.special_ids or id >= tokenizer.vocab_size:
        return True
    text = tokenizer.token_bytes(id).decode(errors="replace").strip(" ")
    return bool(text) and not any(letter.isalnum() or letter == "\ufffd" for letter in text)


@torch.no_grad()
def induction_scores(network: Network, tokenizer: Tokenizer, seed: int = 0) -> dict[tuple[int, int], tuple[Estimate, Estimate]]:
    """For each head the weight from a token of the second half to what followed it in the first, and on shuffled repeats."""
    half = min(HALF, (network.config.context_length - 1) // 2)
    found: dict[tuple[int, int], tuple[Estimate, Estimate]] = {}
    scores = []
    for ids in repeated(network, tokenizer, count=REPEATS, length=half, seed=seed):
        taps = Taps("*.attn.pattern")
        network.encode(ids, None, taps)
        layers = []
        for layer in range(network.config.layers):
            weights = taps.take(f"blocks.{layer}.attn.pattern").float()
            after = weights.diagonal(offset=1 - half, dim1=-2, dim2=-1)  # from the place i to i - half + 1
            layers.append(after[..., 2:].mean(dim=-1))  # of the second half only
        scores.append(torch.stack(layers).double().cpu().numpy())  # layers sequences heads
    for layer in range(network.config.layers):
        for head in range(network.config.heads):
            found[layer, head] = tuple(interval(of[layer, :, head], seed) for of in scores)  # type: ignore[assignment]
    return found


def weight_of(layer: Linear) -> Float[Tensor, "outputs inputs"]:
    """A layer's matrix, with what an adapter adds to it."""
    return (layer.merged() if isinstance(layer, LowRank) else layer).weight.float()


def through(norm: Any, rows: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_model"]:
    """Rows that read what comes out of a norm, as they read what goes in, up to its scale."""
    gained: Tensor = rows * norm.weight.float()
    return gained if isinstance(norm, RMSNorm) else gained - gained.mean(dim=-1, keepdim=True)


@torch.no_grad()
def copying_scores(network: Network) -> Floats | None:
    """How much each head's OV circuit raises what it reads, [layers heads]; None for weights that are held in another form.

    The eigenvalues of unembedding x OV x embedding are those of a matrix of d_head x d_head.
    """
    if network.held is not None or network.head is None or not isinstance(network, Transformer):
        return None
    config, stack = network.config, cast(Any, network)
    read, written = network.embedding.weight.float(), network.head.weight.float()
    if config.norm_first:
        written = through(stack.norm, written)
    both = read.T @ written  # d_model (read) x d_model (written)
    found = np.zeros((config.layers, config.heads))
    for layer, block in enumerate(stack.blocks):
        values = weight_of(block.attn.v)
        values = (through(block.norm_attn, values) if config.norm_first else values).view(config.kv_heads, config.d_head, -1)
        outputs = weight_of(block.attn.output).view(config.d_model, config.heads, config.d_head)
        for head in range(config.heads):
            circuit = values[head // (config.heads // config.kv_heads)] @ both @ outputs[:, head]
            eigenvalues = torch.linalg.eigvals(circuit)
            size = float(eigenvalues.abs().sum())
            found[layer, head] = float(eigenvalues.real.sum()) / size if size else 0.0
    return found


@torch.no_grad()
def examples(network: Network, tokenizer: Tokenizer, ids: Int[Tensor, "windows seq"]) -> list[list[tuple[Example, ...]]]:
    """For each layer and head the places of the text where it adds most to the stream."""
    taps, seq = Taps(["*.attn.mixed", "*.attn.pattern"]), ids.shape[1]
    assert isinstance(network, Transformer), "seen to before"
    network.encode(ids, None, taps)
    found = []
    for layer, block in enumerate(network.blocks):
        mixed, weights = taps.take(f"blocks.{layer}.attn.mixed"), taps.take(f"blocks.{layer}.attn.pattern")
        attn: Any = block.attn
        heads = mixed.shape[1]
        row = []
        for head in range(heads):
            alone = torch.zeros_like(mixed)
            alone[:, head] = mixed[:, head]
            nothing = attn.output(torch.zeros_like(mixed[:1, :, :1]).transpose(1, 2).flatten(2))
            strength = (attn.output(alone.transpose(1, 2).flatten(2)) - nothing).float().norm(dim=-1)
            strength[:, :2] = 0  # where there is hardly anything to look at
            best = strength.flatten().topk(min(EXAMPLES, strength.numel())).indices.tolist()
            flat = strength.flatten()
            row.append(tuple(example(tokenizer, ids[n // seq], n % seq, weights[n // seq, head], float(flat[n])) for n in best))
        found.append(row)
    return found


def example(tokenizer: Tokenizer, ids: Tensor, at: int, weights: Float[Tensor, "seq keys"], strength: float) -> Example:
    key = int(weights[at].argmax())
    tokens = decoded(tokenizer, ids.tolist())
    return Example("".join(tokens[max(0, at - AROUND) : at]), tokens[at], tokens[key], float(weights[at, key]), strength)
