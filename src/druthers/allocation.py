"""How the C library gives memory out and takes it back; set once, before torch is imported.

Huge pages: tensors of 2 MiB or more lie in them where Linux has them, so a training step spends less time on page
faults. Large blocks: by default glibc raises the size from which a block has a mapping of its own as blocks are freed,
so that micro-batches of varying shapes leave holes behind; here that size is fixed, and a free end of the heap is kept.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGE = 16 * 2**20
"""Bytes from which a block goes back to the system as soon as it is freed; much less slows scoring down."""
KEPT = 256 * 2**20
"""Bytes that may stay free at the end of the heap."""


def set_allocation() -> None:
    """Huge pages and large blocks, each unless the environment already says otherwise."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if not os.environ.keys() & {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"}:
        with contextlib.suppress(OSError, AttributeError):  # other C libraries have no mallopt
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_THRESHOLD, LARGE)
            mallopt(M_TRIM_THRESHOLD, KEPT)
