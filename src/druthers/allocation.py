"""Memory that the C library holds on to, given back to the system."""

from __future__ import annotations

import contextlib
import ctypes


def release() -> None:
    """Give freed memory back to the system; does nothing where the C library has no such call.

    glibc keeps what was freed, in pieces, and micro-batches of another shape find no place in them.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
