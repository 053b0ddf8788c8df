"""What every test starts from, and what many ask for."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """A shell ignores SIGINT in jobs it starts in the background, and a test run there would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of one test, and a tokenizer that does not mind being forked."""
    monkeypatch.setenv("DRUTHERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Bit-identical sums, and a process that can be forked."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Iterator[Path]:
    """A folder for the tests of one module, with a cache of its own inside."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRUTHERS_CACHE", str(folder / "cache"))
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        yield folder
