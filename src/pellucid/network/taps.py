"""Reading and changing what flows through a network, in the forward pass that everybody uses.

Each place worth looking at is one line, `q = tap(taps, "blocks.3.attn.q", q)`. Without taps nothing is added to the graph.
Forward hooks are not used: registered after torch.compile they never fire, without a word.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from pellucid.core.errors import ConfigError

Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Site:
    """A place in the network: its name, the shape of what passes, and what that is."""

    name: str
    shape: str
    meaning: str


class Taps:
    """Captures the sites whose names match `capture` (shell patterns), and applies `edit` as values pass.

    An edit is a function of a site's value, or a number or tensor that takes its place. After a forward pass
    `taps["blocks.0.attn.q"]` is what passed there, edits included. An attention pattern (`blocks.0.attn.pattern`) is computed
    when it is first read; only an edit of it changes how that layer computes.
    """

    def __init__(self, capture: str | Iterable[str] = (), edit: Mapping[str, Edit | Tensor | float] | None = None) -> None:
        self.capture = (capture,) if isinstance(capture, str) else tuple(capture)
        self.edit = {site: as_edit(site, value) for site, value in (edit or {}).items()}
        self.before: Taps | None = None
        self._values: dict[str, Tensor | Callable[[], Tensor]] = {}

    def __getitem__(self, site: str) -> Tensor:
        value = self._values[site]
        if not isinstance(value, Tensor):
            value = self._values[site] = value()
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def take(self, site: str) -> Tensor:
        """What passed there, and forget it: for patterns of long texts, which together would not fit into memory."""
        value = self[site]
        del self._values[site]
        return value

    def check(self, sites: Iterable[str]) -> None:
        """Refuse patterns and edits that no site of the network answers to."""
        names = list(sites)
        strangers = [pattern for pattern in self.capture if not any(fnmatchcase(name, pattern) for name in names)]
        strangers += [site for site in self.edit if site not in names]
        if strangers:
            near = difflib.get_close_matches(strangers[0], names, n=1)
            way_out = f"did you mean {near[0]!r}?" if near else "model.sites() lists them"
            raise ConfigError(f"{strangers[0]!r} is no site of this network; {way_out}")

    def after(self, other: Taps | None) -> Taps:
        """Both: these taps read and edit what others, which come first, have made of a value; the others capture it too."""
        both = copy(self)
        both.before = other
        return both

    def edit_at(self, site: str) -> Edit | None:
        """What changes the values of a site, if anything does."""
        first, then = None if self.before is None else self.before.edit_at(site), self.edit.get(site)
        if first is None or then is None:
            return then or first
        return lambda value: then(first(value))

    def wants(self, site: str) -> bool:
        return any(fnmatchcase(site, pattern) for pattern in self.capture)

    def keep(self, site: str, value: Tensor | Callable[[], Tensor]) -> None:
        """Capture a value, or a function that computes it when it is read, with gradients if the pass had them."""
        if not isinstance(value, Tensor) and not torch.is_grad_enabled():
            value = torch.no_grad()(value)
        if self.before is not None:
            self.before.keep(site, value)
        if self.wants(site):
            self._values[site] = value


def tap(taps: Taps | None, site: str, value: Tensor) -> Tensor:
    """Pass `value` on, edited and captured if `taps` asks for it."""
    if taps is None:
        return value
    if edit := taps.edit_at(site):
        value = edit(value)
    taps.keep(site, value)
    return value


def as_edit(site: str, given: Edit | Tensor | float) -> Edit:
    """A function that gives a site's new value, which must be of the old one's shape."""
    if not callable(given) and not isinstance(given, Tensor | float | int):
        raise ConfigError(f"the edit of {site!r} is {type(given).__name__}; give a function of its value, a number or a tensor")

    def edit(value: Tensor) -> Tensor:
        if callable(given):
            new = given(value)
        else:
            new = torch.as_tensor(given, dtype=value.dtype, device=value.device)
            with suppress(RuntimeError):  # the shape is told below
                new = new.expand(value.shape).clone()
        if not isinstance(new, Tensor):
            raise ConfigError(f"the edit of {site!r} returned {type(new).__name__}, not a tensor; return the new value")
        if new.shape != value.shape:
            shapes = f"{[*new.shape]}, and what passes there {[*value.shape]}"
            raise ConfigError(f"the edit of {site!r} has the shape {shapes}; give one of that shape")
        return new.contiguous()  # as what passed was: some kernels take nothing else

    return edit
