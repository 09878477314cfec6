"""A model over HTTP, for the clients that people have: `create_app(model, settings)` is an ASGI application."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from pellucid.core.errors import MissingExtraError
from pellucid.serving.settings import ServeSettings

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from pellucid.model import Model

__all__ = ["ServeSettings", "check_extra", "create_app"]

PACKAGES = ("starlette", "uvicorn", "prometheus_client", "llguidance")  # of the extra `serve`


def check_extra() -> None:
    """Raise `MissingExtraError` without the packages that a server needs."""
    if not all(map(find_spec, PACKAGES)):
        raise MissingExtraError("serving a model", "serve")


def create_app(model: Model, settings: ServeSettings | None = None) -> Starlette:
    """The application that serves a model, for any ASGI server; `app.state.service` is what it stands on.

    uvicorn's own limits do not cover slow clients: `pellucid serve` does, by `pellucid.serving.running`.
    """
    check_extra()
    from pellucid.serving import app

    return app.create_app(model, settings)
