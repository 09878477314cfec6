"""How a server behaves: every limit has a default that suits one machine, and a way to change it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pellucid.core.errors import ConfigError

if TYPE_CHECKING:
    from pellucid.network.config import ModelConfig

LEAST_KEY = 16  # characters of a key: a shorter one can be guessed
SECONDS = ("timeout", "read_timeout", "heartbeat", "hang", "grace")


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """What `create_app` and `serve` take."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: any that is free
    name: str | None = None  # of the model, as clients call it; None: its folder's
    slots: int = 16  # texts that are written at once
    context: int | None = None  # tokens of a prompt and its continuation; None: all that the model takes
    keys: tuple[str, ...] = ()  # of which a client must show one; none: everybody who can connect is served
    origins: tuple[str, ...] = ()  # web pages' origins that may call from a browser, besides our own page
    hosts: tuple[str, ...] = ()  # names, besides its own, under which clients may call the server
    max_body: int = 4_000_000  # bytes of a request
    queue: int = 256  # texts and other work that wait
    per_key: int = 128  # requests under way for one key; without keys, for one address
    timeout: float = 600.0  # seconds that a request may take
    read_timeout: float = 20.0  # seconds in which a request must be sent, and in which a client must read something
    heartbeat: float = 10.0  # seconds of silence after which a stream says that it is alive
    hang: float = 30.0  # seconds without a step after which the engine counts as hung
    grace: float = 30.0  # seconds that a server that is told to stop has to finish what is under way
    log_text: bool = False  # write prompts and answers into the log

    def context_for(self, config: ModelConfig) -> int:
        """How long a text of this model may become."""
        if self.context is not None and self.context > config.context_length:
            raise ConfigError(f"context {self.context:,} exceeds the model's own, {config.context_length:,}; give that or less")
        return self.context or config.context_length

    def __post_init__(self) -> None:
        for name in ("slots", "queue", "per_key", "max_body", "context"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        for name in SECONDS:
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be above 0 seconds, not {getattr(self, name)}")
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"port must be from 0 to 65535, not {self.port}")
        if self.name is not None and not 0 < len(self.name.strip()) == len(self.name) <= 200:
            raise ConfigError(f"name must have 1 to 200 characters and no spaces around them, not {self.name!r}")
        for key in self.keys:
            if len(key) < LEAST_KEY or not (key.isascii() and key.isprintable()) or " " in key:
                raise ConfigError(f"an API key must have at least {LEAST_KEY} characters of ASCII without spaces; one has not")
        for origin in self.origins:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or origin != f"{parts.scheme}://{parts.netloc}" or not parts.netloc:
                raise ConfigError(f"the origin {origin!r} is not of the form https://example.org; correct it")
        for host in self.hosts:
            if not host or any(character in host for character in "/:@ "):
                raise ConfigError(f"the host {host!r} is not a name such as models.example.org, without a port; correct it")
        if not self.keys and not is_loopback(self.host):
            raise ConfigError(
                f"host {self.host} lets other machines connect, so clients must show a key; "
                "give a file of keys with --keys FILE, or leave --host out"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
