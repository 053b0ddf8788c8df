"""Work that tests give to other processes."""

from __future__ import annotations

import os
import signal

from druthers.records import InputError


def refuse_fours(job: int) -> int:
    """The job, unless four divides it."""
    if job % 4 == 0:
        raise InputError(f"row {job} is a multiple of four; leave it out")
    return job


def pid_of(job: int) -> int:
    """Who did the job."""
    return os.getpid()


def die_of(number: int) -> None:
    """End as by a signal from outside."""
    os.kill(os.getpid(), number)


def divide(job: int) -> float:
    """A fault of the program's own, where the job is zero."""
    return 1 / job


def close_every_pipe(job: int) -> None:
    """Go on without anybody to answer to."""
    os.closerange(3, 64)
    signal.pause()


class Heavy:
    """Work that cannot be taken in."""

    def __call__(self, job: int) -> int:
        """The job."""
        return job

    def __reduce__(self) -> tuple[object, ...]:
        return int, ("no number",)
