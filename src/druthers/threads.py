"""Independent pieces of work side by side on the CPU's threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Job = TypeVar("Job")
Found = TypeVar("Found")

CREW = 2
"""Micro-batches at once on a CPU. Each on half the threads: what one batch leaves idle between its products, the other
uses."""


def crew_size(device: torch.device) -> int:
    """How many micro-batches to run at once: two on a CPU with two threads or more, otherwise one."""
    return min(CREW, torch.get_num_threads()) if device.type == "cpu" else 1


def side_by_side(
    work: Callable[[Job], Found], jobs: Sequence[Job], *, workers: int, progress: Callable[[Found], None] | None = None
) -> list[Found]:
    """`work` done on every job, `workers` at once with an equal part of the threads each; results as the jobs stand.

    `progress` is called with every result, from this thread and in the order of the jobs. What a job raises is raised
    here, after the jobs that run have ended and with the others dropped. Gradient mode and autocast belong to a
    thread, so `work` sets its own.

    >>> side_by_side(lambda x: x * x, [1, 2, 3], workers=2)
    [1, 4, 9]
    """
    threads, workers = torch.get_num_threads(), min(workers, len(jobs))
    found: list[Found] = []

    def take(result: Found) -> None:
        found.append(result)
        if progress:
            progress(result)

    if workers <= 1:
        for job in jobs:
            take(work(job))
        return found
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(max(1, threads // workers),))
    try:
        for future in [pool.submit(work, job) for job in jobs]:
            take(future.result())
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
    return found
