"""Writing what was found to a file, by the ending of its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from pellucid.core.errors import ConfigError
from pellucid.core.files import write_json, write_text


class Shown(Protocol):
    """What has a page and figures."""

    def to_html(self) -> str: ...

    def to_json(self) -> dict[str, Any]: ...


def check_path(path: Path, kinds: tuple[str, ...], *, force: bool) -> None:
    """Refuse a file of another kind, and one that is there unless it may be replaced."""
    if path.suffix not in kinds:
        raise ConfigError(f"{path}: this is written as {', '.join(kinds)}, not {path.suffix!r}; name it so")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file in it")
    if path.exists() and not force:
        raise ConfigError(f"{path} exists already; choose another name, or pass --force to replace it")


def save(found: Shown, path: Path, *, force: bool) -> None:
    """Write a page (`.html`) or figures (`.json`)."""
    check_path(path, (".html", ".json"), force=force)
    if path.suffix == ".json":
        write_json(path, found.to_json())
    else:
        write_text(path, found.to_html())
