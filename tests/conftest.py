"""Shapes in type annotations are checked while the tests run; every test has its own cache, and one thread unless it asks."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook
from real_data import DATA

# An int is a float, as in Python's own rules for type hints (PEP 484).
install_import_hook(
    ["pellucid.network", "pellucid.generation.slots", "pellucid.generation.sampling", "pellucid.training.objectives"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

settings.register_profile("pellucid", deadline=None)  # a shared machine pauses when it likes
settings.load_profile("pellucid")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PELLUCID_CACHE", str(folder))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return folder


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_is_heard() -> None:
    """A shell starts what it runs in the background with SIGINT ignored, and so would be the processes that tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads on two busy cores wait for each other: a tiny network's step then takes a second instead of a millisecond."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """No test pulls the plug, so none can tell; on a busy disk a hundred checkpoints wait for minutes. tests/core does wait."""
    if request.path.parent.name != "core":
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def data() -> Path:
    """Real text and labels beside the checkout; a test that needs them is skipped where they are not."""
    if not DATA.is_dir():
        pytest.skip(f"the folder of real data, {DATA.name}, is not beside this checkout")
    return DATA


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line, in this process: exit code, standard output, standard error."""
    from rich.console import Console

    from pellucid.cli import app, main

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        app.console = Console()  # as wide as the environment says now: one that is made stays as wide as it was
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return call
