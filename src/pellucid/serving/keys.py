"""API keys: from a file, one a line, or from the environment; never from the command line, which others can read."""

from __future__ import annotations

import os
from pathlib import Path

from pellucid.core.errors import ConfigError

VARIABLE = "PELLUCID_API_KEYS"  # with commas or line ends between them


def read_keys(path: Path | None) -> tuple[str, ...]:
    """The keys of a file and of the environment. Empty lines and those that begin with # are none."""
    found = os.environ.get(VARIABLE, "").replace(",", "\n").splitlines()
    if path is not None:
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            said = (error.strerror or "").lower() if isinstance(error, OSError) else "it is not text"
            raise ConfigError(f"the file of keys {path} cannot be read: {said}; give one with a key on each line") from None
        found += lines
        if not any(is_key(line) for line in lines):
            raise ConfigError(f"the file of keys {path} holds no key; write one on each line")
    return tuple(dict.fromkeys(line.strip() for line in found if is_key(line)))


def is_key(line: str) -> bool:
    return bool(line.strip()) and not line.strip().startswith("#")
