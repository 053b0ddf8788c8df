"""One function over many jobs, in other processes: same results, same errors, nothing left behind."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator
from functools import partial

import pytest

from druthers.processes import over
from druthers.records import InputError
from tests import jobs

JOBS = list(range(1, 24))


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_stand_as_the_jobs_do(count: int) -> None:
    """However many work on them."""
    assert list(over(partial(operator.mul, 3), JOBS, count=count)) == [3 * job for job in JOBS]


def test_an_input_error_is_raised_in_the_order_of_the_jobs_and_everything_ends() -> None:
    """The results before it are handed out first; the processes are gone."""
    found: list[int] = []
    results = over(jobs.refuse_fours, [1, 2, 3, 4, 8, 5], count=2)
    with pytest.raises(InputError, match="row 4"):
        found.extend(results)
    assert found == [1, 2, 3]


def test_processes_are_others_and_end_when_the_reader_stops() -> None:
    """Also in the middle, with jobs still waiting."""
    results = over(jobs.pid_of, JOBS, count=2)
    pids = {next(results), next(results)}
    results.close()
    assert os.getpid() not in pids
    assert all(map(gone, pids))


def test_a_process_that_dies_is_said_in_one_sentence() -> None:
    """For want of memory, say."""
    with pytest.raises(InputError, match=r"ended early \(exit status 3\).*threads=1"):
        list(over(os._exit, [3, 3, 3], count=2))


def test_jobs_are_read_only_a_little_ahead() -> None:
    """So memory stays bounded however many there are."""
    read: list[int] = []

    def jobs() -> Iterator[int]:
        for job in JOBS:
            read.append(job)
            yield job

    results = over(partial(operator.mul, 1), jobs(), count=2)
    next(results)
    assert len(read) == 4
    results.close()


def test_what_is_printed_does_not_stand_among_the_results() -> None:
    """A library may print."""
    assert list(over(print, ["noise"] * 3, count=2)) == [None] * 3
