"""What every test starts from."""

from __future__ import annotations

import signal

import pytest


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """A shell ignores SIGINT in jobs it starts in the background, and a test run there would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
