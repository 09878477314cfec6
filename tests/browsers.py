"""The browser that pages are looked at with."""

from __future__ import annotations

import os
import shutil

import pytest

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]


def chromium() -> str:
    """Where Chromium is. Without it a test is skipped, but fails in CI, which installs it."""
    path = os.environ.get("PELLUCID_CHROMIUM") or shutil.which("chromium")
    if path is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(
            "no chromium here; install Debian's package of that name"
        )
    return path
