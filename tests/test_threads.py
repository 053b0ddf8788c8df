"""Work side by side: results in order, faults passed on, and the number of threads as it was."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from druthers.threads import crew_size, side_by_side


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("workers", [1, 2, 3, 9])
def test_results_and_progress_stand_in_the_order_of_the_jobs(workers: int) -> None:
    def late(job: int) -> int:
        time.sleep(0.02 if job == 0 else 0)
        return job * job

    told: list[int] = []
    assert side_by_side(late, range(5), workers=workers, progress=told.append) == [0, 1, 4, 9, 16] == told
    assert torch.get_num_threads() == 4


def test_nothing_to_do_is_nothing_found() -> None:
    assert side_by_side(str, [], workers=2) == []


def test_each_worker_has_an_equal_part_of_the_threads() -> None:
    """Two jobs that wait for each other are on two threads of two each."""
    both = threading.Barrier(2, timeout=30)

    def seen(job: int) -> tuple[int, int]:
        both.wait()
        return torch.get_num_threads(), threading.get_ident()

    (first, here), (second, there) = side_by_side(seen, range(2), workers=2)
    assert (first, second) == (2, 2)
    assert here != there


def test_a_fault_is_raised_here_and_drops_what_has_not_begun() -> None:
    done: list[int] = []

    def work(job: int) -> None:
        if job == 0:
            raise ValueError("broken")
        time.sleep(0.05)
        done.append(job)

    with pytest.raises(ValueError, match="broken"):
        side_by_side(work, range(50), workers=2)
    assert len(done) < 49
    assert torch.get_num_threads() == 4


def test_a_crew_is_two_on_a_cpu_with_threads_for_it() -> None:
    assert crew_size(torch.device("cpu")) == 2
    assert crew_size(torch.device("cuda")) == 1
    torch.set_num_threads(1)
    assert crew_size(torch.device("cpu")) == 1
