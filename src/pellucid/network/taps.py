"""Reading and changing what flows through a network, in the forward pass that everybody uses.

Each place worth looking at is one line, `q = tap(taps, "blocks.3.attn.q", q)`. Without taps nothing is added to the graph.
Forward hooks are not used: registered after torch.compile they never fire, without a word.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

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
    """Captures the sites whose names match `capture` (shell patterns), and applies `edit` (site to function) as values pass.

    After a forward pass `taps["blocks.0.attn.q"]` is what passed there, edits included. An attention pattern
    (`blocks.0.attn.pattern`) is computed when it is first read; only an edit of it changes how that layer computes.
    """

    def __init__(self, capture: str | Iterable[str] = (), edit: Mapping[str, Edit] | None = None) -> None:
        self.capture = (capture,) if isinstance(capture, str) else tuple(capture)
        self.edit = dict(edit or {})
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

    def check(self, sites: Iterable[str]) -> None:
        """Refuse patterns and edits that no site of the network answers to."""
        names = list(sites)
        strangers = [pattern for pattern in self.capture if not any(fnmatchcase(name, pattern) for name in names)]
        strangers += [site for site in self.edit if site not in names]
        if strangers:
            raise ConfigError(f"{strangers[0]!r} is no site of this network; model.sites() lists them")

    def wants(self, site: str) -> bool:
        return any(fnmatchcase(site, pattern) for pattern in self.capture)

    def keep(self, site: str, value: Tensor | Callable[[], Tensor]) -> None:
        """Capture a value, or a function that computes it when it is read."""
        if self.wants(site):
            self._values[site] = value


def tap(taps: Taps | None, site: str, value: Tensor) -> Tensor:
    """Pass `value` on, edited and captured if `taps` asks for it."""
    if taps is None:
        return value
    if edit := taps.edit.get(site):
        value = edit(value)
    taps.keep(site, value)
    return value
