"""Corpora of the Hugging Face hub, streamed through the `datasets` library (extra `hub`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pellucid.core.errors import CorpusError, MissingExtraError
from pellucid.core.files import hash_file
from pellucid.text.tables import Row, Table, first_line

PREFIX = "hf:"


class HubDataset(Table):
    """`hf:OWNER/NAME[/CONFIG][:SPLIT]`; OWNER/NAME may be a folder on this machine, and the split is `train` unless given."""

    unit = "row"

    def __init__(self, source: str) -> None:
        self.name = source
        path, config, self.split = parse(source)
        try:
            import datasets
        except ImportError:
            raise MissingExtraError(f"reading {source}", "hub") from None
        with self._opening():
            self.builder = datasets.load_dataset_builder(path, config)
            self.dataset: Any = self.builder.as_streaming_dataset(split=self.split)

    def rows(self) -> Iterator[Row]:
        return self._rows(self.dataset)

    def column(self, field: str) -> Iterator[Row]:
        known = self.dataset.features is not None and field in self.dataset.features
        return self._rows(self.dataset.select_columns([field]) if known else self.dataset)

    def identity(self) -> str:
        """What tells this content from another: names of hub files hold the commit they come from; local files are hashed."""
        files = (self.builder.config.data_files or {}).get(self.split, [])
        names = [hash_file(Path(name)) if Path(name).is_file() else str(name) for name in files]
        return "\n".join([self.split, *names])

    def _rows(self, dataset: Iterable[Any]) -> Iterator[Row]:
        with self._opening():
            yield from enumerate(dataset, 1)

    @contextmanager
    def _opening(self) -> Iterator[None]:
        try:
            yield
        except CorpusError:
            raise
        except Exception as error:  # the library and what it stands on raise a dozen kinds
            raise CorpusError(
                f"{self.name} cannot be read ({first_line(error)}); check the name and the network, "
                "or download it and give its files"
            ) from error


def parse(source: str) -> tuple[str, str | None, str]:
    """The path, configuration and split that `hf:...` names.

    >>> parse("hf:owner/name/config:test")
    ('owner/name', 'config', 'test')
    """
    name, _, split = source.removeprefix(PREFIX).partition(":")
    if name and Path(name).is_dir():
        return name, None, split or "train"
    if name.startswith(("/", "./", "../")):
        return str(Path(name).parent), Path(name).name, split or "train"
    parts = name.split("/")
    if not all(parts) or len(parts) > 3:
        raise CorpusError(f"{source} is not a dataset's name; write hf:OWNER/NAME, hf:OWNER/NAME/CONFIG or hf:OWNER/NAME:SPLIT")
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split or "train"
