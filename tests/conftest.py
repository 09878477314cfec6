"""Shapes in type annotations are checked while the tests run; every test has its own cache, and two threads at most."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook(["pellucid.network", "pellucid.generation"], "beartype.beartype")

DATA = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PELLUCID_CACHE", str(folder))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return folder


@pytest.fixture(scope="session")
def data() -> Path:
    """Real text and labels beside the checkout; a test that needs them is skipped where they are not."""
    if not DATA.is_dir():
        pytest.skip(f"the folder of real data, {DATA.name}, is not beside this checkout")
    return DATA
