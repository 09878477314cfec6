"""A language model that reads one token after another: long short-term memory (Hochreiter and Schmidhuber, 1997)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.core.errors import ConfigError
from pellucid.network.config import ModelConfig
from pellucid.network.layers import Embedding, Head, dropped
from pellucid.network.masks import Mask
from pellucid.network.network import Network, Output
from pellucid.network.taps import Site, Taps, tap

GATES = {  # in the order in which torch stacks them
    "input_gate": "how much of the candidate enters the cell",
    "forget_gate": "how much of the cell stays",
    "candidate": "what may enter the cell",
    "output_gate": "how much of the cell is shown",
}
ONE = "; edited one position at a time, [batch 1 d_model]"


@dataclass
class LayerState:
    """What one layer remembers of all that it has read."""

    hidden: Float[Tensor, "batch d_model"]
    cell: Float[Tensor, "batch d_model"]

    def rows(self, rows: slice | Tensor) -> "LayerState":
        """A copy of some rows."""
        return LayerState(self.hidden[rows].clone(), self.cell[rows].clone())

    def put(self, rows: slice | Tensor, part: "LayerState") -> None:
        """Put rows back."""
        self.hidden[rows], self.cell[rows] = part.hidden, part.cell


class LSTM(nn.Module):
    """One layer: c = forget * c + input * candidate, h = output * tanh(c), each gate a function of x and the last h."""

    def __init__(self, config: ModelConfig, site: str) -> None:
        super().__init__()
        self.site, size = site, config.d_model
        self.inputs = nn.Parameter(torch.empty(4 * size, size))
        self.recurrent = nn.Parameter(torch.empty(4 * size, size))
        self.inputs_bias = nn.Parameter(torch.empty(4 * size))
        self.recurrent_bias = nn.Parameter(torch.empty(4 * size))

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], state: LayerState | None = None, taps: Taps | None = None
    ) -> Float[Tensor, "batch seq d_model"]:
        """The hidden states at every position; `state` is read, and replaced by what it is afterwards."""
        weights = [w.to(x.dtype) for w in (self.inputs, self.recurrent, self.inputs_bias, self.recurrent_bias)]
        nothing = x.new_zeros(x.shape[0], x.shape[2])
        before = LayerState(nothing, nothing) if state is None else state
        hidden, cell = before.hidden.to(x.dtype), before.cell.to(x.dtype)
        if taps is not None and any(taps.edit_at(f"{self.site}.{name}") for name in (*GATES, "cell")):
            out, last = self.step_by_step(x, LayerState(hidden, cell), weights, taps)
        else:
            out, *ends = torch.lstm(x, (hidden[None], cell[None]), weights, True, 1, 0.0, self.training, False, True)
            last = LayerState(*(end[0] for end in ends))
            if taps is not None:
                self.keep(x, out, LayerState(hidden, cell), weights, taps)
        if state is not None:
            state.hidden, state.cell = last.hidden.detach(), last.cell.detach()
        return tap(taps, f"{self.site}.after", out)

    def gates(self, x: Tensor, hidden: Tensor, weights: list[Tensor]) -> dict[str, Tensor]:
        """The gates that follow from inputs and the hidden states before them."""
        inputs, recurrent, *biases = weights
        values = (x @ inputs.mT + hidden @ recurrent.mT + sum(biases)).chunk(4, dim=-1)
        return {name: v.tanh() if name == "candidate" else v.sigmoid() for name, v in zip(GATES, values, strict=True)}

    def keep(self, x: Tensor, out: Tensor, before: LayerState, weights: list[Tensor], taps: Taps) -> None:
        """Capture gates and cell, worked out from the hidden states when they are read: reading changes no forward pass."""

        def gates() -> dict[str, Tensor]:
            return self.gates(x, torch.cat((before.hidden[:, None], out[:, :-1]), dim=1), weights)

        def cells() -> Tensor:
            values, cell, found = gates(), before.cell, []
            for t in range(x.shape[1]):
                cell = values["forget_gate"][:, t] * cell + values["input_gate"][:, t] * values["candidate"][:, t]
                found.append(cell)
            return torch.stack(found, dim=1)

        for name in GATES:
            taps.keep(f"{self.site}.{name}", lambda name=name: gates()[name])  # type: ignore[misc]
        taps.keep(f"{self.site}.cell", cells)

    def step_by_step(
        self, x: Tensor, state: LayerState, weights: list[Tensor], taps: Taps
    ) -> tuple[Float[Tensor, "batch seq d_model"], LayerState]:
        """The same one position at a time, so that an edit of a gate or cell changes all that comes after it."""
        hidden, cell, steps = state.hidden, state.cell, []
        for t in range(x.shape[1]):
            values = self.gates(x[:, t], hidden, weights)
            for name in GATES:
                values[name] = edited(taps, f"{self.site}.{name}", values[name])
            cell = values["forget_gate"] * cell + values["input_gate"] * values["candidate"]
            cell = edited(taps, f"{self.site}.cell", cell)
            hidden = values["output_gate"] * cell.tanh()
            steps.append(values | {"cell": cell, "hidden": hidden})
        whole = {name: torch.stack([step[name] for step in steps], dim=1) for name in steps[0]}
        for name in (*GATES, "cell"):
            taps.keep(f"{self.site}.{name}", whole[name])
        return whole["hidden"], LayerState(hidden, cell)


def edited(taps: Taps, site: str, value: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
    """Apply an edit, which is written for [batch seq d_model], to one position."""
    edit = taps.edit_at(site)
    return value if edit is None else edit(value[:, None])[:, 0]


class Recurrent(Network):
    """An embedding, layers of LSTM and a head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(LSTM(config, f"blocks.{i}") for i in range(config.layers))
        self.head = Head(config)
        self.tie()

    def forward(
        self,
        ids: Int[Tensor, "batch seq"],
        mask: Mask | None = None,
        taps: Taps | None = None,
        cache: Sequence[LayerState] | None = None,
    ) -> Output:
        """Scores of the next token at every position, or of labels."""
        return self.answer(self.encode(ids, mask, taps, cache), mask, taps)

    def encode(
        self,
        ids: Int[Tensor, "batch seq"],
        mask: Mask | None = None,
        taps: Taps | None = None,
        cache: Sequence[LayerState] | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        if mask is not None and not (mask.causal and mask.allowed is None):
            raise ConfigError("an LSTM reads every token before the next one: it can take no mask; leave the mask out")
        self.check(taps)
        taps = self.tapped(taps)
        x = tap(taps, "embedding", dropped(self.look_up(ids, taps), self.config.dropout, self.training).to(self.dtype))
        for i, block in enumerate(self.blocks):
            x = dropped(block(x, None if cache is None else cache[i], taps), self.config.dropout, self.training)
        return tap(taps, "hidden", x)

    def state(self, batch: int) -> list[LayerState]:
        """The state of a network that has read nothing."""
        nothing = torch.zeros(2, len(self.blocks), batch, self.config.d_model, device=self.device, dtype=self.dtype)
        return [LayerState(hidden, cell) for hidden, cell in zip(*nothing, strict=True)]

    def sites(self) -> list[Site]:
        """Every place where taps can read or edit, in the order of the forward pass."""
        stream = "batch seq d_model"
        found = [*self.token_sites(), Site("embedding", stream, "what the first layer reads")]
        for i in range(self.config.layers):
            found += [Site(f"blocks.{i}.{name}", stream, f"{meaning}{ONE}") for name, meaning in GATES.items()]
            found.append(Site(f"blocks.{i}.cell", stream, f"the layer's memory after each token{ONE}"))
            found.append(Site(f"blocks.{i}.after", stream, "what the layer shows of its memory: its hidden state"))
        found.append(Site("hidden", stream, "the last layer's hidden state: what the head reads"))
        return found + self.answer_sites()
