"""Memory that libraries hold on to for themselves: how much they may, and giving it back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import os

KERNELS = 128
"""Matrix products of different sizes that oneDNN keeps ready. One micro-batch takes a few dozen, over and over; the
next has other sizes, so the rest are never used again and fill memory: half a MiB each, 1,024 by oneDNN's default."""


def hold_few_kernels() -> None:
    """Keep memory from growing with every new size of micro-batch; call it before the first matrix product.

    What the user has set stays.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))


def release() -> None:
    """Give freed memory back to the system; does nothing where the C library has no such call.

    glibc keeps what was freed, in pieces, and micro-batches of another shape find no place in them.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
