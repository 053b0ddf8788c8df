"""Work that tests give to other processes."""

from __future__ import annotations

import os

from druthers.records import InputError


def refuse_fours(job: int) -> int:
    """The job, unless four divides it."""
    if job % 4 == 0:
        raise InputError(f"row {job} is a multiple of four; leave it out")
    return job


def pid_of(job: int) -> int:
    """Who did the job."""
    return os.getpid()
